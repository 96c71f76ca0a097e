"""3x3 convolutions: Winograd's in C++ against torch in float64, and where torch's are taken."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import (
    conv3x3,
    conv3x3_reference,
    conv_input_gradient,
    conv_input_gradient_reference,
    conv_weight_gradient,
    winograd,
)
from fastcifar.kernels.cpp import call
from fastcifar.kernels.operators import PRODUCTS
from fastcifar.models.convolution import Conv3x3

CLOSE = 1e-5  # ‖error‖ / ‖exact‖; torch's convolution in float32 has 2e-7


@pytest.fixture
def kernel(monkeypatch):
    """Let the kernels take images of any number of pixels; skip the test where there are none."""
    monkeypatch.setattr(winograd, "_FEWEST", 0)
    if not winograd.has_kernel(torch.zeros(1, 16, 1, 1), 16):
        pytest.skip("the kernels need AVX2 and a compiler")


needs_kernel = pytest.mark.usefixtures("kernel")
any_shape = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensors(images, channels, outputs, height, width, padding, dtype=torch.float32):
    """Return x, filters and the result's gradient, whose sides are `height` and `width`."""
    x = torch.randn(images, channels, height + 2 - 2 * padding, width + 2 - 2 * padding, dtype=dtype)
    weight, gradient = torch.randn(outputs, channels, 3, 3), torch.randn(images, outputs, height, width)
    return [each.to(dtype).contiguous(memory_format=torch.channels_last) for each in (x, weight, gradient)]


def passes(of, padding):
    """Return the result, and the gradients of x and of the filters, of x, the filters and the result's gradient."""
    x, weight, gradient = of
    return (
        conv3x3(x, weight, padding=padding),
        conv_input_gradient(gradient, weight, padding=padding),
        conv_weight_gradient(x, gradient, padding=padding),
    )


def exact(of, padding):
    """Return what `passes` computes, in float64."""
    x, weight, gradient = of
    x, weight = (each.double().requires_grad_() for each in (x, weight))
    out = F.conv2d(x, weight, padding=padding)
    return out.detach(), *torch.autograd.grad(out, (x, weight), gradient.double())


def error(found, expected):
    """Return ‖found - expected‖ / ‖expected‖; NaN counts."""
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


@needs_kernel
@any_shape
@given(
    images=st.integers(1, 30),
    channels=st.integers(16, 80),
    outputs=st.integers(16, 80),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    padding=st.integers(0, 1),
)
def test_any_shape_is_torchs_to_rounding(images, channels, outputs, height, width, padding):
    torch.manual_seed(images)
    given_ = tensors(images, channels, outputs, height, width, padding)
    assert winograd.has_kernel(given_[0], outputs)
    for found, expected in zip(passes(given_, padding), exact(given_, padding), strict=True):
        assert found.shape == expected.shape and found.is_contiguous(memory_format=torch.channels_last)
        assert error(found, expected) < CLOSE


@needs_kernel
@pytest.mark.parametrize(
    ("side", "size", "bound"), [(3, 3, 2e-6), (4, 8, 2e-6), (5, 10, 4e-6), (6, 6, 1e-5)]
)  # what winograd.py says, with two passes of 256 channels
def test_each_side_of_tiles_is_taken_and_keeps_its_error(side, size, bound):
    torch.manual_seed(0)
    assert winograd.tile_side(size, size) == side
    given_ = tensors(8, 256, 256, size, size, 1)
    for found, expected in zip(passes(given_, 1), exact(given_, 1), strict=True):
        assert error(found, expected) < bound


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(32, 32, 4), (30, 30, 6), (28, 28, 6), (15, 15, 5), (14, 14, 5), (7, 7, 4), (1, 1, 3), (4, 16, 4), (6, 1, 3)],
)
def test_tiles_are_those_with_the_fewest_products(height, width, side):
    def products(of):
        return -(-height // of) * -(-width // of) * (of + 2) ** 2

    assert winograd.tile_side(height, width) == side
    assert products(side) == min(products(of) for of in (3, 4, 5, 6))


@needs_kernel
@pytest.mark.parametrize(
    ("images", "channels", "outputs", "size"), [(40, 24, 64, 13), (64, 256, 96, 3), (3, 17, 40, 6)]
)
def test_any_number_of_threads_gives_the_same_bits(images, channels, outputs, size):
    given_, threads, results = tensors(images, channels, outputs, size, size, 1), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 20):
            torch.set_num_threads(count)
            results.append(passes(given_, 1))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(result, results[0], strict=True))


