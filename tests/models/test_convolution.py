"""The convolution of small images in strips."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.models.convolution import Conv3x3, StripConvolution, side_by_side


@settings(deadline=None, max_examples=25)
@given(
    images=st.integers(1, 40),
    before=st.integers(1, 6),
    width=st.integers(1, 6),
    height=st.integers(1, 9),
    across=st.integers(1, 9),
)
def test_strips_give_torchs_convolution_with_its_gradients(images, before, width, height, across):
    torch.manual_seed(images)
    weight = torch.randn(width, before, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(images, before, height, across, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(images, width, height, across, dtype=torch.float64)
    results = []
    for out in (StripConvolution.apply(x, weight), F.conv2d(x, weight, padding=1)):
        results.append((out.detach(), *torch.autograd.grad(out, (x, weight), upstream)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [3, 7, 11])
def test_the_layer_is_torchs_convolution_at_any_size(side, dtype):
    torch.manual_seed(side)
    conv = Conv3x3(16, 16).to(dtype)
    x = torch.randn(5, 16, side, side).to(dtype)
    expected = F.conv2d(x.double(), conv.weight.double(), padding=1)
    error = (conv(x).double() - expected).norm() / expected.norm()
    assert error < (1e-6 if dtype == torch.float32 else 5e-3)


def test_gradcheck():
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(StripConvolution.apply, (x, weight))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_a_gradient_that_is_not_asked_for_is_not_given(frozen):
    x = torch.randn(2, 3, 4, 4, requires_grad=frozen != "input")
    conv = Conv3x3(3, 4).requires_grad_(frozen != "weight")
    conv(x).sum().backward()
    assert (x.grad is None, conv.weight.grad is None) == (frozen == "input", frozen == "weight")


def test_strips_are_images_with_a_column_of_zeros_after_each():
    x = torch.randn(9, 2, 3, 7).contiguous(memory_format=torch.channels_last)
    strips = side_by_side(x)
    assert strips.shape == (2, 2, 3, 64)
    assert strips.is_contiguous(memory_format=torch.channels_last)
    for image in range(9):
        start = image % 8 * 8
        assert torch.equal(strips[image // 8, :, :, start : start + 7], x[image])
    assert not strips[:, :, :, 7::8].any()
    assert not strips[1, :, :, 8:].any()


@pytest.mark.parametrize("side", [4, 8, 9])
def test_outputs_and_gradients_are_channels_last(side):
    x = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = Conv3x3(3, 4).to(memory_format=torch.channels_last)
    out = conv(x)
    out.square().sum().backward()
    for tensor in (out, conv.weight.grad, x.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
