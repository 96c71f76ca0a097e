"""Images brought to another side."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from fastcifar.data import Dataset
from fastcifar.data import resize as module
from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.data.resize import resized
from fastcifar.errors import UserError


def pixels(count, height, width):
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=random)


def exact(images, tall, wide):
    """Return the images in float64, before they are rounded, by torch."""
    values = images.permute(0, 3, 1, 2).double()
    return F.interpolate(values, size=(tall, wide), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


@pytest.mark.parametrize("side", [1, 7, 16, 28, 31, 48, 64, 96])
@pytest.mark.parametrize("before", [28, 32])
def test_it_is_torchs_antialiased_bilinear_interpolation_rounded(before, side):
    images = pixels(5, before, before)
    mine = resized(images, side)
    assert mine.shape == (5, side, side, 3) and mine.dtype == torch.uint8 and mine.is_contiguous()
    assert (mine.double() - exact(images, side, side)).abs().max() <= 0.5 + 1e-4


def by_hand(before, after):
    """Return the matrix `[after, before]` of a triangle filter, as wide as what a pixel covers, over centers."""
    scale = before / after
    centers = (torch.arange(after).double() + 0.5) * scale
    distance = (torch.arange(before).double() + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = (1 - distance.abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize(("before", "after"), [(32, 48), (32, 20), (33, 7)])
def test_it_is_a_triangle_filter(before, after):
    images, weights = pixels(3, before, before), by_hand(before, after)
    expected = torch.einsum("yh,xw,nhwc->nyxc", weights, weights, images.double())
    assert (resized(images, after).double() - expected).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("height", "width", "side", "long", "top", "left"), [(20, 30, 10, 15, 0, 2), (33, 24, 48, 66, 9, 0)]
)
def test_of_other_than_square_images_the_middle_is_kept(height, width, side, long, top, left):
    images = pixels(4, height, width)
    tall, wide = (side, long) if height < width else (long, side)
    expected = exact(images, tall, wide)[:, top : top + side, left : left + side]
    assert (resized(images, side).double() - expected).abs().max() <= 0.5 + 1e-4


def test_how_many_are_resized_at_a_time_does_not_matter(monkeypatch):
    images = pixels(9, 12, 12)
    whole = resized(images, 20)
    monkeypatch.setattr(module, "_VALUES", 3 * 20**2 * 2)
    assert torch.equal(resized(images, 20), whole)
    assert resized(images[:0], 20).shape == (0, 20, 20, 3)


@pytest.fixture
def data():
    images, labels = pixels(30, 12, 12), torch.arange(30) % 3
    return Dataset.from_arrays(images[:20], labels[:20], images[20:25], labels[20:25], x_val=images[25:])


def test_all_splits_are_resized_and_the_rest_stays(data):
    small = data.resize(8)
    for name in ("train", "test", "val"):
        before, after = getattr(data, name), getattr(small, name)
        assert torch.equal(after.images, resized(before.images, 8)) and torch.equal(after.labels, before.labels)
    assert (small.resized, small.mean, small.std, small.sha256) == (8, data.mean, data.std, data.sha256)
    assert small.changes == {"resized": 8} and data.changes == {}
    assert data.resize(12) is data
    for way in (lambda: data.hold_out(6).resize(8), lambda: small.hold_out(6)):
        assert torch.equal(way().test.images, resized(data.hold_out(6).test.images, 8))
        assert way().changes == {"resized": 8}


def test_what_cannot_be_is_refused(data, monkeypatch):
    with pytest.raises(UserError, match=r"resize is 16, but the images are resized to 8 already; allowed: once"):
        data.resize(8).resize(16)
    for wrong in (0, 4097, 2.5, "8"):
        with pytest.raises(UserError, match=r"^resize is "):
            data.resize(wrong)
    monkeypatch.setattr(module, "free_memory", lambda: 8 * module._VALUES + 3 * 30 * 100**2)
    assert data.resize(100).train.side == 100
    message = (
        "30 images of 2000 x 2000 pixels take 0.4 GB, and 0.1 GB are free on cpu; allowed: sides up to 100, or fewer"
    )
    with pytest.raises(UserError, match=message):
        data.resize(2000)


@pytest.mark.parametrize("is_part", [False, True])
def test_images_in_host_memory_stay_there(data, is_part):
    kept = KeptSplit(HostStore(data.train.images), data.train.labels)
    rows = torch.tensor([3, 1, 17])
    kept, plain = (kept.subset(rows), data.train.subset(rows)) if is_part else (kept, data.train)
    small = dataclasses.replace(data, train=kept).resize(8)
    assert small.train.resident == "host" and small.train.side == 8
    assert torch.equal(small.train.images, resized(plain.images, 8))
    assert torch.equal(small.train.labels, plain.labels)
