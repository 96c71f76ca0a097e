"""Random changes to batches in anybody's loop: what becomes of each pixel, how often, and where chance comes from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.recipes.transforms.color import RandAugmentConfig
from fastcifar.transforms import (
    color_jitter,
    cutmix,
    cutout,
    gaussian_blur,
    grayscale,
    jitter,
    mixup,
    normalize,
    rand_augment,
    random_crop,
    random_erasing,
    random_flip,
)
from fastcifar.transforms.color import rand_augment_pixels

MEAN, STD = (120.5, 110.0, 99.25), (60.0, 64.0, 70.5)
UNITS = {"mean": (0, 0, 0), "std": (1, 1, 1)}  # floating images of 0 to 255
CHANGES = {
    "crop": lambda x, generator=None: random_crop(x, x.shape[2] - 1, 2, generator),
    "flip": random_flip,
    "cutout": lambda x, generator=None: cutout(x, 2, generator),
    "jitter": lambda x, generator=None: jitter(floating(x) if x.dtype == torch.uint8 else x, 0.2, 0.3, generator),
    "color jitter": lambda x, generator=None: color_jitter(x, 0.4, 0.3, 0.2, 0.1, generator, **UNITS),
    "grayscale": lambda x, generator=None: grayscale(x, 0.5, generator, **UNITS),
    "rand augment": lambda x, generator=None: rand_augment(x, 2, 9, generator, **UNITS),
    "blur": lambda x, generator=None: gaussian_blur(x, generator=generator),
    "erasing": lambda x, generator=None: random_erasing(x, fill="random", generator=generator),
    "mixup": lambda x, generator=None: mixup(x, torch.zeros(len(x)).long(), 10, 1.0, generator)[0],
    "cutmix": lambda x, generator=None: cutmix(x, torch.zeros(len(x)).long(), 10, 1.0, generator)[0],
}
sides = st.integers(2, 9)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def numbered(count, height, width):
    """Images whose pixels say which they are: image, row and column, each from 1, so that none is 0."""
    places = torch.meshgrid(*(torch.arange(1, side + 1) for side in (count, height, width)), indexing="ij")
    return torch.stack(places, dim=3).to(torch.uint8)


def floating(x):
    return x.permute(0, 3, 1, 2).float()


@settings(max_examples=60)
@given(count=st.integers(1, 6), height=sides, width=sides, seed=st.integers(0, 9), data=st.data())
def test_a_crop_is_a_window_of_the_image_with_its_border_reflected(count, height, width, seed, data):
    pad = data.draw(st.integers(0, min(height, width) - 1))
    size = data.draw(st.integers(1, min(height, width) + 2 * pad))
    x = numbered(count, height, width)
    crops = random_crop(x, size, pad, seeded(seed))
    assert crops.shape == (count, size, size, 3) and crops.dtype == torch.uint8
    for image, crop in zip(x.numpy(), crops.numpy(), strict=True):
        border = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(border, (size, size), (0, 1))
        windows = windows.transpose(0, 1, 3, 4, 2)
        assert (windows == crop).all((2, 3, 4)).any()


def test_every_place_of_a_crop_is_about_equally_likely_and_each_image_has_its_own():
    x = torch.arange(36, dtype=torch.float32).view(1, 1, 6, 6).expand(20_000, 3, 6, 6)
    corner = random_crop(x, 4, 0, seeded(0))[:, 0, 0, 0]  # says which place
    counts = torch.bincount(corner.long(), minlength=36).view(6, 6).double()
    assert counts.sum() == counts[:3, :3].sum()
    expected = 20_000 / 9
    assert ((counts[:3, :3] - expected) ** 2 / expected).sum() < 8 + 6 * 16**0.5
    tall = random_crop(x, 6, 3, seeded(0))[:, 0]
    assert len(torch.unique(tall, dim=0)) == 49


@settings(max_examples=30)
@given(count=st.integers(1, 20), height=sides, width=sides, seed=st.integers(0, 9))
def test_a_flip_mirrors_whole_images_or_leaves_them(count, height, width, seed):
    x = numbered(count, height, width)
    for image, out in zip(x, random_flip(x, seeded(seed)), strict=True):
        assert torch.equal(out, image) or torch.equal(out, image.flip(1))


def test_a_half_is_flipped():
    x = numbered(1, 2, 2).expand(40_000, 2, 2, 3)
    assert abs((random_flip(x, seeded(0)) != x)[:, 0, 0, 2].double().mean() - 0.5) < 0.0125


@settings(max_examples=60)
@given(count=st.integers(1, 6), height=sides, width=sides, seed=st.integers(0, 9), data=st.data())
def test_cutout_fills_one_square_and_changes_nothing_else(count, height, width, seed, data):
    size = data.draw(st.integers(0, min(height, width)))
    x = numbered(count, height, width)
    out = cutout(x, size, seeded(seed), fill=77)
    assert out.dtype == torch.uint8
    for image, cut in zip(x, out, strict=True):
        changed = (cut != image).all(2)
        assert torch.equal(changed, (cut != image).any(2)) and (cut[changed] == 77).all()
        rows, columns = changed.nonzero().unbind(1)
        assert len(rows) == size**2
        assert not size or rows.max() - rows.min() == columns.max() - columns.min() == size - 1


def test_every_place_of_a_cutout_is_about_equally_likely():
    out = cutout(torch.ones(20_000, 3, 6, 6), 4, seeded(0))
    first = (out[:, 0] == 0).flatten(1).double().argmax(1)
    counts = torch.bincount(first, minlength=36).view(6, 6)[:3, :3].double()
    assert counts.sum() == 20_000 and ((counts - 20_000 / 9) ** 2 / (20_000 / 9)).sum() < 8 + 6 * 16**0.5


def test_jitter_adds_and_multiplies_by_one_number_an_image_within_its_bounds():
    x = torch.randn(5_000, 3, 4, 4, dtype=torch.float64, generator=seeded(1))
    out = jitter(x, 0.2, 0.3, seeded(0))
    contrast = (out[:, 0, 0, 0] - out[:, 1, 2, 3]) / (x[:, 0, 0, 0] - x[:, 1, 2, 3])
    brightness = out[:, 0, 0, 0] / contrast - x[:, 0, 0, 0]
    torch.testing.assert_close(out, (x + brightness[:, None, None, None]) * contrast[:, None, None, None])
    for values, bound in ((brightness, 0.2), (contrast - 1, 0.3)):
        assert values.abs().max() <= bound * (1 + 1e-6)
        assert abs(values.mean()) < 0.025 * bound and abs(values.std() / bound - 3**-0.5) < 0.02
    assert torch.equal(jitter(x, 0.0), x)


def test_normalizing_is_a_difference_and_a_quotient():
    x = torch.randint(256, (4, 6, 6, 3), dtype=torch.uint8)
    expected = ((x.double() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    torch.testing.assert_close(normalize(x, MEAN, STD), expected.float())
    torch.testing.assert_close(normalize(floating(x).double(), MEAN, STD), expected)
    torch.testing.assert_close(normalize(x, MEAN, STD, torch.float16), expected.half())
    assert torch.equal(normalize(x, MEAN, STD), normalize(floating(x), MEAN, STD))
    assert normalize(floating(x), MEAN, STD, torch.bfloat16).dtype == torch.bfloat16


IN_BYTES = ("color jitter", "grayscale", "rand augment", "blur", "mixup", "cutmix")


@pytest.mark.parametrize("name", ["crop", "flip", "cutout", *IN_BYTES])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_floating_images_are_changed_as_bytes_are_and_keep_their_form(name, memory_format, dtype):
    x = torch.randint(256, (7, 6, 6, 3), dtype=torch.uint8)
    expected = CHANGES[name](x, seeded(2))
    out = CHANGES[name](floating(x).to(dtype).contiguous(memory_format=memory_format), seeded(2))
    distance = (out - expected.permute(0, 3, 1, 2).to(dtype)).abs().max()
    assert out.dtype == dtype and expected.dtype == torch.uint8
    assert distance <= (0.51 + 0.25 * (dtype == torch.float16) if name in IN_BYTES else 0)
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("form", [lambda x: x, floating], ids=["bytes", "floats"])
def test_what_is_given_stays_and_chance_comes_from_where_it_is_said_to(change, form):
    x = form(torch.randint(256, (9, 6, 6, 3), dtype=torch.uint8))
    before, state, generator = x.clone(), torch.get_rng_state(), seeded(4)
    first, second = change(x, generator), change(x, generator)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    assert torch.equal(first, change(x, seeded(4))) and not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(change(x), first) and torch.equal(change(x), second)
    torch.manual_seed(5)
    assert not torch.equal(change(x), first)


@pytest.mark.parametrize("name", sorted({*CHANGES} - {"rand augment"}))  # which makes whole numbers
def test_gradients_pass(name):
    x = (torch.rand(9, 3, 6, 6, generator=seeded(0)) * 255).requires_grad_()
    normalize(CHANGES[name](x, seeded(1)), MEAN, STD).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


def test_bytes_are_erased_to_gray_or_noise_around_it():
    x = torch.full((400, 8, 8, 3), 9, dtype=torch.uint8)
    gray = random_erasing(x, 0.5, generator=seeded(0))
    gone = gray != 9
    assert (gray[gone] == 128).all() and abs(gone.any(3).any(2).any(1).double().mean() - 0.5) < 0.08
    noise = random_erasing(x, 0.5, fill="random", generator=seeded(0))
    assert (noise == 9)[~gone].all() and abs(noise[gone].double().mean() - 127.5) < 2 and noise.dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalized_images_change_as_their_pixels_do(dtype):
    x = torch.randint(256, (9, 6, 6, 3), dtype=torch.uint8)
    out = rand_augment(normalize(x, MEAN, STD, dtype), 2, 9, seeded(0), mean=MEAN, std=STD)
    numbers = torch.rand(9, 8, generator=seeded(0))
    expected = rand_augment_pixels(floating(x).contiguous(), numbers, RandAugmentConfig(2, 9))
    torch.testing.assert_close(out, normalize(expected, MEAN, STD).to(dtype))
    unit = rand_augment(floating(x).to(dtype) / 255, 2, 9, seeded(0))
    torch.testing.assert_close(unit, (expected / 255).to(dtype))


@pytest.mark.parametrize("change", [mixup, cutmix])
def test_targets_are_mixed_as_the_images_are(change):
    labels = torch.arange(10)
    x = labels.view(10, 1, 1, 1).expand(10, 3, 40, 40).float()
    mixed, targets = change(x, labels, 10, 1.0, seeded(2))
    shares = torch.stack([(mixed == label).double().mean((1, 2, 3)) for label in labels], dim=1)
    if change is mixup:  # a value that lies between
        torch.testing.assert_close(mixed[:, 0, 0, 0], (targets * labels).sum(1))
    else:
        torch.testing.assert_close(shares, targets.double())
    torch.testing.assert_close(targets.sum(1), torch.ones(10))
    assert torch.equal(targets.argmax(1), labels) and (targets > 0).sum() > 10
    again, of_targets = change(x, torch.eye(10), 10, 1.0, seeded(2))
    assert torch.equal(again, mixed) and torch.equal(of_targets, targets)
    for wrong in (labels[:9], torch.eye(9), torch.zeros(10), labels > 3, labels.numpy(), torch.tensor(0.5)):
        with pytest.raises(UserError, match=r"labels are .*; allowed: int64 \[10\], or targets \[10, 10\]"):
            change(x, wrong, 10)
    for wrong, said in ((labels + 1, "1 to 10"), (labels - 2, "-2 to 7")):
        with pytest.raises(UserError, match=f"labels are {said}; allowed: -1 to 9"):
            change(x, wrong, 10)
    for alpha in (0, 1e-320):
        with pytest.raises(UserError, match=r"alpha is .*; allowed: 0\.001 or more"):
            change(x, labels, 10, alpha)
    assert all(each.isfinite().all() for each in change(x, labels, 10, 1e-3, seeded(0)))
    unlabeled = torch.where(labels == 4, -1, labels)
    same, without = change(x, unlabeled, 10, 1.0, seeded(2))
    assert torch.equal(same, mixed) and torch.equal(without, targets.index_fill(1, torch.tensor(4), 0))


def test_out_of_range_amounts_are_refused_by_name():
    x = torch.zeros(2, 3, 6, 6)
    for call, said in (
        (lambda: color_jitter(x, -1), "color_jitter.brightness is -1; allowed: 0 or more"),
        (lambda: rand_augment(x, 5), "rand_augment.operations is 5; allowed: 0 to 4"),
        (lambda: random_erasing(x, 2), "random_erasing.share is 2; allowed: 0 to 1"),
        (lambda: gaussian_blur(x, side=4), "gaussian_blur.side is 4; allowed: an odd number"),
        (lambda: grayscale(x, mean=(1, 2)), "mean is .*; allowed: three numbers"),
    ):
        with pytest.raises(UserError, match=said):
            call()


@pytest.mark.parametrize("change", [*CHANGES.values(), lambda x: normalize(x, MEAN, STD)], ids=[*CHANGES, "normalize"])
def test_other_images_are_refused(change):
    bytes_ = torch.zeros(4, 6, 6, 3, dtype=torch.uint8)
    for wrong in (bytes_.permute(0, 3, 1, 2), bytes_.int(), bytes_[0], torch.zeros(4, 6, 6, 3), bytes_ > 0):
        if change is CHANGES["jitter"] and wrong.dtype == torch.uint8:
            continue  # which it is given as floats above
        with pytest.raises(UserError, match=r"x is .*\]; allowed: uint8 \[N, H, W, 3\] or floating \[N, 3, H, W\]"):
            change(wrong)


@pytest.mark.parametrize(
    "change", [random_flip, lambda x: cutout(x, 2), gaussian_blur, lambda x: normalize(x, MEAN, STD)]
)
@pytest.mark.parametrize("wrong", [np.zeros((2, 6, 6, 3), np.uint8), None, [1]], ids=["array", "none", "list"])
def test_what_is_no_tensor_is_refused(change, wrong):
    with pytest.raises(UserError, match=r"x is of type \w+; allowed: a tensor, as torch\.from_numpy\(x\) makes of"):
        change(wrong)


def test_what_the_images_do_not_hold_is_refused():
    x = torch.zeros(2, 5, 7, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match="pad is 5; allowed: 0 to 4, inside the image"):
        random_crop(x, 5, pad=5)
    with pytest.raises(UserError, match="size is 14; allowed: 1 to 13, the image with its border"):
        random_crop(x, 14, pad=4)
    with pytest.raises(UserError, match="size is 6; allowed: 0 to 5, the image's side"):
        cutout(x, 6)
    with pytest.raises(UserError, match="x is uint8; allowed: floating images"):
        jitter(x, 0.1)
    for fill in (-1, 256):
        with pytest.raises(UserError, match=f"fill is {fill}; allowed: 0 to 255"):
            cutout(x, 2, fill=fill)
    with pytest.raises(UserError, match=r"generator is of type int; allowed: a torch.Generator, or None"):
        random_flip(x, 3)
    for dtype in (torch.int32, "float16"):
        with pytest.raises(UserError, match=r"dtype is .*; allowed: torch.float32, or another floating one"):
            normalize(x, MEAN, STD, dtype)
    for mean, std in (
        ((1, 2), STD),
        (MEAN, (1, 2, 0)),
        (MEAN, (1, 2, 3, 4)),
        (MEAN, (1, float("nan"), 1)),
        (np.array([1, np.inf, 1]), STD),
    ):
        with pytest.raises(
            UserError, match=r"(mean|std) is .*; allowed: three numbers( above 0)?, of red, green and bl"
        ):
            normalize(x, mean, std)


@pytest.mark.gpu
@pytest.mark.parametrize("form", [lambda x: x, floating], ids=["bytes", "floats"])
def test_images_stay_on_their_gpu_and_are_changed_as_on_the_host(form):
    x = form(torch.randint(256, (9, 6, 6, 3), dtype=torch.uint8))
    for change in CHANGES.values():
        out = change(x.cuda(), seeded(4))
        assert out.is_cuda and torch.allclose(out.cpu(), change(x, seeded(4)))
        assert change(x.cuda()).is_cuda  # by the GPU's own generator
    assert torch.allclose(normalize(x.cuda(), MEAN, STD).cpu(), normalize(x, MEAN, STD))


@pytest.mark.parametrize("number", [np.int64, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_are_pythons(number):
    x = torch.randint(256, (4, 12, 12, 3), dtype=torch.uint8)
    y = normalize(x, np.array(MEAN), torch.tensor(STD))
    assert torch.equal(y, normalize(x, MEAN, STD))
    for change, arguments in ((random_crop, (8, 2)), (cutout, (4,)), (jitter, (1, 0))):
        of = y if change is jitter else x
        one, other = (
            change(of, *given, generator=torch.Generator().manual_seed(0))
            for given in (arguments, map(number, arguments))
        )
        assert torch.equal(one, other)
    for call in (lambda: random_crop(x, 8.0), lambda: cutout(x, True), lambda: jitter(y, float("nan"))):
        with pytest.raises(UserError, match=r"allowed: a (whole|finite) number"):
            call()
