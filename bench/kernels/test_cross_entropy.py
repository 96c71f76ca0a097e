"""`cross_entropy`, forward and backward, at DavidNet's ten classes."""

import pytest
import torch

from bench.kernels import BATCH, HALF, VARIANTS
from fastcifar import kernels


@pytest.mark.benchmark(group="cross_entropy")
@VARIANTS
def test_cross_entropy_forward_and_backward(measure, device, variant):
    def make():
        logits = torch.randn(BATCH, 10, device=device).to(HALF).requires_grad_()
        return logits, torch.randint(10, (BATCH,), device=device)

    def use(operation, logits, labels):
        loss, correct = operation(logits, labels, 0.2)
        return torch.autograd.grad(loss, logits), correct

    measure(variant, kernels.cross_entropy_reference, kernels.cross_entropy, make, BATCH * (4 * 10 + 8), use)
