"""The built-in transforms in a plan, and transforms of pixels."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from fastcifar.data import Augment, EpochPlan
from fastcifar.recipes import TRANSFORMS, TransformConfig
from fastcifar.recipes.transforms.color import ColorJitterConfig, GrayscaleConfig, RandAugmentConfig
from fastcifar.recipes.transforms.gaussian_blur import GaussianBlurConfig
from fastcifar.recipes.transforms.random_erasing import RandomErasingConfig

EVERYTHING = Augment(crop=4, flip="random", cutout=8, brightness=0.1, contrast=0.2)


def draw(augment=EVERYTHING, **settings):
    return EpochPlan.draw(20, augment, 0, 0, **settings)


ACTIVE = [
    ColorJitterConfig(0.4, 0.4, 0.4, 0.1),
    GrayscaleConfig(0.5),
    RandAugmentConfig(2),
    GaussianBlurConfig(0.5),
    RandomErasingConfig(0.5),
    RandomErasingConfig(0.5, fill="random"),
]


def test_every_built_in_transform_is_off_by_default_and_tried_here():
    ours = [kind for kind in TRANSFORMS.values() if kind.__module__.startswith("fastcifar.")]
    assert {type(each) for each in ACTIVE} == set(ours)
    assert not draw(transforms=[kind() for kind in ours]).transforms


@pytest.mark.parametrize("config", ACTIVE, ids=lambda config: config.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_built_in_transform_reads_no_value_keeps_the_form_and_is_the_same_by_a_tensor(config, dtype):
    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan, how = draw(transforms=[config]), {"mean": (120.5, 110, 99.25), "std": (60, 64, 70.5)}
    made = plan.batch(1, 8).augment(images, **how, dtype=dtype, size=20)
    counted = plan.batch(torch.tensor([1]), 8).augment(images, **how, dtype=dtype, size=20)
    assert torch.equal(made, counted) and made.isfinite().all()
    assert made.shape == (8, 3, 20, 20) and made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    bare = dataclasses.replace(plan, transforms=(), numbers=None).batch(1, 8)
    assert not torch.equal(made, bare.augment(images, **how, dtype=dtype, size=20))
    nowhere = plan.to("meta").batch(torch.zeros(1, dtype=torch.int64, device="meta"), 8)
    assert nowhere.augment(images.to("meta"), **how, dtype=dtype).shape == (8, 3, 32, 32)


def test_a_transform_of_pixels_gets_them_and_gives_them():
    given = []

    def turn(images, numbers, config):
        given.append(images)
        return 255 - images

    @dataclass(frozen=True)
    class Turn(TransformConfig):
        kind = "turn"
        of_pixels = True
        active = True
        function = staticmethod(turn)

    images = torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8)
    how = {"mean": (120.5, 110, 99.25), "std": (60, 64, 70.5), "dtype": torch.float64}
    made = draw(Augment(crop=0, flip="none"), shuffle=False, transforms=[Turn()]).batch(0, 20)
    made = made.augment(images, **how)
    torch.testing.assert_close(given[0], images.permute(0, 3, 1, 2).float(), rtol=0, atol=1e-4)
    expected = (255 - images.double() - torch.tensor(how["mean"])) / torch.tensor(how["std"])
    torch.testing.assert_close(made, expected.permute(0, 3, 1, 2), rtol=0, atol=1e-5)
