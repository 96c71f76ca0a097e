import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from fastcifar.kernels import norm_act_pool, norm_act_pool_inference, norm_act_pool_reference

PATHS = ["reference", "cpp", "triton"]
ACTIVATIONS = ["celu", "relu", "gelu", "silu", "none", "sum_relu"]


def tensors(shape, dtype=torch.float32, *, pool=False, residual=False, scale=True, border=False, device="cpu"):
    """Return x, bias, scale, residual and the gradient of out."""
    images, channels, height, width = shape
    out = (images, channels, *((height // 2, width // 2) if pool else (height, width)))
    x = (torch.randn(shape, device=device) * 2 + 1).to(dtype)
    return (
        x.contiguous(memory_format=torch.channels_last),
        torch.randn(channels, device=device),
        torch.rand(channels, device=device) + 0.5 if scale else None,
        torch.randn(out, device=device).to(dtype) if residual else None,
        torch.randn((*out[:2], out[2] + border, out[3] + border), device=device).to(dtype),
    )


def run(function, x, bias, scale, residual, gradient, **constants):
    """Return out, mean and var, then the gradients of x, bias, and, where given, scale and residual."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in (x, bias, scale, residual)]
    results = function(*inputs[:3], residual=inputs[3], **constants)
    results[0].backward(gradient)
    return [*results, *(t.grad for t in inputs if t is not None)]


def check(assert_close, given_tensors, dtype, **constants):
    """Compare the operator on tensors in `dtype` with the specification on the same values in float64."""
    results = run(norm_act_pool, *given_tensors, **constants)
    exact = [None if t is None else t.double() for t in given_tensors]
    for number, (out, expected) in enumerate(
        zip(results, run(norm_act_pool_reference, *exact, **constants), strict=True)
    ):
        # Gradients are sums of terms of about 1, which may cancel: in a group of one pixel that of x is 0.
        least = 1e-30 if number < 3 else 0.1 if number == 3 else 1.0
        assert_close(out, expected, torch.float32 if number in (1, 2) else dtype, least=least)
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert [result.dtype for result in results[:4]] == [dtype, torch.float32, torch.float32, dtype]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_is_the_specification(path, device, assert_close, activation, pool):
    given_tensors = tensors((4, 5, 6, 4), pool=pool, residual=activation in ("celu", "gelu", "sum_relu"), device=device)
    check(assert_close, given_tensors, torch.float32, groups=2, activation=activation, pool=pool)


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (4, 8, 1, 1), (4, 1, 1, 1)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_images_that_lie_both_ways_get_a_border(path, device, assert_close, activation, shape):
    """With one channel or one pixel they are contiguous and channels-last."""
    given_tensors = tensors(shape, border=True, device=device)
    check(assert_close, given_tensors, torch.float32, activation=activation, border=True)
    x, bias, scale, _, _ = given_tensors
    out, mean, var = norm_act_pool(x, bias, scale, activation=activation, border=True)
    inference = norm_act_pool_inference(x, mean[0], var[0], bias, scale, activation=activation, border=True)
    assert_close(inference, out, torch.float32)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_dtype_is_the_specification(path, device, assert_close, dtype, residual, pool):
    given_tensors = tensors((6, 8, 4, 4), dtype, pool=pool, residual=residual, scale=residual, device=device)
    check(assert_close, given_tensors, dtype, groups=3, activation="celu", alpha=0.3, pool=pool)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_border_is_zeros_whose_gradient_is_not_read(path, device, assert_close, activation, pool):
    dtype = torch.float32 if activation == "none" else torch.float16
    given_tensors = tensors(
        (4, 5, 6, 5), dtype, pool=pool, residual=activation in ("silu", "none", "sum_relu"), border=True
    )
    given_tensors = [None if t is None else t.to(device) for t in given_tensors]
    constants = {"groups": 2, "activation": activation, "pool": pool}
    check(assert_close, given_tensors, dtype, border=True, **constants)
    bordered, plain = (
        run(norm_act_pool, *given_tensors[:4], gradient, border=border, **constants)
        for border, gradient in ((True, given_tensors[4]), (False, given_tensors[4][:, :, 1:, 1:]))
    )
    assert torch.equal(bordered[0], F.pad(plain[0], (1, 0, 1, 0)))
    assert all(torch.equal(*pair) for pair in zip(bordered[1:], plain[1:], strict=True))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(group=1, groups=1, channels=3, height=4, width=5, pool=True, border=False, activation="celu", seed=0)
@example(group=3, groups=2, channels=17, height=5, width=7, pool=True, border=True, activation="relu", seed=1)
@example(group=1, groups=3, channels=9, height=9, width=5, pool=False, border=True, activation="silu", seed=2)
@given(
    group=st.integers(1, 3),
    groups=st.integers(1, 2),
    channels=st.integers(1, 40),
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    pool=st.booleans(),
    border=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
)
def test_any_sizes(path, device, assert_close, group, groups, channels, height, width, pool, border, activation, seed):
    assume(group * (height * width if not pool else (height // 2) * (width // 2)) > 1)
    torch.manual_seed(seed)
    shape, residual = (group * groups, channels, height, width), seed % 2 == 1
    given_tensors = tensors(shape, pool=pool, residual=residual, border=border, device=device)
    constants = {"groups": groups, "activation": activation, "pool": pool, "border": border}
    # A large eps, since the gradient through the deviation of two or three nearly equal values is ill-conditioned.
    check(assert_close, given_tensors, torch.float32, eps=0.1, **constants)


@pytest.mark.parametrize("width", [254, 255, 256])
def test_places_in_wide_images_are_told_apart(path, device, assert_close, width):
    """A byte holds the distance of a window's pixels up to a width of 254."""
    check(
        assert_close, tensors((2, 2, 2, width), pool=True, device=device), torch.float32, activation="relu", pool=True
    )


@pytest.mark.parametrize("images", [1, 5])
def test_a_cpu_takes_a_few_images_at_a_time_and_computes_the_same(monkeypatch, images):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    given_tensors = tensors((images, 3, 4, 6), pool=True, residual=True)
    x, bias, scale, residual, _ = given_tensors
    constants = {"activation": "relu", "pool": True}

    def results():
        inference = norm_act_pool_inference(x, bias, bias.exp(), bias, scale, residual=residual, **constants)
        return [inference, *run(norm_act_pool, *given_tensors, **constants)]

    whole = results()
    native = importlib.import_module("fastcifar.kernels.norm_act_pool.native")
    monkeypatch.setattr(native, "_POOL_VALUES", 2 * x[0].numel())
    assert all(torch.equal(*pair) for pair in zip(whole, results(), strict=True))


def test_strided_tensors(path, device, assert_close):
    x, bias, scale, residual, gradient = tensors((4, 6, 8, 6), residual=True, device=device)
    strided = [t.contiguous()[:, :, ::2, 1::2] for t in (x, residual, gradient)]
    assert not any(t.is_contiguous(memory_format=torch.channels_last) for t in strided)
    vectors = [torch.stack([t, t + 9], 1)[:, 0] for t in (bias, scale)]
    check(assert_close, (strided[0], *vectors, *strided[1:]), torch.float32, groups=2)
    results = [norm_act_pool_inference(strided[0], *four) for four in ((bias, scale) * 2, vectors * 2)]
    assert_close(results[1], results[0], torch.float32)


def test_strided_running_statistics_move_and_nothing_beside_them(path, device, assert_close):
    x, bias, *_ = tensors((4, 6, 5, 5), device=device)
    both = [torch.full((6, 2), 7.0, device=device) for _ in range(2)]
    norm_act_pool(x, bias, running=(both[0][:, 0], both[1][:, 1]), momentum=0.5)
    expected = [torch.full((6,), 7.0, device=device) for _ in range(2)]
    norm_act_pool(x, bias, running=(expected[0], expected[1]), momentum=0.5)
    assert_close(torch.stack([both[0][:, 0], both[1][:, 1]]), torch.stack(expected), torch.float32)
    assert torch.equal(torch.stack([both[0][:, 1], both[1][:, 0]]), torch.full((2, 6), 7.0, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_maxima_the_first_gets_the_gradient(path, device, assert_close, dtype):
    given_tensors = tensors((2, 8, 6, 6), dtype, pool=True, scale=False, device=device)
    given_tensors = (torch.randint_like(given_tensors[0], 3), *given_tensors[1:])
    exact = [None if t is None else t.double() for t in given_tensors]
    results = run(norm_act_pool, *given_tensors, pool=True, activation="none")
    exact = run(norm_act_pool_reference, *exact, pool=True, activation="none")
    assert torch.equal(results[3] == 0, exact[3] == 0)
    assert_close(results[3], exact[3], dtype)


@pytest.mark.parametrize("offset", [1e4, -3e3])
def test_statistics_do_not_cancel_when_the_mean_is_far_from_zero(path, device, assert_close, offset):
    x, bias, *_ = tensors((8, 6, 5, 5), device=device)
    x = x + offset
    out, mean, var = norm_act_pool(x, bias, activation="none")
    expected = norm_act_pool_reference(x.double(), bias.double(), activation="none")
    assert_close(mean, expected[1], torch.float32)
    assert ((var - expected[2]) / expected[2]).abs().max() < 3e-4
    assert (out - expected[0]).abs().max() < 0.02  # the float32 steps of x itself are 0.001


def test_a_first_value_far_from_the_others_hardly_cancels(path, device):
    x, bias, *_ = tensors((8, 6, 8, 8), device=device)
    x[0, :, 0, 0] = 1000
    _, _, var = norm_act_pool(x, bias, activation="none")
    expected = norm_act_pool_reference(x.double(), bias.double(), activation="none")[2]
    assert ((var - expected) / expected).abs().max() < 1e-4


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_nan_is_not_hidden(path, device, activation, pool):
    x, bias, *_ = tensors((4, 3, 4, 4), device=device)
    x[3, 1, 2, 1] = float("nan")
    out, mean, var = norm_act_pool(x, bias, groups=2, activation=activation, pool=pool)
    assert out[2:, 1].isnan().all() and mean[1, 1].isnan() and var[1, 1].isnan()
    assert not out[:2].isnan().any() and not out[:, [0, 2]].isnan().any()
    one = torch.ones(3, device=device)
    assert norm_act_pool_inference(x, bias, one, bias, activation=activation, pool=pool)[3, 1].isnan().any()


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_with_the_batchs_statistics_is_its_output(path, device, assert_close, dtype, pool, border):
    x, bias, scale, residual, _ = tensors((3, 9, 6, 7), dtype, pool=pool, residual=True, device=device)
    constants = {"activation": "gelu", "pool": pool, "residual": residual, "border": border}
    out, mean, var = norm_act_pool(x, bias, scale, **constants)
    for wanted in (False, True):
        inference = norm_act_pool_inference(x, mean[0], var[0], bias.requires_grad_(wanted), scale, **constants)
        assert_close(inference, out, dtype)
        assert inference.requires_grad == wanted and inference.is_contiguous(memory_format=torch.channels_last)


def test_statistics_carry_no_gradient_and_an_unused_output_none(path, device):
    x, bias, *_ = tensors((2, 3, 4, 4), device=device)
    out, mean, var = norm_act_pool(x.requires_grad_(), bias.requires_grad_())
    assert out.requires_grad and not mean.requires_grad and not var.requires_grad
    (out.detach().sum() + bias.sum()).backward()
    assert x.grad is None


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(groups=16, channels=3, momentum=0.3, pool=True, seed=0)
@given(
    groups=st.integers(1, 4),
    channels=st.integers(1, 20),
    momentum=st.floats(0, 1),
    pool=st.booleans(),
    seed=st.integers(0, 99),
)
def test_running_statistics_move_towards_the_groups_mean(
    path, device, assert_close, groups, channels, momentum, pool, seed
):
    torch.manual_seed(seed)
    x, bias, *_ = tensors((2 * groups, channels, 4, 6), device=device)
    running = torch.randn(2, channels, device=device)
    before = running.double()
    _, mean, var = norm_act_pool(x, bias, groups=groups, pool=pool, running=(*running,), momentum=momentum)
    count = 2 * (2 * 3 if pool else 4 * 6)
    batch = torch.stack([mean.double().mean(0), var.double().mean(0) * count / (count - 1)])
    assert_close(running, before * (1 - momentum) + momentum * batch, torch.float32)
    again = before.clone()
    norm_act_pool_reference(x.double(), bias.double(), groups=groups, pool=pool, running=(*again,), momentum=momentum)
    assert_close(running, again, torch.float32)


def test_running_statistics_are_those_of_torchs_batch_norm(path, device):
    norm = torch.nn.BatchNorm2d(6, momentum=0.3).to(device)
    x = torch.randn(4, 6, 3, 5, device=device)
    norm(x)
    running = torch.zeros(6, device=device), torch.ones(6, device=device)
    norm_act_pool(x, torch.zeros(6, device=device), running=running, momentum=0.3)
    torch.testing.assert_close(running[0], norm.running_mean)
    torch.testing.assert_close(running[1], norm.running_var)


def test_equal_inputs_give_equal_bits(path, device):
    given_tensors = tensors((4, 8, 6, 6), torch.bfloat16, pool=True, device=device)
    runs = [run(norm_act_pool, *given_tensors, groups=2, pool=True) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_groups_that_do_not_divide_the_batch_are_refused_by_name():
    x, bias, *_ = tensors((4, 3, 2, 2))
    with pytest.raises(ValueError, match=r"^the running variance is torch.float32 \[2\]; allowed: torch.float32 \[3\]"):
        norm_act_pool(x, bias, running=(torch.zeros(3), torch.zeros(2)))
    for groups in (0, 3, 8):
        with pytest.raises(ValueError, match=f"groups is {groups}; allowed: a divisor of the batch of 4 images"):
            norm_act_pool(x, bias, groups=groups)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", {"x": torch.zeros(4, 3, 2)}),
        ("x", {"x": torch.zeros(4, 3, 1, 2), "pool": True}),
        ("x", {"x": torch.zeros(4, 3, 0, 2)}),
        ("x", {"x": torch.zeros(4, 3, 2, 2, dtype=torch.int64)}),
        ("bias", {"bias": torch.zeros(4)}),
        ("bias", {"bias": torch.zeros(3, dtype=torch.float16)}),
        ("scale", {"scale": torch.zeros(3, 1)}),
        ("activation", {"activation": "tanh"}),
        ("alpha", {"alpha": 0.0}),
        ("residual", {"residual": torch.zeros(4, 3, 2, 2), "pool": True}),
        ("residual", {"residual": torch.zeros(4, 3, 2, 2, dtype=torch.float16)}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, wrong):
    arguments = {"x": torch.zeros(4, 3, 2, 2), "bias": torch.zeros(3), **wrong}
    with pytest.raises(ValueError, match=rf"^{name} is .*; allowed: "):
        norm_act_pool(**arguments)
    statistics = {"mean": torch.zeros(3), "var": torch.ones(3)}
    with pytest.raises(ValueError, match=rf"^{name} is .*; allowed: "):
        norm_act_pool_inference(**arguments, **statistics)


@pytest.mark.parametrize("function", [norm_act_pool, norm_act_pool_reference], ids=["operator", "specification"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pool", [False, True])
def test_gradient_in_float64_is_the_difference_quotient(function, activation, pool):
    shape = (2, 2, 4, 5) if pool else (2, 2, 2, 3)
    inputs = [t.double().requires_grad_() for t in tensors(shape, pool=pool, residual=True)[:4]]

    def out(x, bias, scale, residual):
        return function(x, bias, scale, groups=2, activation=activation, pool=pool, residual=residual)[0]

    assert torch.autograd.gradcheck(out, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vectors_in_half_precision_are_widened(path, device, assert_close, dtype):
    x, bias, scale, _, gradient = tensors((4, 5, 4, 4), dtype, device=device)
    narrow = [t.to(dtype).requires_grad_() for t in (bias, scale, bias, scale)]
    wide = [t.detach().float().requires_grad_() for t in narrow]
    results = []
    for vectors in (narrow, wide):
        running = [t.detach().clone() for t in vectors[2:]]
        out, mean, _ = norm_act_pool(x, *vectors[:2], groups=2, running=(*running,))
        inference = norm_act_pool_inference(x, *(t.detach() for t in vectors[2:]), *vectors[:2])
        gradients = torch.autograd.grad(out, vectors[:2], gradient)
        assert [t.dtype for t in (*gradients, *running)] == [vectors[0].dtype] * 4 and mean.dtype == torch.float32
        results.append([out, inference, *gradients, *running])
    assert all(torch.equal(one, other.to(dtype)) for one, other in zip(*results, strict=True))
