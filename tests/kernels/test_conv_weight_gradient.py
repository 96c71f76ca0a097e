"""The gradient of a 3x3 convolution's filters: the C++ kernel against torch in float64, and where torch's is taken."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import conv_weight_gradient, conv_weight_gradient_reference
from fastcifar.kernels.conv_weight_gradient import SOURCE, _has_instructions, has_kernel
from fastcifar.kernels.cpp import call
from fastcifar.kernels.operators import PRODUCTS

needs_kernel = pytest.mark.usefixtures("kernel")


@pytest.fixture
def kernel():
    """Skip the test where there is none."""
    if not has_kernel(torch.zeros(1, dtype=torch.bfloat16), 64):
        pytest.skip("the kernel needs AVX512-BF16, no AMX, and a compiler")


def tensors(images, channels, outputs, height, width, padding, border=False, dtype=torch.bfloat16, stride=1, unread=0):
    """Return x and the output's gradient, of which `height` and `width` are the sides, and the exact result.

    unread: rows and columns at the end of x that no filter reaches, less than the stride.
    """
    sides = [(side - 1) * stride + 3 - 2 * padding + unread for side in (height, width)]
    x = torch.randn(images, channels, *sides).to(dtype)
    gradient = torch.randn(images, outputs, height, width).to(dtype)
    exact = conv_weight_gradient_reference(x.double(), gradient.double(), padding, border, stride)
    return *(tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient)), exact


def error(found, exact):
    """Return ‖found - exact‖ / ‖exact‖; NaN counts."""
    return (found.double() - exact).norm() / exact.norm().clamp(min=1e-30)


@needs_kernel
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.integers(1, 12),
    channels=st.sampled_from([1, 3, 6, 16, 17, 32, 64]),
    outputs=st.sampled_from([16, 32, 64, 128]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    padding=st.integers(0, 1),
    border=st.booleans(),
    stride_and_unread=st.sampled_from([(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]),
)
def test_any_shape_is_exact_to_the_last_rounding(images, height, width, padding, border, stride_and_unread, **channels):
    torch.manual_seed(images)
    stride, unread = stride_and_unread
    sides = {"height": height, "width": width, "padding": padding, "border": border}
    x, gradient, exact = tensors(images, **channels, **sides, stride=stride, unread=unread)
    # Where there is no kernel it is torch's, which leaves memory unwritten for one-pixel images with a stride (2.13).
    assume(stride == 1 or has_kernel(x, channels["outputs"]))
    found = conv_weight_gradient(x, gradient, padding=padding, border=border, stride=stride)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 2**-8


@needs_kernel
@pytest.mark.parametrize(
    ("images", "channels", "outputs", "side", "padding", "stride"),
    [
        (3, 24, 64, 30, 0, 1),
        (4, 16, 16, 32, 1, 1),
        (6, 32, 32, 16, 1, 1),
        (5, 256, 256, 7, 1, 1),
        (64, 256, 256, 3, 1, 1),
        (2, 64, 256, 40, 1, 1),
        (4, 16, 32, 16, 1, 2),
    ],
)
def test_any_number_of_threads_gives_the_same_bits(images, channels, outputs, side, padding, stride):
    x, gradient, exact = tensors(images, channels, outputs, side, side, padding, stride=stride)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 50):  # fifty have parts of a panel each
            torch.set_num_threads(count)
            results.append(conv_weight_gradient(x, gradient, padding=padding, stride=stride))
    finally:
        torch.set_num_threads(threads)
    assert error(results[0], exact) < 2**-8
    assert all(torch.equal(result, results[0]) for result in results)


@needs_kernel
def test_memory_of_any_layout_is_read():
    x, gradient, exact = tensors(4, 24, 64, 6, 6, 1)
    plain = conv_weight_gradient(x.contiguous(), gradient.flip(0).flip(0).contiguous(), padding=1)
    assert torch.equal(plain, conv_weight_gradient(x, gradient, padding=1)) and error(plain, exact) < 2**-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_border_counts_as_zeros(dtype):
    x, gradient, _ = tensors(3, 17, 64, 6, 6, 0, dtype=dtype)
    zero = x.clone()
    zero[:, :, 0] = zero[:, :, :, 0] = 0
    expected = conv_weight_gradient(zero, gradient, padding=0)
    x[:, :, 0] = x[:, :, :, 0] = float("nan")
    assert error(conv_weight_gradient(x, gradient, padding=0, border=True), expected.double()) < 2**-8
    assert x[:, :, 0].isnan().all()


@pytest.mark.parametrize(
    ("outputs", "dtype", "forced"),
    [(64, torch.float32, ""), (64, torch.float64, ""), (48, torch.bfloat16, ""), (64, torch.bfloat16, "reference")],
)
def test_elsewhere_it_is_torchs(outputs, dtype, forced, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", forced)
    x, gradient, _ = tensors(3, 5, outputs, 6, 6, 1, dtype=dtype)
    assert not has_kernel(x, outputs)
    expected = conv_weight_gradient_reference(x, gradient, 1, False)
    assert torch.equal(conv_weight_gradient(x, gradient, padding=1), expected)


@needs_kernel
def test_where_amx_is_the_kernel_is_taken_by_force_alone(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    x = torch.zeros(1, dtype=torch.bfloat16)
    taken = {}
    for forced in ("", "cpp"):
        monkeypatch.setenv("FASTCIFAR_KERNELS", forced)
        _has_instructions.cache_clear()
        taken[forced] = has_kernel(x, 64)
    _has_instructions.cache_clear()
    assert taken == {"": False, "cpp": True}


def test_where_torch_is_limited_to_avx2_there_is_none_by_force_either(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("FASTCIFAR_KERNELS", "cpp")
    _has_instructions.cache_clear()
    taken = has_kernel(torch.zeros(1, dtype=torch.bfloat16), 64)
    _has_instructions.cache_clear()
    assert not taken


@needs_kernel
@pytest.mark.parametrize("outputs", [2**46, 2**58])
def test_memory_that_there_is_not_is_an_error(outputs):
    with pytest.raises(MemoryError, match="out of memory in conv_weight_gradient"):
        call(SOURCE, "conv_weight_gradient", None, None, None, 1, 1, outputs, 1, 1, 1, 1, 1, 1, False, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_images_give_zeros(dtype):
    x, gradient, _ = tensors(0, 3, 64, 4, 4, 1, dtype=dtype)
    assert torch.equal(conv_weight_gradient(x, gradient, padding=1), torch.zeros(64, 3, 3, 3, dtype=dtype))


def test_is_a_well_formed_operator_and_counted():
    x, gradient, _ = tensors(2, 5, 64, 3, 4, 0)
    torch.library.opcheck(torch.ops.fastcifar.conv_weight_gradient.default, (x, gradient, 0, False, 1))
    macs = 2 * 64 * 3 * 4 * 5 * 9
    values = x.numel() + gradient.numel() + 64 * 5 * 9
    assert PRODUCTS["conv_weight_gradient"](x, gradient, 0, False, 1) == [(macs, 2 * values)]
    assert PRODUCTS["conv_weight_gradient"](x, gradient[:, :0], 0, False, 1) == [(0, 2 * x.numel())]


@pytest.mark.parametrize(
    ("x", "gradient", "padding", "stride", "message"),
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), 2, 1, r"padding 2, stride 1; allowed: .*padding 0 or 1"),
        ((2, 3, 4, 4), (2, 5, 4, 4), 1, 0, r"stride 0; allowed: .*a stride of 1 or more"),
        ((2, 3, 4, 4), (3, 5, 4, 4), 1, 1, "two batches of as many images"),
        ((2, 3, 4, 4), (2, 5, 4, 4), 0, 1, r"gradient is \[2, 5, 4, 4\]; allowed: images of \[2, 2\]"),
        ((2, 3, 5, 4), (2, 5, 3, 3), 1, 2, r"gradient is \[2, 5, 3, 3\]; allowed: images of \[3, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(x, gradient, padding, stride, message):
    with pytest.raises(ValueError, match=message):
        conv_weight_gradient(torch.zeros(x), torch.zeros(gradient), padding=padding, stride=stride)
