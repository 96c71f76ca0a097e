"""The convolution of small images as a matrix product."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.models.convolution import Conv3x3, gather_patches


@settings(deadline=None, max_examples=25)
@given(images=st.integers(1, 5), before=st.integers(1, 6), width=st.integers(1, 6), side=st.integers(1, 6))
def test_it_is_torchs_convolution_with_its_gradients(images, before, width, side):
    torch.manual_seed(images)
    conv = Conv3x3(before, width).double()
    x = torch.randn(images, before, side, side, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(images, width, side, side, dtype=torch.float64)
    results = []
    for out in (conv(x), F.conv2d(x, conv.weight, padding=1)):
        results.append((out.detach(), *torch.autograd.grad(out, (x, conv.weight), upstream)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


def test_gradcheck():
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    conv = Conv3x3(3, 4).double()
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(conv, {"weight": weight}, x), (x, conv.weight)
    )


def test_patches_are_the_neighbourhoods_in_channels_last_order():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    expected = F.unfold(x, 3, padding=1).view(2, 3, 3, 3, 16).permute(0, 4, 2, 3, 1).reshape(32, 27)
    assert torch.equal(gather_patches(x), expected)


@pytest.mark.parametrize("side", [4, 8])
def test_outputs_and_gradients_are_channels_last(side):
    x = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = Conv3x3(3, 4).to(memory_format=torch.channels_last)
    out = conv(x)
    out.square().sum().backward()
    for tensor in (out, conv.weight.grad, x.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