@needs_kernel
def test_images_do_not_depend_on_those_beside_them():
    x, weight, gradient = tensors(9, 16, 24, 7, 7, 1)
    together = conv3x3(x, weight, padding=1), conv_input_gradient(gradient, weight, padding=1)
    alone = conv3x3(x[4:5], weight, padding=1), conv_input_gradient(gradient[4:5], weight, padding=1)
    assert all(torch.equal(mine[4:5], one) for mine, one in zip(together, alone, strict=True))


@needs_kernel
def test_memory_of_any_layout_is_read():
    given_ = tensors(4, 24, 40, 6, 6, 1)
    plain = passes([each.contiguous() for each in given_], 1)
    assert all(torch.equal(mine, other) for mine, other in zip(plain, passes(given_, 1), strict=True))


@needs_kernel
def test_what_is_not_a_number_reaches_what_torchs_does():
    x, weight, gradient = tensors(2, 16, 16, 8, 8, 1)
    x[1, 3, 5, 5] = float("nan")
    torchs = conv3x3_reference(x, weight, 1).isnan()
    found = conv3x3(x, weight, padding=1).isnan()
    assert found[torchs].all() and not found[0].any()
    assert conv_weight_gradient(x, gradient, padding=1)[:, 3].isnan().all()


@needs_kernel
def test_a_border_of_x_counts_as_zeros():
    x, _, gradient = tensors(3, 17, 32, 6, 6, 0)
    zero = x.clone()
    zero[:, :, 0] = zero[:, :, :, 0] = 0
    expected = conv_weight_gradient(zero, gradient, padding=0)
    x[:, :, 0] = x[:, :, :, 0] = float("nan")
    assert torch.equal(conv_weight_gradient(x, gradient, padding=0, border=True), expected)


