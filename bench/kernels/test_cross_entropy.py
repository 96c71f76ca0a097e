"""`cross_entropy`, forward and backward, at DavidNet's ten classes."""

import pytest
import torch

from bench.kernels import BATCH, HALF, VARIANTS
from fastcifar import kernels


@pytest.mark.benchmark(group="cross_entropy")
@VARIANTS
def test_cross_entropy_forward_and_backward(measure, device, variant):
    def make():
        return torch.randn(BATCH, 10, device=device).to(HALF).requires_grad_(), torch.randint(
            10, (BATCH,), device=device
        )

    def both(operation):
        def run(logits, labels):
            loss, correct = operation(logits, labels, 0.2)
            return torch.autograd.grad(loss, logits), correct

        return run

    measure(variant, both(kernels.cross_entropy_reference), both(kernels.cross_entropy), make, BATCH * (4 * 10 + 8))
