"""Each fused operation against its reference and against what `torch.compile` makes of the reference.

    python -m pytest bench/test_kernels.py

Small on a CPU, full-size where there is a GPU. `bytes_moved` counts what the operation must read and write, both
passes."""

import pytest
import torch

from fastcifar import kernels

CUDA = torch.cuda.is_available()
BATCH = 512 if CUDA else 64
HALF = torch.float16 if CUDA else torch.bfloat16
VARIANTS = pytest.mark.parametrize("variant", ["reference", "kernel", "compiled"])

LAYERS = {
    "stem": (64, 32, False, False),
    "layer1": (128, 32, True, False),
    "layer1-residual": (128, 16, False, True),
    "layer2": (256, 16, True, False),
    "layer3": (512, 8, True, False),
    "layer3-residual": (512, 4, False, True),
}
"""DavidNet's layers: channels, side in pixels before the pool, pool, residual."""


@pytest.mark.benchmark(group="augment")
@VARIANTS
def test_augment(measure, device, variant):
    count = 50_000 if CUDA else 5_000
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, device=device)

    def make():
        return (
            images,
            torch.randperm(count, device=device)[:BATCH],
            torch.randint(-4, 5, (BATCH, 2), dtype=torch.int32, device=device),
            torch.rand(BATCH, device=device) < 0.5,
            torch.randint(0, 25, (BATCH, 4), dtype=torch.int32, device=device).index_fill_(1, _last_two(device), 8),
            None,
            (125.31, 122.95, 113.87),
            (62.99, 62.09, 66.70),
            HALF,
        )

    measure(variant, kernels.augment_reference, kernels.augment, make, BATCH * 32 * 32 * 3 * (1 + 2))


def _last_two(device):
    return torch.tensor([2, 3], device=device)


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


@pytest.mark.benchmark(group="flat_sgd")
@VARIANTS
def test_flat_sgd_with_average(measure, device, variant):
    size = 6_573_120 if CUDA else 500_000
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

    def with_settings(operation):
        def run(*tensors):
            operation(*tensors, momentum=0.9, weight_decay=5e-4, ema_decay=0.95, ema_every=1)

        return run

    # Weights, velocity and average (float32) read and written, gradient read, compute copy written.
    bytes_moved = size * (3 * 2 * 4 + 2 + 2)
    measure(variant, with_settings(kernels.flat_sgd_reference), with_settings(kernels.flat_sgd), make, bytes_moved)
