"""Muon's passes over flat buffers, at the speedrun network's size."""

import pytest

from bench import kernel_cases
from bench.kernels import HALF, VARIANTS


@pytest.mark.benchmark(group="flat_muon")
@pytest.mark.reference("copy")
@VARIANTS
def test_flat_muon(measure, device, full, variant):
    if variant == "compiled" and not full:
        pytest.skip("a minute of compiling: with --full")
    measure(kernel_cases.flat_muon(kernel_cases.FILTERS, device, HALF), variant)
