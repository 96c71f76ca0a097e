"""`flat_sgd` with its moving average, at DavidNet's size."""

import pytest

from bench import kernel_cases
from bench.kernels import HALF, VARIANTS


@pytest.mark.benchmark(group="flat_sgd")
@pytest.mark.reference("copy")
@VARIANTS
def test_flat_sgd_with_average(measure, device, variant):
    # Smaller buffers lie in a cache, or not, as it happens: times differ by 15%.
    measure(kernel_cases.flat_sgd(kernel_cases.WEIGHTS, device, HALF), variant)
