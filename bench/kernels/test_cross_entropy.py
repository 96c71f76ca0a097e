"""`cross_entropy`, forward and backward, at DavidNet's ten classes."""

import pytest

from bench import kernel_cases
from bench.kernels import BATCH, HALF, VARIANTS


@pytest.mark.benchmark(group="cross_entropy")
@VARIANTS
def test_cross_entropy_forward_and_backward(measure, device, variant):
    measure(kernel_cases.cross_entropy(BATCH, device, HALF), variant)
