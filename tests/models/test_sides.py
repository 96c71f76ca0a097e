"""Every network on images of other sides than 32 pixels."""

import copy
import sys

import pytest
import torch
from torch.nn import functional as F

from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.models.whitening import patch_second_moment
from fastcifar.recipes import NETWORKS, Augment, Recipe
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.lenet import LeNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.networks.wideresnet import WideResNetConfig

NARROWED = {
    "davidnet": DavidNetConfig(widths=(2, 4, 4, 6), ghost_batch=2),
    "speedrun": SpeedrunConfig(widths=(2, 4, 4), ghost_batch=2, whitening_bias_epochs=1),
    "resnet18": ResNet18Config(width=2),
    "resnet18, imagenet": ResNet18Config(width=2, stem="imagenet"),
    "mlp": MLPConfig(hidden=(8,)),
    "lenet": LeNetConfig(channels=(2, 4), hidden=(8, 6)),
    "wideresnet": WideResNetConfig(depth=10, widen=1),
}
SIDES = [28, 32, 48, 64, 96, 224]


def built(name, side):
    recipe = Recipe(network=NARROWED[name], batch_size=4, augment=Augment(crop=0))
    torch.manual_seed(0)
    return build_model(recipe, 5, (120,) * 3, (60,) * 3, sides=(side,))


def results(model, images, labels):
    """Return the logits, the gradients and the statistics of a training step, and the logits of an evaluation."""
    logits = model.train()(images)
    F.cross_entropy(logits, labels).backward()
    found = {"logits": logits.detach(), "evaluated": None, **dict(model.named_buffers())}
    found |= {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        found["evaluated"] = model.eval()(images)
    return found


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NARROWED)
def test_a_steps_gradients_are_those_of_plain_torch_in_float64(name, side, monkeypatch):
    model = built(name, side)
    model.fit_whitening(torch.randint(256, (4, side, side, 3), dtype=torch.uint8))
    exact, plain = (copy.deepcopy(model).double() for _ in range(2))
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(2)
    mine, mine_exact = results(model, images, labels), results(exact, images.double(), labels)
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    for module in ("models.convolution", "kernels.norm_act_pool", "kernels.whiten"):
        monkeypatch.setattr(sys.modules[f"fastcifar.{module}"], "needs_plain_torch", lambda: True)
    for key, expected in results(plain, images.double(), labels).items():
        torch.testing.assert_close(mine_exact[key], expected, rtol=1e-5, atol=1e-7)  # of CELU
        # A sum of gradients that nearly cancel, of pixels next to a ReLU's bend, is as exact as float32 has it.
        tolerance = 1e-4 if key in ("logits", "evaluated") else 2e-2
        assert (mine[key] - expected).norm() <= tolerance * expected.norm() + 1e-5, key


@pytest.mark.parametrize("kind", ["davidnet", "speedrun"])
def test_its_least_side_leaves_one_pixel(kind):
    least = NARROWED[kind].least_side
    assert least == {"davidnet": 8, "speedrun": 9}[kind]
    images = torch.randn(4, 3, least, least)
    assert built(kind, least)(images).shape == (4, 5)
    with pytest.raises((ValueError, RuntimeError)):
        built(kind, least)(images[:, :, 1:, 1:])
    message = f"network is {kind}, and images have {least - 1} pixels a side; allowed: {least} or more for {kind}"
    with pytest.raises(UserError, match=f"^{message}$"):
        built(kind, least - 1)


def test_recipes_say_which_sides_they_take():
    for kind, config in NETWORKS.items():
        recipe = Recipe(network=config(), augment=Augment(crop=0))
        for side in (*SIDES, 4096):
            recipe.refuse_side(config().side_for(side))
        assert config().one_side == (kind in ("mlp", "lenet"))
    recipe = Recipe(augment=Augment(crop=28, cutout=20, early_crops=((24, 0.5), (30, 0.6))))
    recipe.refuse_side(32)
    refused = {
        29: "augment.early_crops is [[24, 0.5], [30, 0.6]]; allowed: sides up to 29, that of the images",
        28: "augment.crop is 28; allowed: 0 to 27, below the side of the images, 28 pixels",
    }
    for side, message in refused.items():
        with pytest.raises(UserError) as error:
            recipe.refuse_side(side)
        assert str(error.value) == message
    with pytest.raises(UserError, match=r"augment.cutout is 20; allowed: 0 to 16, the side of the images in pixels"):
        Recipe(augment=Augment(cutout=20)).refuse_side(16)
    with pytest.raises(UserError, match=r"network is davidnet, and images have 6 pixels a side; allowed: 8 or more"):
        Recipe(augment=Augment(early_crops=((6, 0.5),))).refuse_side(32)


@pytest.mark.parametrize(("side", "size"), [(33, 2), (35, 3), (66, 3), (97, 1), (70, 5)])
def test_patches_of_wide_images_are_summed_as_of_others(side, size):
    images = torch.randint(256, (7, 9, side, 3), dtype=torch.uint8)
    mean, std = (125, 123, 114), (63, 62, 67)
    values = ((images.double() - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    patches = F.unfold(values, size).transpose(1, 2).flatten(0, 1)
    expected = patches.T @ patches / (len(patches) - 1)
    torch.testing.assert_close(patch_second_moment(images, mean, std, size), expected, rtol=1e-5, atol=1e-5)
