"""ResNet-18: torchvision's names and numbers, and the plain formula in torch's own operations."""

import pytest
import torch
from torch.nn import functional as F

from fastcifar.models.resnet import ResNet18
from fastcifar.recipes.networks.resnet18 import ResNet18Config


def block(name, downsample=False):
    names = [f"{name}.{part}" for part in ("conv1.weight", "bn1.weight", "bn1.bias")]
    names += [f"{name}.{part}" for part in ("conv2.weight", "bn2.weight", "bn2.bias")]
    return names + [f"{name}.downsample.{part}" for part in ("0.weight", "1.weight", "1.bias")] * downsample


TORCHVISION_NAMES = [
    *("conv1.weight", "bn1.weight", "bn1.bias"),
    *(*block("layer1.0"), *block("layer1.1")),
    *(*block("layer2.0", downsample=True), *block("layer2.1")),
    *(*block("layer3.0", downsample=True), *block("layer3.1")),
    *(*block("layer4.0", downsample=True), *block("layer4.1")),
    *("fc.weight", "fc.bias"),
]
"""Parameters of torchvision.models.resnet18 in their order."""


def plain(state, x, stem):
    """Compute the network in training mode from its state by name, without any layer of ours."""

    def norm(name, x):
        return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)

    def basic_block(name, x, stride):
        out = F.relu(norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)))
        out = norm(f"{name}.bn2", F.conv2d(out, state[f"{name}.conv2.weight"], padding=1))
        if f"{name}.downsample.0.weight" in state:
            x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
        return F.relu(out + x)

    if stem == "imagenet":
        x = F.relu(norm("bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=3)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    else:
        x = F.relu(norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    for layer in (1, 2, 3, 4):
        x = basic_block(f"layer{layer}.0", x, stride=1 if layer == 1 else 2)
        x = basic_block(f"layer{layer}.1", x, stride=1)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    ("width", "stem", "count"),
    [(64, "imagenet", 11_181_642), (64, "cifar", 11_173_962), (16, "cifar", 701_466)],
)
def test_it_has_the_sources_number_of_parameters(width, stem, count):
    with torch.device("meta"):
        model = ResNet18(ResNet18Config(width=width, stem=stem), classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_parameters_go_by_torchvisions_names_in_its_order(stem):
    model = ResNet18(ResNet18Config(width=2, stem=stem))
    assert [name for name, _ in model.named_parameters()] == TORCHVISION_NAMES
    norms = [name.removesuffix("bias") for name in TORCHVISION_NAMES if name.endswith("bias") and name != "fc.bias"]
    buffers = [f"{name}{kind}" for name in norms for kind in ("running_mean", "running_var")]
    assert [name for name, _ in model.named_buffers()] == buffers
    assert model.layer1[0].conv1.weight.shape == (2, 2, 3, 3)
    assert model.fc.weight.shape == (10, 16)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_output_and_gradients_are_those_of_the_plain_formula(stem):
    torch.manual_seed(0)
    model = ResNet18(ResNet18Config(width=4, stem=stem)).double().train()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    state = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    expected = plain(state, x, stem)
    out = model(x)
    torch.testing.assert_close(out, expected)
    expected.square().sum().backward()
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, msg=name)


def test_initial_values_are_torchvisions():
    torch.manual_seed(0)
    model = ResNet18(ResNet18Config(width=16))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            spread = (2 / (parameter.shape[0] * parameter.shape[2] * parameter.shape[3])) ** 0.5
            assert parameter.std().item() == pytest.approx(spread, rel=0.15), name
        elif not name.startswith("fc"):
            assert (parameter == float(name.endswith("weight"))).all(), name
    assert model.fc.weight.abs().max() <= 128**-0.5


def test_any_width_and_any_image_size_from_eight_pixels_evaluate():
    model = ResNet18(ResNet18Config(width=3), classes=7).eval()
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)
