"""`flat_sgd` with its moving average, at DavidNet's size."""

import pytest
import torch

from bench.kernels import HALF, VARIANTS
from fastcifar import kernels


@pytest.mark.benchmark(group="flat_sgd")
@pytest.mark.reference("copy")
@VARIANTS
def test_flat_sgd_with_average(measure, device, variant):
    size = 6_573_120  # smaller buffers lie in a cache, or not, as it happens: times differ by 15%
    rates, step = torch.full((10,), 0.1, device=device), torch.zeros(1, dtype=torch.int64, device=device)

    def make():
        weights = torch.randn(size, device=device)
        return (
            weights,
            torch.randn(size, device=device).to(HALF),
            torch.zeros_like(weights),
            weights.to(HALF),
            weights.clone(),
            rates,
            step,
        )

    def use(operation, *tensors):
        operation(*tensors, momentum=0.9, weight_decay=5e-4, ema_decay=0.95, ema_every=1)

    # Weights, velocity and average (float32) read and written, gradient read, compute copy written.
    bytes_moved = size * (3 * 2 * 4 + 2 + 2)
    measure(variant, kernels.flat_sgd_reference, kernels.flat_sgd, make, bytes_moved, use)
