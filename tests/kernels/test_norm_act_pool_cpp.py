"""What is the C++ kernels' own: threads, polynomials for the activations, and bfloat16 pooled as whole numbers."""

import pytest
import torch
import torch.nn.functional as F

from fastcifar.kernels import cpp, norm_act_pool, norm_act_pool_inference
from fastcifar.kernels.norm_act_pool.cpp import SOURCE
from tests.kernels.test_norm_act_pool import ACTIVATIONS, run, tensors


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    """Take the C++ kernels."""
    if cpp.compiler() is None or cpp.instructions() is None:
        pytest.skip("there is no C++ compiler, or no kernels for this machine")
    monkeypatch.setenv("FASTCIFAR_KERNELS", "cpp")


@pytest.mark.parametrize("pool", [False, True])
def test_the_bits_do_not_depend_on_the_number_of_threads(pool):
    given_tensors = tensors((12, 24, 34, 31), torch.bfloat16, pool=pool, border=True)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(run(norm_act_pool, *given_tensors, groups=2, pool=pool, activation="gelu", border=True))
    finally:
        torch.set_num_threads(threads)
    for others in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(runs[0], others, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_slopes_are_exact_to_a_millionth(activation):
    """At 20001 places each of a channel that is normalized by a mean of 0 and a variance of 1, some of them far."""
    x = torch.linspace(-40, 40, 20001)
    x[:8] = torch.tensor([-3e38, -1e36, -1000, -90, -88, 88, 90, 1e36])
    x = x[torch.randperm(len(x))].reshape(1, 1, 1, -1).requires_grad_()
    zero, one = torch.zeros(1), torch.ones(1)
    with torch.no_grad():
        out = norm_act_pool_inference(x, zero, one, zero, activation=activation, alpha=0.3, eps=1e-30)
    wide = x.detach().double().requires_grad_()
    same = {"activation": activation, "alpha": 0.3, "eps": 1e-30}
    expected = norm_act_pool_inference(wide, zero.double(), one.double(), zero.double(), **same)
    assert ((out - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-6
    # The gradient of the sum of out, without what the statistics have of it: that of a residual's product with it.
    slope = torch.autograd.grad(expected.sum(), wide)[0]
    bias = torch.zeros(1, requires_grad=True)
    backward = torch.ops.fastcifar.norm_act_pool_backward
    result = x.detach().relu() if activation == "sum_relu" else None
    far = (x.abs() > 41).flatten().nonzero().flatten()
    for place in [*torch.randint(x.numel(), (50,)).tolist(), *far.tolist()]:
        gradient = torch.zeros_like(x)
        gradient[..., place] = 1
        found = backward(
            *(gradient, x.detach(), None, result, zero[None], one[None], bias, None),
            *(activation, 0.3, 1e-30, 1, 20001, False),
        )
        assert abs(found[1].item() - slope[..., place].item()) < 1e-6


def test_every_order_of_two_bfloat16_values_is_pooled_as_torch_does():
    """Zeros of both signs, infinities, NaNs of both signs, normal and denormal values, each in each place."""
    bits = torch.tensor(
        [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7FFF, 0xFFFF, 0x0001, 0x8001, 0x3F80, 0xBF80, 0xC040]
    )
    values = bits.to(torch.int16).view(torch.bfloat16)
    corners = torch.cartesian_prod(*[values.view(torch.int16)] * 2).view(torch.bfloat16)
    for first, second in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        windows = torch.full((len(corners), 1, 2, 2), -torch.inf, dtype=torch.bfloat16)
        windows.flatten(1)[:, [first, second]] = corners
        x = windows.contiguous(memory_format=torch.channels_last)
        pooled, argmax = torch.ops.fastcifar.norm_act_pool(
            x, torch.zeros(1), None, None, None, 0.1, 1, "none", 1.0, True, 1e-5, None, False
        )[3:]
        expected, places = F.max_pool2d(windows.float(), 2, return_indices=True)
        assert torch.equal(pooled.isnan(), expected.isnan())
        known = ~expected.isnan()
        assert torch.equal(pooled[known].float(), expected[known])
        assert torch.equal(argmax[known].long(), places[known])


@pytest.mark.parametrize("function", ["forward", "inference", "backward"])
def test_memory_that_there_is_not_is_an_error(function):
    none, sizes = cpp.view(None), (1, 2**50, 1, 1)
    arguments = {
        "forward": (*sizes, 1, *[none] * 5, *[None] * 4, 0, 1.0, 1e-5, False, 2),
        "inference": (*sizes, *[none] * 3, *[None] * 4, 0, 1.0, False, 1e-5, False, 2),
        "backward": (*sizes, 1, *[none] * 6, 1, 1, *[None] * 6, 0, 1.0, 1e-5, 2),
    }
    with pytest.raises(MemoryError, match=f"out of memory in {function}_float of norm_act_pool.cpp"):
        cpp.call(SOURCE, f"{function}_float", *arguments[function])
