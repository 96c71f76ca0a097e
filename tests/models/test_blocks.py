"""The blocks for anybody's own network: DavidNet built of them, and each against torch's own layers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.errors import UserError
from fastcifar.models import ConvBN, ConvResBlock, GlobalMaxPool, Head, PatchWhitening
from fastcifar.models.davidnet import DavidNet
from tests.small import NARROW

NAMES = {
    "whitening.": "0.",
    "stem.": "1.",
    "layers.0.": "2.",
    "layers.1.block.": "3.",
    "layers.2.": "4.",
    "classifier.": "6.",
}


def built_of_blocks(ghost_batch, classes=10):
    return nn.Sequential(
        PatchWhitening(),
        ConvBN(27, 4, kernel_size=1, ghost_batch=ghost_batch),
        ConvResBlock(4, 8, ghost_batch=ghost_batch),
        ConvBN(8, 12, pool=True, ghost_batch=ghost_batch),
        ConvResBlock(12, 16, ghost_batch=ghost_batch),
        GlobalMaxPool(),
        Head(16, classes, scale=1 / 16),
    ).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("ghost_batch", [4, 0])
def test_davidnet_is_built_of_the_public_blocks(ghost_batch):
    torch.manual_seed(0)
    davidnet = DavidNet(dataclasses.replace(NARROW, ghost_batch=ghost_batch))
    torch.manual_seed(0)
    model = built_of_blocks(ghost_batch)
    for name, value in davidnet.state_dict().items():  # the initial values too
        old = next(old for old in NAMES if name.startswith(old))
        assert torch.equal(model.state_dict()[NAMES[old] + name.removeprefix(old)], value)
    davidnet.fit_whitening(torch.randint(256, (20, 32, 32, 3), dtype=torch.uint8))
    model[0].load_state_dict(davidnet.whitening.state_dict())
    x = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    outs = [network(x) for network in (davidnet, model)]
    for out in outs:
        out.square().sum().backward()
    assert torch.equal(*outs)
    assert torch.equal(davidnet.stem.conv.weight.grad, model[1].conv.weight.grad)
    assert torch.equal(davidnet.eval()(x[:5]), model.eval()(x[:5]))  # of the statistics that both have kept


def test_the_state_of_a_davidnet_has_the_names_that_saved_runs_have():
    names = list(DavidNet(dataclasses.replace(NARROW, residual=(1,))).state_dict())
    norm = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    blocks = [
        "stem",
        "layers.0.block",
        "layers.0.residual.0",
        "layers.0.residual.1",
        "layers.1.block",
        "layers.2.block",
    ]
    expected = [f"{block}.{part}" for block in blocks for part in ("conv.weight", *norm)]
    assert names == ["whitening.weight", *expected, "classifier.weight"]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("pooling", ["max", "avg"])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_a_block_is_convolution_pool_norm_and_activation(pool, pooling, kernel_size, norm):
    torch.manual_seed(1)
    block = ConvBN(3, 5, pool, kernel_size=kernel_size, pooling=pooling, norm=norm, activation="relu")
    block.norm.bias.data.normal_()
    x = torch.randn(6, 3, 8, 8)
    expected = F.conv2d(x, block.conv.weight, padding=kernel_size // 2)
    if pool:
        expected = F.max_pool2d(expected, 2) if pooling == "max" else F.avg_pool2d(expected, 2)
    if norm:
        expected = F.batch_norm(expected, None, None, None, block.norm.bias, training=True)
    else:
        expected = expected + block.norm.bias[:, None, None]
    torch.testing.assert_close(block(x), F.relu(expected), rtol=1e-4, atol=1e-5)
    residual = torch.randn_like(expected)
    torch.testing.assert_close(block(x, residual=residual), F.relu(expected) + residual, rtol=1e-4, atol=1e-5)


def test_a_residual_block_adds_two_convolutions_to_the_pooled_one():
    torch.manual_seed(1)
    block, x = ConvResBlock(3, 5, activation="silu", freeze_scale=False), torch.randn(6, 3, 8, 8)
    pooled = block.block(x)
    expected = pooled + block.residual[1](block.residual[0](pooled))
    torch.testing.assert_close(block(x), expected)
    assert all(parameter.requires_grad for parameter in block.parameters())
    alone = ConvResBlock(3, 5, residual=False)
    assert torch.equal(alone(x), alone.block(x)) and alone.residual is None


def test_the_head_scales_and_the_pool_takes_the_largest():
    head, x = Head(5, 3, scale=0.25), torch.randn(4, 5, 3, 2)
    pooled = GlobalMaxPool()(x)
    assert torch.equal(pooled, x.amax((2, 3)))
    torch.testing.assert_close(head(pooled), pooled @ head.weight.T / 4)
    assert head.bias is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel_size": 5}, "kernel_size is 5; allowed: 1, 3"),
        ({"pooling": "mean"}, "pooling is 'mean'; allowed: max, avg"),
        ({"activation": "tanh"}, "activation is 'tanh'; allowed: celu, relu, gelu, silu, none"),
    ],
)
def test_what_a_block_does_not_have_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        ConvBN(3, 5, **wrong)
