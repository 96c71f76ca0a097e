"""The convolution of small images in strips."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastcifar.kernels.conv_weight_gradient import has_kernel
from fastcifar.models.convolution import Conv3x3, side_by_side, strip_convolution


@settings(max_examples=25)
@given(
    images=st.integers(1, 40),
    before=st.integers(1, 6),
    width=st.integers(1, 6),
    height=st.integers(1, 9),
    across=st.integers(1, 9),
    bordered=st.booleans(),
)
def test_strips_give_torchs_convolution_with_its_gradients(images, before, width, height, across, bordered):
    torch.manual_seed(images)
    padding = 0 if bordered else 1
    height, across = height + 2 * bordered, across + 2 * bordered
    weight = torch.randn(width, before, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(images, before, height, across, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(images, width, height + 2 * padding - 2, across + 2 * padding - 2, dtype=torch.float64)
    results = []
    for out in (strip_convolution(x, weight, bordered), F.conv2d(x, weight, padding=padding)):
        results.append((out.detach(), *torch.autograd.grad(out, (x, weight), upstream)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [3, 7, 8, 11])
def test_the_layer_is_torchs_convolution_at_any_size(side, dtype):
    torch.manual_seed(side)
    conv, halving = Conv3x3(16, 16).to(dtype), Conv3x3(16, 16, stride=2).to(dtype)
    halving.weight = conv.weight
    x = torch.randn(5, 16, side, side).to(dtype)
    expected = F.conv2d(x.double(), conv.weight.double(), padding=1)
    bordered = conv(F.pad(x, (1, 0, 1, 0)), bordered=True)
    others = ((bordered, expected[:, :, :-1, :-1]), (halving(x), expected[:, :, ::2, ::2]))
    for out, exact in ((conv(x), expected), *others):
        error = (out.double() - exact).norm() / exact.norm()
        assert out.shape == exact.shape and error < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("bordered", [False, True])
def test_first_and_second_derivatives_are_difference_quotients(bordered):
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(strip_convolution, (x, weight, bordered))
    assert torch.autograd.gradgradcheck(strip_convolution, (x, weight, bordered))


@pytest.mark.parametrize("bordered", [False, True])
@pytest.mark.parametrize("batched", [torch.func.vmap, None], ids=["vmap", "is_grads_batched"])
def test_gradients_come_in_batches(batched, bordered):
    x, conv = torch.randn(3, 2, 4, 4, requires_grad=True), Conv3x3(2, 3)
    out = conv(x, bordered)
    upstream = torch.randn(4, *out.shape)
    tensors = (x, conv.weight)
    expected = [torch.autograd.grad(out, tensors, each, retain_graph=True) for each in upstream]
    if batched is None:
        found = torch.autograd.grad(out, tensors, upstream, is_grads_batched=True)
    else:
        found = batched(lambda each: torch.autograd.grad(out, tensors, each, retain_graph=True))(upstream)
    for mine, each in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(each))


@pytest.mark.parametrize("side", [3, 9])
def test_the_layer_under_autocast_is_torchs(side):
    results = []
    for conv in (Conv3x3(4, 4), nn.Conv2d(4, 4, 3, padding=1, bias=False)):
        torch.manual_seed(0)
        nn.init.normal_(conv.weight)
        x = torch.randn(5, 4, side, side, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(x)
        out.square().sum().backward()
        assert out.dtype == torch.bfloat16 and x.grad.dtype == conv.weight.grad.dtype == torch.float32
        results.append((out, x.grad, conv.weight.grad))
    for mine, expected in zip(*results, strict=True):
        assert (mine - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bfloat16_tensors_under_autocast_to_any_dtype_get_torchs_gradients(dtype):
    torch.manual_seed(0)
    x, conv = torch.randn(3, 24, 5, 5).bfloat16().requires_grad_(), Conv3x3(24, 64).bfloat16()
    with torch.autocast("cpu", dtype):
        out = conv(x)
    upstream = torch.randn_like(out)
    exact, tensors = exact_of(x, conv.weight, False)
    found = torch.autograd.grad(out, (x, conv.weight), upstream)
    for mine, other in zip(found, torch.autograd.grad(exact, tensors, upstream.double()), strict=True):
        assert (mine.double() - other).norm() < 4e-3 * other.norm()


def test_no_images_give_no_images():
    x = torch.randn(0, 3, 4, 4, requires_grad=True)
    conv = Conv3x3(3, 5)
    conv(x).sum().backward()
    assert conv(x).shape == (0, 5, 4, 4) and x.grad.shape == x.shape and not conv.weight.grad.any()


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_a_gradient_that_is_not_asked_for_is_not_given(frozen):
    x = torch.randn(2, 3, 4, 4, requires_grad=frozen != "input")
    conv = Conv3x3(3, 4).requires_grad_(frozen != "weight")
    conv(x).sum().backward()
    assert (x.grad is None, conv.weight.grad is None) == (frozen == "input", frozen == "weight")


def test_strips_are_images_with_a_column_of_zeros_after_each():
    x = torch.randn(9, 2, 3, 7).contiguous(memory_format=torch.channels_last)
    strips = side_by_side(x, 0, 1)
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


@pytest.mark.parametrize("side", [3, 7, 8, 31])
def test_a_bordered_image_lacks_the_last_row_and_column_of_the_result(side):
    """Which no 2x2 pool of odd sides reads."""
    x, conv = torch.randn(9, 3, side, side, dtype=torch.float64), Conv3x3(3, 4).double()
    bordered = F.pad(x, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv(bordered, bordered=True), conv(x)[:, :, :-1, :-1])


@pytest.fixture
def kernel():
    """Skip the test where there is no kernel for the filters' gradient."""
    if not has_kernel(torch.zeros(1, dtype=torch.bfloat16), 64):
        pytest.skip("the kernel needs AVX512-BF16, no AMX, and a compiler")


