"""`whiten` at the speedrun network's 24 filters of 2x2 pixels."""

import pytest

from bench import kernel_cases
from bench.kernels import BATCH, HALF, VARIANTS


@pytest.mark.benchmark(group="whiten")
@VARIANTS
def test_whiten(measure, device, variant):
    measure(kernel_cases.whiten(BATCH, device, HALF), variant)
