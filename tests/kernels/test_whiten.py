import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import whiten, whiten_reference
from fastcifar.kernels.operators import PRODUCTS

PATHS = ["reference", "cpp", "triton"]
ACTIVATIONS = ["gelu", "silu", "relu"]


def tensors(shape, outputs, side, dtype=torch.float32, *, bias=True, device="cpu"):
    """Return images, weight and bias; the convolution's results are about as large as 1."""
    images, weight = torch.randn(shape), torch.randn(outputs, shape[1], side, side)
    weight /= weight[0].numel() ** 0.5
    images, weight = (t.to(device, dtype).contiguous(memory_format=torch.channels_last) for t in (images, weight))
    return images, weight, torch.randn(outputs, device=device) if bias else None


def check(assert_close, given_tensors, activation="gelu", border=False):
    """Compare the operator with the specification on the same values in float64."""
    out = whiten(*given_tensors, activation, border)
    exact = whiten_reference(*(None if t is None else t.double() for t in given_tensors), activation, border)
    dtype = given_tensors[0].dtype
    assert_close(out, exact, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_dtype_and_activation_is_the_specification(path, device, assert_close, dtype, activation, bias):
    if path == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices as whole numbers")
    check(assert_close, tensors((3, 3, 6, 7), 24, 2, dtype, bias=bias, device=device), activation)


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("pixels", [24, 28, 32])
def test_a_networks_sizes(monkeypatch, path, device, assert_close, pixels, side):
    # As small a block as the fixture's would make hundreds of programs, each of which the interpreter takes long for.
    if path == "triton":
        table = importlib.import_module("fastcifar.kernels.whiten_triton").SIZES
        monkeypatch.setattr(table, "interpreted", dataclasses.replace(table.interpreted, pixels=4096))
    given_tensors = tensors((5, 3, pixels, pixels), 6 * side**2, side, torch.float16, device=device)
    check(assert_close, given_tensors, border=side == 2)  # as in the network: where the result's sides are odd


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    images=1, channels=3, outputs=24, side=2, height=2, width=2, activation="gelu", bias=False, border=False, seed=0
)
@example(images=3, channels=4, outputs=17, side=3, height=5, width=8, activation="silu", bias=True, border=True, seed=1)
@example(images=2, channels=3, outputs=9, side=4, height=7, width=5, activation="gelu", bias=True, border=True, seed=2)
@given(
    images=st.integers(1, 4),
    channels=st.integers(1, 4),
    outputs=st.integers(1, 20),
    side=st.integers(1, 3),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    border=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(
    path, device, assert_close, images, channels, outputs, side, height, width, activation, bias, border, seed
):
    torch.manual_seed(seed)
    given_tensors = tensors((images, channels, height, width), outputs, side, bias=bias, device=device)
    check(assert_close, given_tensors, activation, border)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_without_a_compiler_it_is_torchs_convolution_and_activation_to_the_bit(monkeypatch, dtype):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    images, weight, bias = tensors((4, 3, 16, 16), 24, 2, dtype)
    assert torch.equal(whiten(images, weight), F.gelu(F.conv2d(images, weight)))
    assert torch.equal(whiten(images, weight, bias, "silu"), F.silu(F.conv2d(images, weight, bias.to(dtype))))


def test_each_value_is_off_by_no_more_than_two_roundings(path, device):
    """The convolution's, which GELU passes on at most 1.13 times, and the result's."""
    given_tensors = tensors((6, 3, 9, 9), 24, 2, torch.float16, bias=False, device=device)
    exact = [None if t is None else t.double() for t in given_tensors]
    before, expected = F.conv2d(*exact[:2]), whiten_reference(*exact)
    rounding = torch.finfo(torch.float16).eps / 2
    bound = rounding * (1.13 * before.abs() + expected.abs()) * 1.05 + 1e-6
    assert ((whiten(*given_tensors) - expected).abs() <= bound).all()


def test_no_images_give_no_images(path, device):
    images, weight, bias = tensors((0, 3, 4, 4), 6, 2, device=device)
    assert whiten(images, weight, bias).shape == (0, 6, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_bias_may_have_the_images_dtype(path, device, dtype):
    images, weight, bias = tensors((2, 3, 4, 4), 6, 2, dtype, device=device)
    wide = torch.promote_types(dtype, torch.float32)
    narrow = bias.to(dtype)
    assert torch.equal(whiten(images, weight, narrow), whiten(images, weight, narrow.to(wide)))


def test_strided_tensors(path, device, assert_close):
    images, weight, bias = tensors((3, 3, 8, 10), 10, 2, device=device)
    strided = images[:, :, ::2, 1::2], weight.contiguous(), torch.stack([bias, bias + 9], 1)[:, 0]
    assert not any(t.is_contiguous(memory_format=torch.channels_last) for t in strided[:2])
    check(assert_close, strided)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nan_reaches_the_patches_that_it_is_in_and_no_others(path, device, activation):
    images, weight, _ = tensors((2, 3, 6, 6), 24, 2, device=device)
    images[1, 2, 3, 2] = float("nan")
    expected = torch.zeros(2, 24, 5, 5, dtype=torch.bool, device=device)
    expected[1, :, 2:4, 1:3] = True
    assert torch.equal(whiten(images, weight, None, activation).isnan(), expected)


def test_where_a_gradient_is_wanted_it_is_refused():
    images, weight, bias = tensors((2, 3, 4, 4), 6, 2)
    for wanted in (images, weight, bias):
        wanted.requires_grad_()
        with pytest.raises(
            ValueError, match=r"^images, weight or bias want a gradient; allowed: none, or torch\.no_gr"
        ):
            whiten(images, weight, bias)
        with torch.no_grad():
            assert not whiten(images, weight, bias).requires_grad
        wanted.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("images are", {"images": torch.zeros(2, 3, 4)}),
        ("images are", {"images": torch.zeros(2, 3, 0, 4)}),
        ("images are", {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}),
        ("weight is", {"weight": torch.zeros(6, 4, 2, 2)}),
        ("weight is", {"weight": torch.zeros(6, 3, 2, 3)}),
        ("weight is", {"weight": torch.zeros(6, 3, 5, 5)}),
        ("weight is", {"weight": torch.zeros(6, 3, 2)}),
        ("weight is", {"weight": torch.zeros(6, 3, 2, 2, dtype=torch.float16)}),
        ("bias is", {"bias": torch.zeros(5)}),
        ("bias is", {"bias": torch.zeros(6, dtype=torch.float16)}),
        ("activation is", {"activation": "celu"}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, wrong):
    arguments = {"images": torch.zeros(2, 3, 4, 6), "weight": torch.zeros(6, 3, 2, 2), "bias": torch.zeros(6), **wrong}
    with pytest.raises(ValueError, match=rf"^{name} .*; allowed: "):
        whiten(**arguments)


@pytest.mark.parametrize("bias", [False, True])
def test_is_a_well_formed_operator(monkeypatch, bias):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    given_tensors = tensors((2, 3, 5, 4), 6, 2, bias=bias)
    torch.library.opcheck(torch.ops.fastcifar.whiten.default, (*given_tensors, "gelu", bias))


def test_compiles_into_one_graph(path, device):
    given_tensors = tensors((3, 3, 6, 6), 24, 2, device=device)

    def double(*arguments):
        return whiten(*arguments) * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given_tensors), double(*given_tensors), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
def test_a_captured_graph_replays_with_new_images(path):
    images, weight, bias = tensors((4, 3, 8, 8), 24, 2, torch.float16, device="cuda")
    whiten(images, weight, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = whiten(images, weight, bias)
    images.copy_(torch.randn_like(images))
    graph.replay()
    assert torch.equal(static, whiten(images, weight, bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("border", [False, True])
def test_its_product_is_counted_as_by_hand(bias, border):
    count = PRODUCTS["whiten"](*tensors((5, 3, 8, 8), 24, 2, bias=bias), "gelu", border)
    written = (7 + border) ** 2
    assert count == [(5 * 7**2 * 24 * 12, 4 * (5 * 3 * 8**2 + 24 * 12 + 24 * bias + 5 * 24 * written))]