@needs_kernel
@pytest.mark.parametrize("bordered", [False, True])
def test_the_layer_computes_by_them_forward_and_backward(bordered, monkeypatch):
    conv, x = Conv3x3(16, 24), torch.randn(5, 16, 9, 9, requires_grad=True)
    asked = []
    monkeypatch.setattr(winograd, "call", lambda source, name, *rest: (asked.append(name), call(source, name, *rest)))
    out = conv(x, bordered)
    upstream = torch.randn_like(out)
    found = out, *torch.autograd.grad(out, (x, conv.weight), upstream)
    expected = exact((x.detach(), conv.weight.detach(), upstream), 0 if bordered else 1)
    if bordered:  # for the filters' gradient the border is zeros, whatever it holds
        zeros = x.detach().clone()
        zeros[:, :, 0] = zeros[:, :, :, 0] = 0
        expected = (*expected[:2], exact((zeros, conv.weight.detach(), upstream), 0)[2])
    assert asked == ["winograd_convolution", "winograd_convolution", "winograd_weight_gradient"]
    assert all(error(mine, other) < CLOSE for mine, other in zip(found, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(conv(x, bordered), out)


@needs_kernel
def test_the_layer_has_second_derivatives_of_torchs():
    conv, x = Conv3x3(16, 16), torch.randn(2, 16, 4, 4, requires_grad=True)
    results = []
    for out in (conv(x), F.conv2d(x, conv.weight, padding=1)):
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), conv.weight)[0])
    assert error(results[0], results[1].double()) < CLOSE


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "forced"),
    [
        ((30, 15, 9, 9), 16, torch.float32, ""),
        ((30, 16, 9, 9), 15, torch.float32, ""),
        ((2, 16, 9, 9), 16, torch.float32, ""),
        ((30, 16, 9, 9), 16, torch.float64, ""),
        ((30, 16, 9, 9), 16, torch.bfloat16, ""),
        ((30, 16, 9, 9), 16, torch.float32, "reference"),
    ],
)
def test_elsewhere_they_are_torchs(shape, outputs, dtype, forced, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", forced)
    images, channels, height, width = shape
    x, weight, gradient = tensors(images, channels, outputs, height, width, 1, dtype)
    assert not winograd.has_kernel(x, outputs)
    assert torch.equal(conv3x3(x, weight, padding=1), conv3x3_reference(x, weight, 1))
    expected = conv_input_gradient_reference(gradient, weight, 1)
    assert torch.equal(conv_input_gradient(gradient, weight, padding=1), expected)


def test_the_references_are_torchs_derivatives():
    x, weight, gradient = tensors(2, 3, 4, 5, 6, 0, torch.float64)
    out, of_x, _ = exact((x, weight, gradient), 0)
    torch.testing.assert_close(conv3x3_reference(x, weight, 0), out)
    torch.testing.assert_close(conv_input_gradient_reference(gradient, weight, 0), of_x)


@pytest.mark.parametrize("stride", [2, 3])
def test_a_convolution_with_a_stride_is_torchs(stride):
    x, weight = torch.randn(40, 16, 8, 8, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    results, upstream = [], torch.randn(40, 16, -(-8 // stride), -(-8 // stride))
    for out in (conv3x3(x, weight, padding=1, stride=stride), F.conv2d(x, weight, stride=stride, padding=1)):
        results.append((out, *torch.autograd.grad(out, (x, weight), upstream)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


@needs_kernel
@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_what_trains_has_a_gradient(frozen, monkeypatch):
    x, weight, gradient = tensors(3, 16, 24, 5, 5, 1)
    asked = []
    monkeypatch.setattr(winograd, "call", lambda source, name, *rest: (asked.append(name), call(source, name, *rest)))
    trained, other, place = (weight, x, 2) if frozen == "x" else (x, weight, 1)
    trained.requires_grad_()
    conv3x3(x, weight, padding=1).backward(gradient)
    expected = exact((x.detach(), weight.detach(), gradient), 1)[place]
    assert error(trained.grad, expected) < CLOSE and other.grad is None
    backward = "winograd_weight_gradient" if frozen == "x" else "winograd_convolution"
    assert asked == ["winograd_convolution", backward]


@needs_kernel
def test_transforms_and_forward_derivatives_are_those_of_torchs():
    x, weight, tangent = torch.randn(2, 16, 5, 5), torch.randn(16, 16, 3, 3), torch.randn(2, 16, 5, 5)
    of = [partial(conv3x3, weight=weight, padding=1), partial(F.conv2d, weight=weight, padding=1)]
    for mine, other in zip(*(torch.func.jvp(each, (x,), (tangent,)) for each in of), strict=True):
        torch.testing.assert_close(mine, other)
    mine, other = (torch.func.grad(lambda x, each=each: each(x).square().sum())(x) for each in of)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
    x.requires_grad_()
    upstream = torch.randn(3, 2, 16, 5, 5)
    mine, other = (torch.autograd.grad(each(x), x, upstream, is_grads_batched=True)[0] for each in of)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@needs_kernel
def test_an_exported_program_has_torchs():
    class Layer(torch.nn.Module):
        def forward(self, x, weight):
            return conv3x3(x, weight, padding=1)

    program = torch.export.export(Layer(), (torch.randn(2, 16, 5, 5), torch.randn(16, 16, 3, 3)))
    assert "fastcifar" not in str(program.graph)


@pytest.mark.parametrize("images", [1, 40])
def test_under_autocast_it_is_torchs(images):
    x, weight = torch.randn(images, 16, 8, 8, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv3x3(x, weight, padding=1)
        torchs = torch.nn.functional.conv2d(x, weight, padding=1)
    found, expected = ((each, *torch.autograd.grad(each.float().square().sum(), (x, weight))) for each in (out, torchs))
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@needs_kernel
def test_with_avx2_alone_they_are_the_same_to_rounding():
    code = (
        "import torch; from tests.kernels.test_conv3x3 import *; torch.manual_seed(0)\n"
        "given_ = tensors(20, 21, 40, 11, 11, 1)\n"
        "assert torch.backends.cpu.get_cpu_capability() == 'AVX2' and winograd.has_kernel(given_[0], 40)\n"
        "print(max(map(error, passes(given_, 1), exact(given_, 1))))"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == "" and float(done.stdout) < CLOSE


@needs_kernel
@pytest.mark.parametrize("function", ["winograd_convolution", "winograd_weight_gradient"])
def test_memory_that_there_is_not_is_an_error(function):
    border = () if function == "winograd_convolution" else (False,)
    with pytest.raises(MemoryError, match=f"out of memory in {function}"):
        call(winograd.SOURCE, function, None, None, None, 1, 2**40, 16, 4, 4, 1, *border, 4, 2)


@needs_kernel
def test_no_images_give_no_images_and_zeros():
    x, weight, gradient = tensors(0, 16, 16, 4, 4, 1)
    out, of_x, of_weight = passes((x, weight, gradient), 1)
    assert out.shape == of_x.shape == (0, 16, 4, 4) and not of_weight.any()


@needs_kernel
@pytest.mark.parametrize(("channels", "outputs"), [(5, 7), (16, 17)])
def test_are_well_formed_operators_and_counted_as_convolutions(channels, outputs):
    x, weight, gradient = tensors(2, channels, outputs, 3, 4, 0)
    torch.library.opcheck(torch.ops.fastcifar.conv3x3.default, (x, weight, 0, False, 1))
    torch.library.opcheck(torch.ops.fastcifar.conv_input_gradient.default, (gradient, weight, 0))
    counted = (gradient.numel() * channels * 9, 4 * (x.numel() + weight.numel() + gradient.numel()))
    assert PRODUCTS["conv3x3"](x, weight, 0, False, 1) == [counted]
    assert PRODUCTS["conv_input_gradient"](gradient, weight, 0) == [counted]


@pytest.mark.parametrize(
    ("function", "x", "weight", "padding"),
    [
        (conv3x3, (2, 3, 4, 4), (5, 3, 3, 3), 2),
        (conv3x3, (2, 3, 4, 4), (5, 4, 3, 3), 1),
        (conv3x3, (2, 3, 4, 4), (5, 3, 5, 5), 1),
        (conv3x3, (2, 3, 2, 4), (5, 3, 3, 3), 0),
        (conv3x3, (3, 4, 4), (5, 3, 3, 3), 1),
        (conv_input_gradient, (2, 5, 4, 4), (5, 3, 3, 3), 2),
        (conv_input_gradient, (2, 3, 4, 4), (5, 3, 3, 3), 1),
        (conv_input_gradient, (2, 5, 4, 4), (5, 3, 3, 5), 1),
    ],
)
def test_what_does_not_fit_is_refused(function, x, weight, padding):
    with pytest.raises(ValueError, match=rf"weight \[.*\], padding {padding}(, stride 1)?; allowed: .*padding 0 or 1"):
        function(torch.zeros(x), torch.zeros(weight), padding=padding)


def test_a_gradient_that_would_be_lost_is_refused():
    _, weight, gradient = tensors(2, 3, 4, 4, 4, 1)
    with pytest.raises(ValueError, match="gradient wants a gradient"):
        conv_input_gradient(gradient.requires_grad_(), weight, padding=1)
