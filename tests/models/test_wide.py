"""Wide networks: their weights and operations by independent arithmetic."""

import dataclasses

import pytest
import torch

from fastcifar.costs.flops import count_recipe
from fastcifar.models import build_model
from fastcifar.models.network import CENTERED
from fastcifar.models.resnet import ResNet18
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.recipes.networks.resnet18 import ResNet18Config

STAGES = [(64, 32), (128, 16), (256, 8), (512, 4)]
"""ResNet-18's four layers: channels, and the side of what they give."""


def basic_blocks(k, stem):
    """`(kernel area, inputs, outputs, side)` of each convolution in the four layers, at k times the width."""
    before = stem
    for outputs, side in STAGES:
        outputs = round(k * outputs)
        yield from [(9, before, outputs, side), *[(9, outputs, outputs, side)] * 3]
        if before != outputs:
            yield 1, before, outputs, side
        before = outputs


def resnet18_weights(k, area, classes, stem=None):
    """`area`: of the stem's kernel; `stem`: its channels, 64 k unless given."""
    stem = stem or round(64 * k)
    convolutions = sum(area * inputs * outputs for area, inputs, outputs, _ in basic_blocks(k, stem))
    norms = 2 * (stem + sum(outputs for _, _, outputs, _ in basic_blocks(k, stem)))
    return area * 3 * stem + convolutions + norms + round(512 * k) * classes + classes


def parameters(recipe):
    with torch.device("meta"):
        network = build_model(recipe, 10, CENTERED, CENTERED)
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_arithmetic_is_that_of_the_papers():
    """Zagoruyko and Komodakis (2016): millions of weights of WRN-18-k for ImageNet, whose stem stays narrow."""
    for k, millions in ((1, 11.7), (1.5, 25.9), (2, 45.6), (3, 101.8)):
        assert round(resnet18_weights(k, 49, 1000, stem=64) / 1e6, 1) == millions
    assert resnet18_weights(1, 9, 10) == 11_173_962
    with torch.device("meta"):
        model = ResNet18(ResNet18Config(width=128, stem="imagenet"), classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == resnet18_weights(2, 49, 1000)


def test_wide_resnet18_has_all_layers_doubled():
    wide, narrow = get_recipe("wide-resnet18-2"), get_recipe("warmstart-resnet18")
    assert parameters(wide) == resnet18_weights(2, 9, 10) == 44_662_922
    assert wide.network == dataclasses.replace(narrow.network, width=128, stem="cifar")
    convolutions = 9 * 3 * 128 * 32**2
    convolutions += sum(area * inputs * outputs * side**2 for area, inputs, outputs, side in basic_blocks(2, 128))
    forward = convolutions + 1024 * 10
    step = count_recipe(wide).stages[0].step
    assert sum(layer.forward for layer in step.layers) == 256 * forward
    assert step.macs == 256 * (3 * forward - 9 * 3 * 128 * 32**2)  # no gradient at the images


def test_wide_davidnet_is_davidnet_at_twice_the_width():
    wide, narrow = get_recipe("wide-davidnet"), Recipe()
    widths = [2 * width for width in narrow.network.widths]
    assert list(wide.network.widths) == widths
    assert dataclasses.replace(wide, name="davidnet", network=narrow.network) == narrow
    stem, first, second, third = widths
    threes = [(stem, first, 32), *[(first, first, 16)] * 2, (first, second, 16), (second, third, 8)]
    threes += [(third, third, 4)] * 2
    filters = 27 * stem + 9 * sum(inputs * outputs for inputs, outputs, _ in threes) + 10 * third
    norms = 2 * (stem + sum(outputs for _, outputs, _ in threes))
    assert parameters(wide) == 27 * 27 + filters + norms
    forward = 27 * stem * 32**2 + 9 * sum(before * after * side**2 for before, after, side in threes) + 10 * third
    step = count_recipe(wide).stages[0].step
    assert sum(layer.forward for layer in step.layers) == 512 * forward + stem * 27 * 27  # the stem's filters, composed


@pytest.mark.parametrize("name", ["wide-resnet18-2", "wide-davidnet"])
def test_twice_the_width_is_about_four_networks(name):
    wide = get_recipe(name)
    half = {"width": 64} if name == "wide-resnet18-2" else {"widths": (64, 128, 256, 512)}
    narrow = dataclasses.replace(wide, network=dataclasses.replace(wide.network, **half))
    assert parameters(wide) / parameters(narrow) == pytest.approx(4, rel=0.002)
    assert count_recipe(wide).training_flop / count_recipe(narrow).training_flop == pytest.approx(4, rel=0.005)
