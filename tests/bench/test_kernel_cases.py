"""The operations of the benchmarks are called alike in all variants, and their bytes are counted."""

import pytest
import torch

from bench import kernel_cases
from bench.kernel_cases import all_cases

CPU = torch.device("cpu")


@pytest.mark.parametrize(("place", "case"), list(all_cases(CPU, torch.float32, tiny=True)))
def test_every_variant_of_an_operation_computes_the_same(place, case):
    arguments = case.make()
    found = []
    for name in ("kernel", "reference"):
        given = [copied(argument) for argument in arguments]
        results = case.variant(name)(*given)
        found.append([results, [argument for argument in given if isinstance(argument, torch.Tensor)]])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def copied(argument):
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad)


def test_the_bytes_are_those_of_the_kernels_rooflines():
    """Where a kernel reads and writes everything once."""
    assert kernel_cases.augment(512, 512, CPU, torch.float16).bytes_moved == pytest.approx(4.7e6, rel=0.01)
    assert kernel_cases.whiten(512, CPU, torch.float16).bytes_moved == pytest.approx(26.7e6, rel=0.01)


def test_the_bytes_are_those_of_every_operator_that_is_called():
    forward_and_backward = kernel_cases.cross_entropy(512, CPU, torch.float16).bytes_moved
    forward = 512 * (10 * 2 + 8) + 512 * (10 * 4 + 4) + 4 + 8  # logits, labels; gradient, losses; loss, count
    backward = 4 + 512 * 10 * (4 + 2)
    assert forward_and_backward == forward + backward
