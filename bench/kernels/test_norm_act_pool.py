"""`norm_act_pool`, forward and backward, at the shapes of DavidNet's layers."""

import pytest
import torch

from bench.kernels import HALF, VARIANTS
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
COMPILED = ("layer1", "layer1-residual")
"""One with a pool and one with a residual: those that are compiled where not everything is measured in full."""


@pytest.mark.benchmark(group="norm_act_pool")
@pytest.mark.reference("copy")
@VARIANTS
@pytest.mark.parametrize("layer", LAYERS)
def test_norm_act_pool_forward_and_backward(measure, device, batch, full, variant, layer):
    if variant == "compiled" and layer not in COMPILED and not full:
        pytest.skip("ten seconds of compiling a layer: two of them, or all with --full")
    channels, side, pool, has_residual = LAYERS[layer]
    after = side // 2 if pool else side
    large, small = batch * channels * side * side, batch * channels * after * after

    def tensor(side):
        shape = (batch, channels, side, side)
        return torch.randn(shape, device=device).to(HALF).contiguous(memory_format=torch.channels_last)

    def make():
        x = tensor(side).requires_grad_()
        residual = tensor(after).requires_grad_() if has_residual else None
        return x, torch.randn(channels, device=device).requires_grad_(), residual, tensor(after)

    def use(operation, x, bias, residual, upstream):
        out, _, _ = operation(x, bias, None, groups=batch // 32, activation="celu", pool=pool, residual=residual)
        inputs = [x, bias] if residual is None else [x, bias, residual]
        return torch.autograd.grad(out, inputs, upstream)

    # Forward: the input once for pool and statistics, the pooled once for the rest, its output; backward: the incoming
    # gradient twice (sums, then the result), the pooled twice, the result; and the pool's argmax, a byte, both ways.
    bytes_moved = 2 * (large + 2 * small) + 2 * (4 * small + large) + (2 * small if pool else 0)
    bytes_moved += 2 * 2 * small if has_residual else 0
    measure(variant, kernels.norm_act_pool_reference, kernels.norm_act_pool, make, bytes_moved, use)
