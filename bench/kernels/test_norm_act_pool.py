"""`norm_act_pool`, forward and backward, at the shapes of DavidNet's layers."""

import pytest
import torch

from bench.kernels import BATCH, HALF, VARIANTS
from fastcifar import kernels

LAYERS = {
    "stem": (64, 32, False, False),
    "layer1": (128, 32, True, False),
    "layer1-residual": (128, 16, False, True),
    "layer2": (256, 16, True, False),
    "layer3": (512, 8, True, False),
    "layer3-residual": (512, 4, False, True),
}
"""DavidNet's layers: channels, side in pixels before the pool, pool, residual."""


@pytest.mark.benchmark(group="norm_act_pool")
@VARIANTS
@pytest.mark.parametrize("layer", LAYERS)
def test_norm_act_pool_forward_and_backward(measure, device, variant, layer):
    channels, side, pool, has_residual = LAYERS[layer]
    after = side // 2 if pool else side
    large, small = BATCH * channels * side * side, BATCH * channels * after * after

    def tensor(side):
        shape = (BATCH, channels, side, side)
        return torch.randn(shape, device=device).to(HALF).contiguous(memory_format=torch.channels_last)

    def make():
        x = tensor(side).requires_grad_()
        residual = tensor(after).requires_grad_() if has_residual else None
        return x, torch.randn(channels, device=device).requires_grad_(), residual, tensor(after)

    def both(operation):
        def run(x, bias, residual, upstream):
            out, _, _ = operation(x, bias, None, groups=BATCH // 32, activation="celu", pool=pool, residual=residual)
            inputs = [x, bias] if residual is None else [x, bias, residual]
            return torch.autograd.grad(out, inputs, upstream)

        return run

    # Forward: the input once for pool and statistics, the pooled once for the rest, its output; backward: the incoming
    # gradient twice (sums, then the result), the pooled twice, the result; and the pool's argmax, a byte, both ways.
    bytes_moved = 2 * (large + 2 * small) + 2 * (4 * small + large) + (2 * small if pool else 0)
    bytes_moved += 2 * 2 * small if has_residual else 0
    measure(variant, both(kernels.norm_act_pool_reference), both(kernels.norm_act_pool), make, bytes_moved)
