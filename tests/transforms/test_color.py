"""Changes of colors against PIL's, and against HSV of Python's own, which reckon image by image and in bytes."""

import colorsys

import numpy as np
import pytest
import torch

from fastcifar.recipes.transforms.color import ColorJitterConfig, GrayscaleConfig, RandAugmentConfig
from fastcifar.transforms.color import color_jitter_pixels, grayscale_pixels, rand_augment_pixels, turn_hues

Image = pytest.importorskip("PIL.Image")
ImageEnhance, ImageOps = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.ImageOps")


def images():
    """Noise, a ramp, few values, two colors, one color, black."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (3, 3, 16, 16), generator=generator)
    ramp = (torch.arange(256).view(1, 1, 16, 16) * torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1) + 20).clamp(max=255)
    few = noise[:1] // 32 * 32
    two = (noise[:1] > 127) * 200
    plain = torch.tensor([9, 200, 77]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    return torch.cat([noise, ramp.floor(), few, two, plain, torch.zeros(1, 3, 16, 16)]).float()


def pils(image, change):
    """What PIL makes of one image `[3, H, W]`."""
    as_bytes = image.permute(1, 2, 0).numpy().astype(np.uint8)
    return torch.from_numpy(np.array(change(Image.fromarray(as_bytes)))).permute(2, 0, 1).float()


def enhanced(name, factor):
    return lambda image: getattr(ImageEnhance, name)(image).enhance(factor)


def operations(strength, sign):
    """RandAugment's operations on colors, in our order, with the greatest distance allowed: PIL cuts decimals off."""
    factor = 1 + sign * 0.9 * strength
    return {
        "nothing": (lambda image: image, 0),
        "autocontrast": (ImageOps.autocontrast, 1),
        "equalize": (ImageOps.equalize, 0),
        "posterize": (lambda image: ImageOps.posterize(image, 8 - round(4 * strength)), 0),
        "solarize": (lambda image: ImageOps.solarize(image, 255 * (1 - strength)), 0),
        **{name: (enhanced(name, factor), 1.01) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
    }


@pytest.mark.parametrize("magnitude", [0, 9, 15, 30])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("number", range(9))
def test_an_operation_of_rand_augment_is_pils(magnitude, sign, number):
    x = images()
    name, (change, most) = list(operations(magnitude / 30, sign).items())[number]
    numbers = torch.tensor([(number + 0.5) / 9, 0.5 + sign / 4] + [0.0] * 6).expand(len(x), 8)
    found = rand_augment_pixels(x, numbers, RandAugmentConfig(1, magnitude))
    for one, image in zip(found, x, strict=True):
        assert (one - pils(image, change)).abs().max() <= most, name


def test_each_image_has_its_own_operations_one_after_the_other():
    x, generator = images(), torch.Generator().manual_seed(1)
    numbers = torch.rand(len(x), 8, generator=generator)
    config = RandAugmentConfig(3, 12)
    whole = rand_augment_pixels(x, numbers, config)
    for place, image in enumerate(x):
        once = RandAugmentConfig(1, 12)
        for step in range(3):
            image = rand_augment_pixels(image[None], numbers[place, 2 * step :][None], once)[0]
        torch.testing.assert_close(whole[place], image)
    chosen = (torch.rand(9000, 8, generator=generator)[:, 0] * 9).long().bincount(minlength=9)
    assert chosen.numel() == 9 and chosen.min() > 850


def test_pixels_out_of_range_are_taken_as_the_nearest_in_it():
    x = images() * 2 - 100
    numbers = torch.rand(len(x), 8, generator=torch.Generator().manual_seed(2))
    same = rand_augment_pixels(x.clamp(0, 255), numbers, RandAugmentConfig(4, 9))
    assert torch.equal(rand_augment_pixels(x, numbers, RandAugmentConfig(4, 9)), same)
    rand_augment_pixels(torch.full_like(x, torch.nan), numbers, RandAugmentConfig(4, 9))  # NaN is no place in a table


FACTORS = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}


@pytest.mark.parametrize("field", FACTORS)
@pytest.mark.parametrize(("spread", "number", "factor"), [(0.4, 0.0, 0.6), (0.4, 0.75, 1.2), (3.0, 0.5, 2.0)])
def test_brightness_contrast_and_saturation_are_pils_with_torchvisions_factors(field, spread, number, factor):
    x, place = images(), list(FACTORS).index(field)
    numbers = torch.zeros(len(x), 4)
    numbers[:, place] = number
    found = color_jitter_pixels(x, numbers, ColorJitterConfig(**{field: spread}))
    for one, image in zip(found, x, strict=True):
        assert (one - pils(image, enhanced(FACTORS[field], factor))).abs().max() <= 1 + factor / 2
    gray = (x.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(1, keepdim=True)
    other = {"brightness": 0 * gray, "contrast": gray.mean((2, 3), keepdim=True), "saturation": gray}[field]
    torch.testing.assert_close(found, (other + factor * (x - other)).clamp(0, 255).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.3])
def test_hues_are_turned_as_in_pythons_hsv(turn):
    x = images()[:, :, :4, :4]
    found = turn_hues(x, torch.full((len(x), 1, 1, 1), turn))
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3) / 255
    for one, pixel in zip(found.permute(0, 2, 3, 1).reshape(-1, 3), pixels, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel.tolist())
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        torch.testing.assert_close(one / 255, torch.tensor(expected), rtol=0, atol=1e-5)


def test_all_four_changes_follow_one_another_with_numbers_of_their_own():
    x = images()
    numbers = torch.rand(len(x), 4, generator=torch.Generator().manual_seed(3))
    amounts = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.1}
    found, expected = color_jitter_pixels(x, numbers, ColorJitterConfig(**amounts)), x
    for name, amount in amounts.items():
        expected = color_jitter_pixels(expected, numbers, ColorJitterConfig(**{name: amount}))
    assert torch.equal(found, expected) and found.min() >= 0 and found.max() <= 255.001


def test_the_chosen_images_lose_their_color_as_pils_do():
    x = images()
    found = grayscale_pixels(x, torch.arange(len(x))[:, None] / len(x), GrayscaleConfig(0.5))
    for place, (one, image) in enumerate(zip(found, x, strict=True)):
        gray = pils(image, lambda each: each.convert("L").convert("RGB"))
        assert (one - gray).abs().max() <= 0.51 if place < len(x) / 2 else torch.equal(one, image)


def test_the_operations_of_rand_augment_take_little_more_memory_than_one_alone():
    """The greatest sum of what is allocated at once, in bytes of the batch; each image is read and written anyway."""
    images = torch.randint(256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    numbers = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        rand_augment_pixels(images, numbers, RandAugmentConfig(1, 9.0))
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert most < 8.5 * images.nbytes