def bordered_images(images, channels, side, bordered):
    """Return bfloat16 images that want a gradient, with a border of zeros where they are `bordered`."""
    x = F.pad(torch.randn(images, channels, side, side), (1, 0, 1, 0) if bordered else ())
    return x.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()


def exact_of(x, weight, bordered, stride=1):
    """Return the convolution in float64, with tensors to differentiate it by."""
    x, weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    return F.conv2d(x, weight, stride=stride, padding=0 if bordered else 1), (x, weight)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("bordered", "stride"), [(False, 1), (True, 1), (False, 2)])
@pytest.mark.parametrize("side", [3, 7, 8, 15])
def test_the_kernels_gradients_are_torchs(side, bordered, stride):
    torch.manual_seed(side)
    x, conv = bordered_images(9, 24, side, bordered), Conv3x3(24, 64, stride).bfloat16()
    conv.to(memory_format=torch.channels_last)
    out, (exact, tensors) = conv(x, bordered), exact_of(x, conv.weight, bordered, stride)
    assert type(out.grad_fn).__name__ == "conv3x3_with_gradientBackward"
    upstream = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, (x, conv.weight), upstream))
    expected = (exact, *torch.autograd.grad(exact, tensors, upstream.double()))
    for mine, other in zip(found, expected, strict=True):
        assert mine.is_contiguous(memory_format=torch.channels_last)
        assert (mine.double() - other).norm() < 4e-3 * other.norm()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("bordered", [False, True])
def test_second_derivatives_beside_the_kernel_are_torchs(bordered):
    x, conv = bordered_images(4, 3, 5, bordered), Conv3x3(3, 64).bfloat16()
    results = []
    for out, tensors in ((conv(x, bordered), (x, conv.weight)), exact_of(x, conv.weight, bordered)):
        first = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors))
    for mine, expected in zip(*results, strict=True):
        assert (mine.double() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.usefixtures("kernel")
def test_gradients_beside_the_kernel_come_in_batches():
    x, conv = bordered_images(3, 2, 4, False), Conv3x3(2, 64).bfloat16()
    out = conv(x)
    upstream = torch.randn(4, *out.shape).bfloat16()
    expected = [torch.autograd.grad(out, (x, conv.weight), each, retain_graph=True) for each in upstream]
    found = torch.autograd.grad(out, (x, conv.weight), upstream, is_grads_batched=True)
    for mine, each in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(each), rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_of_a_kernel_too_a_gradient_that_is_not_asked_for_is_not_given(frozen):
    x, conv = bordered_images(3, 3, 4, False), Conv3x3(3, 64).bfloat16()
    (x if frozen == "input" else conv.weight).requires_grad_(False)
    conv(x).sum().backward()
    assert (x.grad is None, conv.weight.grad is None) == (frozen == "input", frozen == "weight")


@pytest.mark.usefixtures("kernel")
def test_a_compiled_layer_is_torchs():
    x, conv = bordered_images(3, 3, 9, False), Conv3x3(3, 64).bfloat16()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x))
    compiled(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is not None
