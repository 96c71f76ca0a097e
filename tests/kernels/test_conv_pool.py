import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import fastcifar.costs.products  # noqa: F401  (gives torch's counter the operators)
from fastcifar.kernels import conv_pool, conv_pool_reference, launch
from fastcifar.kernels.conv_pool import has_kernel
from fastcifar.kernels.operators import PRODUCTS

any_settings = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensors(shape, outputs, dtype=torch.float16, device="cpu"):
    """Return x and filters that want a gradient; the convolution's results are about as large as 1."""
    x, weight = torch.randn(shape), torch.randn(outputs, shape[1], 3, 3) / (9 * shape[1]) ** 0.5
    x, weight = (t.to(device, dtype).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return x, weight.requires_grad_()


def gradient_by_argmax(x, weight, bordered, upstream, argmax):
    """Return the filters' gradient in float64 where the maxima are at `argmax`."""
    x, weight = x.double(), weight.detach().double().requires_grad_()
    convolved = F.conv2d(x, weight, padding=0 if bordered else 1)
    height, width = (side // 2 for side in convolved.shape[2:])
    windows = convolved[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2))
    chosen = windows.permute(0, 1, 2, 4, 3, 5).flatten(4).gather(4, argmax.long()[..., None])[..., 0]
    return torch.autograd.grad(chosen, weight, upstream.double())[0]


def check(assert_close, x, weight, bordered=False):
    """Compare result, maxima and gradient with the specification."""
    dtype = x.dtype
    pooled, argmax = torch.ops.fastcifar.conv_pool(x, weight, bordered)
    expected = conv_pool_reference(x.double(), weight.double(), bordered)
    assert_close(pooled, expected, dtype)
    assert pooled.dtype == dtype and argmax.dtype == torch.uint8
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    # The maximum's place is that of the rounded convolution; sums in another order may round to its neighbors.
    convolved = F.conv2d(x.double(), weight.double(), padding=0 if bordered else 1).to(dtype)
    _, index = F.max_pool2d(convolved.float(), 2, return_indices=True)
    width = convolved.shape[3]
    assert (argmax == index // width % 2 * 2 + index % width % 2).double().mean() > 0.97
    upstream = torch.randn_like(pooled)
    (gradient,) = torch.autograd.grad(pooled, weight, upstream)
    assert_close(gradient, gradient_by_argmax(x, weight, bordered, upstream, argmax), dtype)
    assert gradient.dtype == dtype and gradient.stride() == weight.stride()
    with torch.no_grad():
        assert torch.equal(conv_pool(x, weight, bordered), pooled)


@pytest.mark.parametrize("bordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_dtype_is_the_specification(path, device, assert_close, dtype, bordered):
    if path == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices as whole numbers")
    check(assert_close, *tensors((3, 24, 8, 10), 32, dtype, device), bordered)


@pytest.mark.parametrize("pixels", [24, 28, 32])
def test_a_networks_sizes(monkeypatch, path, device, assert_close, pixels):
    """Whitened images with a border, whose sides are those of the crop."""
    if path == "triton":  # small blocks would be hundreds of programs, which the interpreter takes long for
        table = importlib.import_module("fastcifar.kernels.conv_pool_triton").SIZES
        large = {"pixels": 512, "outputs": 64, "gradient_pixels": 512, "gradient_columns": 256, "merged": 4096}
        monkeypatch.setattr(table, "interpreted", dataclasses.replace(table.interpreted, **large))
    check(assert_close, *tensors((3, 24, pixels, pixels), 64, device=device), bordered=True)


@any_settings
@example(images=1, channels=8, outputs=16, height=2, width=2, bordered=False, seed=0)
@example(images=1, channels=8, outputs=16, height=4, width=4, bordered=True, seed=0)
@example(images=2, channels=32, outputs=80, height=5, width=7, bordered=True, seed=1)
@example(images=2, channels=3, outputs=5, height=6, width=5, bordered=False, seed=2)
@given(
    images=st.integers(1, 4),
    channels=st.sampled_from([3, 8, 16, 24, 32, 40]),
    outputs=st.sampled_from([5, 16, 48, 128, 144]),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    bordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(path, device, assert_close, images, channels, outputs, height, width, bordered, seed):
    torch.manual_seed(seed)
    check(assert_close, *tensors((images, channels, height, width), outputs, device=device), bordered)


def test_which_sizes_have_a_kernel(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = [(24, 64), (8, 16), (32, 128), (3, 64), (40, 64), (24, 65), (24, 144)]
    assert [has_kernel(*tensors((2, channels, 4, 4), outputs)) for channels, outputs in sizes] == [True] * 3 + [
        False
    ] * 4
    assert not has_kernel(*tensors((2, 24, 4, 4), 64, torch.float32))
    for capability, has in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(launch, "_gpu_of", lambda tensor, capability=capability: (capability, 40))
        assert has_kernel(*tensors((2, 24, 4, 4), 64)) == has
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    assert not has_kernel(*tensors((2, 24, 4, 4), 64))


def test_of_equal_values_the_first_gets_the_gradient_also_where_rounding_makes_them_equal(path, device):
    x = torch.zeros(1, 8, 4, 4, dtype=torch.float16, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(16, 8, 3, 3, dtype=torch.float16, device=device)
    weight[:, 0, 1, 1], weight[:, 1, 1, 1] = 1, 1
    x[0, 0, 2:, :2] = 1  # the window at the bottom left: 1, 1 + 1/4096, 1, 1
    x[0, 1, 2, 1] = 1 / 4096
    x[0, 0, 0, 2:] = torch.tensor([1.0, 2.0])  # the one at the top right
    _, argmax = torch.ops.fastcifar.conv_pool(x, weight, False)
    assert torch.equal(argmax[0, 3].cpu(), torch.tensor([[0, 1], [0, 0]], dtype=torch.uint8))


def test_nothing_is_read_beyond_the_images(path, device):
    """Values before and after x in memory reach neither result nor gradient."""
    x, weight = tensors((2, 8, 5, 6), 16, device=device)
    memory = torch.full((x.numel() + 2048,), float("nan"), dtype=x.dtype, device=device)
    inside = memory[1024:-1024].view(2, 5, 6, 8).permute(0, 3, 1, 2).copy_(x)
    for bordered in (False, True):
        results = []
        for images in (x, inside):
            pooled = conv_pool(images, weight, bordered)
            results.append((pooled, *torch.autograd.grad(pooled, weight, torch.ones_like(pooled))))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_nan_reaches_the_windows_that_read_it_and_no_others(path, device):
    if (path, device) == ("reference", "cuda"):
        pytest.skip("cuDNN's convolutions may compute whole tiles of pixels together")
    x, weight = tensors((2, 8, 8, 8), 16, device=device)
    x[1, 2, 4, 2] = float("nan")
    expected = torch.zeros(2, 16, 4, 4, dtype=torch.bool, device=device)
    expected[1, :, 1:3, :2] = True
    assert torch.equal(conv_pool(x, weight).isnan(), expected)


def test_equal_inputs_give_equal_bits(path, device):
    x, weight = tensors((5, 24, 8, 8), 48, device=device)
    results = []
    for _ in range(2):
        pooled = conv_pool(x, weight, True)
        results.append((pooled, *torch.autograd.grad(pooled, weight, pooled.detach())))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_no_images_give_no_images_and_no_gradient(path, device):
    x, weight = tensors((0, 8, 4, 4), 16, device=device)
    pooled = conv_pool(x, weight)
    assert pooled.shape == (0, 16, 2, 2)
    assert not torch.autograd.grad(pooled.sum(), weight)[0].any()


def test_strided_tensors(path, device, assert_close):
    x, weight = tensors((3, 8, 8, 12), 16, device=device)
    strided = x[:, :, ::2, 1::2], weight.detach().contiguous().requires_grad_()
    assert not any(t.is_contiguous(memory_format=torch.channels_last) for t in strided)
    pooled = conv_pool(*strided)
    assert_close(pooled, conv_pool_reference(*(t.double() for t in strided)), x.dtype)
    (gradient,) = torch.autograd.grad(pooled.sum(), strided[1])
    (expected,) = torch.autograd.grad(conv_pool_reference(strided[0].float(), weight.float()).sum(), weight)
    assert (gradient - expected).norm() < 0.05 * expected.norm()  # but for maxima that rounding moves


def test_a_gradient_of_x_is_refused_and_a_second_derivative_too():
    x, weight = tensors((2, 8, 4, 4), 16, torch.float64)
    with pytest.raises(RuntimeError, match="first derivative alone"):
        torch.autograd.grad(conv_pool(x, weight).sum(), weight, create_graph=True)
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"^x wants a gradient; allowed: none, or torch\.no_grad\(\)$"):
        conv_pool(x, weight)
    with torch.no_grad():
        assert not conv_pool(x, weight).requires_grad


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x is", {"x": torch.zeros(2, 8, 4)}),
        ("x is", {"x": torch.zeros(2, 8, 1, 4)}),
        ("x is", {"x": torch.zeros(2, 8, 4, 3), "bordered": True}),
        ("x is", {"x": torch.zeros(2, 0, 4, 4)}),
        ("x is", {"x": torch.zeros(2, 8, 4, 4, dtype=torch.uint8)}),
        ("weight is", {"weight": torch.zeros(16, 4, 3, 3)}),
        ("weight is", {"weight": torch.zeros(16, 8, 2, 2)}),
        ("weight is", {"weight": torch.zeros(0, 8, 3, 3)}),
        ("weight is", {"weight": torch.zeros(16, 8, 3)}),
        ("weight is", {"weight": torch.zeros(16, 8, 3, 3, dtype=torch.float16)}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, wrong):
    arguments = {"x": torch.zeros(2, 8, 4, 6), "weight": torch.zeros(16, 8, 3, 3), **wrong}
    with pytest.raises(ValueError, match=rf"^{name} .*; allowed: "):
        conv_pool(**arguments)


@pytest.mark.parametrize("bordered", [False, True])
def test_are_well_formed_operators(monkeypatch, bordered):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    x, weight = tensors((2, 8, 5, 6), 16, torch.float64)
    pooled, argmax = torch.ops.fastcifar.conv_pool(x, weight, bordered)
    operators = torch.ops.fastcifar
    torch.library.opcheck(operators.conv_pool.default, (x, weight, bordered))
    torch.library.opcheck(operators.conv_pool_inference.default, (x, weight.detach(), bordered))
    torch.library.opcheck(operators.conv_pool_backward.default, (pooled.detach(), argmax, x, bordered))
    assert torch.autograd.gradcheck(lambda weight: conv_pool(x, weight, bordered), weight)


def test_compiles_into_one_graph(path, device):
    x, weight = tensors((3, 8, 6, 6), 16, device=device)

    def double(*arguments):
        return conv_pool(*arguments) * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    one, other = compiled(x, weight), double(x, weight)
    assert torch.equal(one, other)
    assert torch.equal(*(torch.autograd.grad(out.sum(), weight)[0] for out in (one, other)))


@pytest.mark.gpu
def test_a_captured_graph_replays_with_new_images(path):
    x, weight = tensors((4, 24, 8, 8), 64, device="cuda")
    weight.requires_grad_(False)
    conv_pool(x, weight, True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = conv_pool(x, weight, True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(static, conv_pool(x, weight, True))


def test_its_products_are_counted_as_by_hand_and_as_torch_counts_a_convolution():
    x, weight = tensors((5, 8, 9, 7), 16)
    pooled, argmax = torch.ops.fastcifar.conv_pool(x, weight, False)
    macs, small = 5 * 16 * 8 * 6 * 9 * 8, 2 * (5 * 8 * 9 * 7 + 16 * 8 * 9) + 2 * 5 * 16 * 4 * 3
    assert PRODUCTS["conv_pool"](x, weight, False) == [(macs, small + 5 * 16 * 4 * 3)]
    assert PRODUCTS["conv_pool_inference"](x, weight, False) == [(macs, small)]
    assert PRODUCTS["conv_pool_backward"](pooled, argmax, x, False) == [(macs, small + 5 * 16 * 4 * 3)]
    x, weight = tensors((5, 8, 8, 6), 16)
    counts = []
    for operation in (conv_pool, conv_pool_reference):
        with FlopCounterMode(display=False) as counter:
            operation(x, weight).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [4 * macs] * 2
