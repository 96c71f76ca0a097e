"""`norm_act_pool`, forward and backward, at the shapes of DavidNet's layers."""

import pytest

from bench import kernel_cases
from bench.kernels import HALF, VARIANTS

NETWORK = kernel_cases.NETWORKS["davidnet"]
COMPILED = ("layer1", "layer1-residual")
"""One with a pool and one with a residual: those that are compiled where not everything is measured in full."""


@pytest.mark.benchmark(group="norm_act_pool")
@pytest.mark.reference("copy")
@VARIANTS
@pytest.mark.parametrize("layer", NETWORK.layers)
def test_norm_act_pool_forward_and_backward(measure, device, batch, full, variant, layer):
    if variant == "compiled" and layer not in COMPILED and not full:
        pytest.skip("ten seconds of compiling a layer: two of them, or all with --full")
    groups = batch * NETWORK.groups // NETWORK.batch
    measure(kernel_cases.norm_act_pool(NETWORK.layers[layer], batch, groups, "celu", device, HALF), variant)
