"""`augment`: a training batch with crop, flip and cutout."""

import pytest

from bench import kernel_cases
from bench.kernels import BATCH, HALF, VARIANTS


@pytest.mark.benchmark(group="augment")
@pytest.mark.reference("copy")
@VARIANTS
def test_augment(measure, device, full, variant):
    measure(kernel_cases.augment(BATCH, 50_000 if full else 5_000, device, HALF), variant)
