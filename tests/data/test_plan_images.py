"""The flips of a plan, and its images of other sides."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastcifar.data import Augment, EpochPlan
from fastcifar.errors import UserError
from tests.data.test_plan import draw, same


def test_random_flips_are_half_of_the_images_and_others_in_each_epoch():
    flips = torch.stack([draw(epoch=epoch, count=40_000, shuffle=False).flips for epoch in range(2)])
    assert (flips.double().mean(1) - 0.5).abs().max() < 0.0125
    assert abs((flips[0] == flips[1]).double().mean() - 0.5) < 0.0125


def test_alternating_flips_mirror_each_image_in_every_other_epoch():
    by_image = []
    for epoch in range(4):
        plan = draw(Augment(crop=4, flip="alternating"), epoch, count=10_000)
        by_image.append(torch.empty(10_000, dtype=torch.bool).index_put_((plan.indices,), plan.flips))
    assert abs(by_image[0].double().mean() - 0.5) < 0.025
    assert torch.equal(by_image[1], ~by_image[0])
    assert torch.equal(by_image[2], by_image[0]) and torch.equal(by_image[3], by_image[1])


def test_flips_by_visit_mirror_each_image_at_every_other_of_its_visits():
    how, visit_counts = Augment(flip="by-visit"), torch.zeros(60, dtype=torch.int32)
    seen, generator = [[] for _ in range(60)], torch.Generator().manual_seed(0)
    for epoch in range(6):
        visited = torch.randperm(60, generator=generator)[:40].sort().values
        plan = draw(how, epoch, count=60, visited=visited, visit_counts=visit_counts)
        for place, flip in zip(plan.indices.tolist(), plan.flips.tolist(), strict=True):
            seen[place].append(flip)
        visit_counts[visited] += 1
    first = draw(how, count=60, shuffle=False).flips.tolist()
    assert seen == [[flip ^ bool(visit % 2) for visit in range(len(of))] for of, flip in zip(seen, first, strict=True)]
    assert len({len(of) for of in seen}) > 2


@pytest.mark.parametrize("epoch", range(3))
def test_where_all_images_are_always_visited_flips_by_visit_are_the_alternating_ones(epoch):
    alternating = draw(Augment(flip="alternating"), epoch)
    for visit_counts in (None, torch.full((1000,), epoch, dtype=torch.int32)):
        assert same(draw(Augment(flip="by-visit"), epoch, visit_counts=visit_counts), alternating)
    assert same(draw(Augment(flip="alternating"), epoch, visit_counts=torch.ones(1000)), alternating)


@pytest.mark.parametrize("size", [16, 24, 28])
def test_small_images_are_the_whole_ones_rescaled(size):
    how = {"mean": (120.5, 110.0, 99.25), "std": (60.0, 64.0, 70.5), "dtype": torch.float32}
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    augment = Augment(crop=4, flip="random", brightness=0.1, contrast=0.2, early="resize")
    whole, small = (draw(augment, count=20, size=side) for side in (32, size))
    expected = F.interpolate(whole.batch(0, 20).augment(images, **how).double(), size=size, mode="bilinear")
    made = small.batch(0, 20).augment(images, **how)
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-4)
    buffers = EpochPlan.empty(20, augment, 32, "cpu")  # as a captured step reads them
    buffers.copy_(small)
    assert torch.equal(buffers.batch(torch.tensor([0]), 20).augment(images, **how, size=size), made)
    crops = draw(dataclasses.replace(augment, early="crop"), count=20)
    assert torch.equal(crops.batch(0, 20).augment(images, **how), whole.batch(0, 20).augment(images, **how))


def test_a_cutout_has_its_share_of_an_image_that_is_rescaled():
    plan = draw(Augment(cutout=8, early="resize"), size=24)
    assert (plan.cutouts[:, 2:] == 6).all() and plan.cutouts[:, :2].max() == 18
    assert draw(Augment(cutout=1, early="resize"), size=8).cutouts[:, 2:].eq(1).all()
    with pytest.raises(UserError, match=r"augment.cutout is 9; allowed: 0 to 8"):
        draw(Augment(crop=0, cutout=9, early="resize"), image_size=8, size=4)


def test_no_flip_mirrors_nothing():
    assert not draw(Augment(flip="none")).flips.any()
