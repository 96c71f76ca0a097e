"""Layer norm in the networks, against its formula."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import fastcifar
from fastcifar.errors import UserError
from fastcifar.models.layernorm import LayerNorm
from fastcifar.recipes.networks.davidnet import DavidNetConfig, DavidNetInterpolationConfig
from fastcifar.recipes.networks.resnet18 import ResNet18InterpolationConfig
from tests.small import NARROW

ACTIVATIONS = {
    "none": lambda x: x,
    "celu": lambda x: F.celu(x, 0.3),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_gradients_and_layout(activation, layout):
    torch.manual_seed(0)
    norm = LayerNorm(6, activation=activation, alpha=0.3, pool=True).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 6, 8, 8, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    residual = torch.randn(3, 6, 4, 4, dtype=torch.float64)

    found = norm(x, residual)
    pooled = F.max_pool2d(x, 2)
    mean, var = pooled.mean((1, 2, 3), keepdim=True), pooled.var((1, 2, 3), keepdim=True, unbiased=False)
    wanted = (pooled - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    wanted = ACTIVATIONS[activation](wanted) + residual
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    into, weights = [x, norm.weight, norm.bias], torch.randn_like(wanted)
    for mine, other in zip(*(torch.autograd.grad((out * weights).sum(), into) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    assert norm.eval()(x).is_contiguous(memory_format=torch.channels_last)


def test_it_is_torchs_group_norm_of_one_group_and_layer_norm_of_features():
    x, features = torch.randn(2, 4, 5, 5), torch.randn(3, 4)
    norm = LayerNorm(4)
    assert isinstance(norm, torch.nn.GroupNorm)
    torch.testing.assert_close(norm(x), F.group_norm(x, 1))
    torch.testing.assert_close(norm(features), F.layer_norm(features, (4,)))
    half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x), atol=0.03, rtol=0.03)


def test_the_networks_have_it_in_place_of_each_batch_norm():
    for batch, layer in (
        (fastcifar.DavidNet(NARROW), fastcifar.DavidNet(dataclasses.replace(NARROW, norm_kind="layer"))),
        *[tuple(fastcifar.ResNet18(fastcifar.ResNet18Config(width=3, norm=kind)) for kind in ("batch", "layer"))],
    ):
        norms = {name for name, each in batch.named_modules() if isinstance(each, fastcifar.GhostBatchNorm)}
        assert norms == {name for name, each in layer.named_modules() if isinstance(each, LayerNorm)}
        assert not any(isinstance(each, fastcifar.GhostBatchNorm) for each in layer.modules())
        of_batch, of_layer = (
            {(name, tuple(each.shape), each.requires_grad) for name, each in network.named_parameters()}
            for network in (batch, layer)
        )
        assert of_batch == of_layer
        x = torch.randn(4, 3, 32, 32)
        torch.testing.assert_close(layer(x), layer.eval()(x))  # and images do not see each other
        torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=1e-4, atol=1e-5)


def test_the_perceptron_has_it_before_relu():
    model = fastcifar.MLP(fastcifar.MLPConfig(hidden=(7, 5), norm="layer"))
    x = torch.randn(4, 3, 32, 32)
    out = x.permute(0, 2, 3, 1).flatten(1)
    for layer in model.hidden:
        out = F.layer_norm(layer(out), (layer.out_features,)).relu()
    torch.testing.assert_close(model(x), model.classifier(out))
    assert "norms.0.weight" not in fastcifar.MLP(fastcifar.MLPConfig(hidden=(7, 5))).state_dict()


def test_what_it_goes_with():
    assert DavidNetConfig(norm_kind="layer").batch_multiple == 1
    for config, name in ((DavidNetInterpolationConfig, "norm_kind"), (ResNet18InterpolationConfig, "norm")):
        with pytest.raises(UserError, match=f"network.{name} is 'layer'; allowed: batch norm in an interpolation"):
            config(**{name: "layer"})
    with pytest.raises(UserError, match="norm is 'group'; allowed: True, False, batch, layer"):
        fastcifar.ConvBN(3, 4, norm="group")
