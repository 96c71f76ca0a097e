"""`augment`: a training batch with crop, flip and cutout."""

import pytest
import torch

from bench.kernels import BATCH, HALF, VARIANTS
from fastcifar import kernels


@pytest.mark.benchmark(group="augment")
@pytest.mark.reference("copy")
@VARIANTS
def test_augment(measure, device, full, variant):
    count = 50_000 if full else 5_000
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, device=device)

    def make():
        corners = torch.randint(25, (BATCH, 2), dtype=torch.int32, device=device)
        return (
            images,
            torch.randperm(count, device=device)[:BATCH],
            torch.randint(-4, 5, (BATCH, 2), dtype=torch.int32, device=device),
            torch.rand(BATCH, device=device) < 0.5,
            torch.cat([corners, torch.full_like(corners, 8)], dim=1),
            None,
            (125.31, 122.95, 113.87),
            (62.99, 62.09, 66.70),
            HALF,
        )

    def use(operation, *arguments):
        return operation(*arguments)

    measure(variant, kernels.augment_reference, kernels.augment, make, BATCH * 32 * 32 * 3 * (1 + 2), use)
