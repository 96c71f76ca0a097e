"""The fused operations at the shapes where networks use them: what to call them with, and what that must move.

`bench/kernels` times them beside their references and what torch.compile makes of those; `bench/recorded_cases.py` has
the operators as a training really calls them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils._triton import has_triton

from fastcifar import kernels

VARIANTS = ("kernel", "reference", "compiled")
MEAN, STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)
_ROTATED_BYTES = 256 << 20
"""More than the L2 cache of any GPU of today, also where half of the bytes are results."""
_MOST_SETS = 200

Results = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One operation at one shape, forward and, where it has one, backward."""

    operation: str
    shape: str
    reference: Callable
    kernel: Callable
    make: Callable[[], tuple]
    """Fresh arguments: tensors, None, numbers and the type of a result."""
    use: Callable[..., Results]
    """`use(operation, *arguments)`: what is timed; the results, those in place included."""
    bytes_moved: int
    """Read and written, at the least."""

    def variant(self, name: str) -> Callable:
        """The operation by its name in `VARIANTS`; compiled: what torch.compile makes of the reference."""
        if name == "compiled":
            torch.compiler.reset()  # else a second shape of the same function is compiled for shapes of any size
            return torch.compile(self.reference, dynamic=False)
        return self.reference if name == "reference" else self.kernel

    def argument_sets(self, device: torch.device) -> list[tuple]:
        """Arguments to be used in turn."""
        return [self.make() for _ in range(count_sets(self.bytes_moved, device))]


def count_sets(bytes_moved: int, device: torch.device) -> int:
    """How many sets of arguments are used in turn where an operation that moves so much is timed: one; on CUDA as many
    as a cache does not hold, but `_MOST_SETS` at most."""
    return min(1 + _ROTATED_BYTES // max(1, bytes_moved), _MOST_SETS) if device.type == "cuda" else 1


def lacking_for_compile(device: torch.device) -> str | None:
    """What torch.compile would need and this machine lacks."""
    if device.type == "cpu":
        compilers = (os.environ.get("CXX"), "g++", "c++", "clang++")
        return None if any(name and shutil.which(name) for name in compilers) else "a C++ compiler"
    return None if has_triton() else "Triton"


@dataclass(frozen=True)
class Layer:
    """A place of `norm_act_pool` in a network."""

    channels: int
    side: int
    """Pixels, before the pool."""
    pool: bool = False
    residual: bool = False


@dataclass(frozen=True)
class Network:
    """What the shapes of a network's operations follow from."""

    batch: int
    groups: int
    activation: str
    layers: dict[str, Layer]


NETWORKS = {
    "davidnet": Network(
        *(512, 512 // 32, "celu"),
        {
            "stem": Layer(64, 32),
            "layer1": Layer(128, 32, pool=True),
            "layer1-residual": Layer(128, 16, residual=True),
            "layer2": Layer(256, 16, pool=True),
            "layer3": Layer(512, 8, pool=True),
            "layer3-residual": Layer(512, 4, residual=True),
        },
    ),
    "speedrun": Network(
        *(2000, 1, "gelu"),
        {
            "block1": Layer(64, 31, pool=True),
            "block1-second": Layer(64, 15),
            "block2": Layer(256, 15, pool=True),
            "block2-second": Layer(256, 7),
            "block3": Layer(256, 7, pool=True),
            "block3-second": Layer(256, 3),
        },
    ),
}
WEIGHTS = 6_573_120
"""DavidNet's."""
FILTERS = ((64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304))
"""The speedrun network's, as matrices."""


def norm_act_pool(
    layer: Layer, batch: int, groups: int, activation: str, device: torch.device, dtype: torch.dtype
) -> Case:
    """`norm_act_pool` without scale, forward and backward."""
    channels, side, after = layer.channels, layer.side, layer.side // 2 if layer.pool else layer.side

    def images(side: int) -> torch.Tensor:
        values = torch.randn(batch, channels, side, side, device=device).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def make() -> tuple:
        residual = images(after).requires_grad_() if layer.residual else None
        bias = torch.randn(channels, device=device).requires_grad_()
        return images(side).requires_grad_(), bias, residual, images(after)

    def use(operation, x, bias, residual, upstream) -> Results:
        out, mean, var = operation(
            x, bias, None, groups=groups, activation=activation, pool=layer.pool, residual=residual
        )
        leaves = [x, bias] if residual is None else [x, bias, residual]
        return out.detach(), mean, var, *torch.autograd.grad(out, leaves, upstream)

    # As kernels/norm_act_pool counts them. Forward: the input once for pool and statistics, the pooled once for the
    # rest, its output; backward: the incoming gradient and the pooled twice (sums, then the result), the result; with a
    # pool the pooled is written, and its argmax, a byte, written and read; a residual is read, its gradient is the
    # incoming one.
    large, small = batch * channels * side * side, batch * channels * after * after
    moved = dtype.itemsize * (2 * large + 6 * small + (layer.pool + layer.residual) * small) + 2 * layer.pool * small
    shape = f"{batch}x{channels}x{side}x{side}"
    return Case("norm_act_pool", shape, kernels.norm_act_pool_reference, kernels.norm_act_pool, make, use, moved)


def augment(batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Case:
    """`augment` with crop, flip and cutout: a batch out of `count` images."""
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, device=device)

    def make() -> tuple:
        corners = torch.randint(25, (batch, 2), dtype=torch.int32, device=device)
        return (
            images,
            torch.randperm(count, device=device)[:batch],
            torch.randint(-4, 5, (batch, 2), dtype=torch.int32, device=device),
            torch.rand(batch, device=device) < 0.5,
            torch.cat([corners, torch.full_like(corners, 8)], dim=1),
            None,
            MEAN,
            STD,
            dtype,
        )

    def use(operation, *arguments) -> Results:
        return (operation(*arguments),)

    moved = batch * 32 * 32 * 3 * (1 + dtype.itemsize)
    return Case("augment", f"{batch} of {count}x32x32x3", kernels.augment_reference, kernels.augment, make, use, moved)


def whiten(batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """`whiten` of 2x2 pixels with GELU, without a bias, as the speedrun network calls it."""

    def make() -> tuple:
        images, weight = torch.randn(batch, 3, 32, 32, device=device), torch.randn(24, 3, 2, 2, device=device)
        return tuple(tensor.to(dtype, memory_format=torch.channels_last) for tensor in (images, weight))

    def use(operation, *arguments) -> Results:
        return (operation(*arguments),)

    moved = batch * (3 * 32 * 32 + 24 * 31 * 31) * dtype.itemsize
    return Case("whiten", f"{batch}x3x32x32", kernels.whiten_reference, kernels.whiten, make, use, moved)


def cross_entropy(batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    """`cross_entropy` with smoothing, ten classes, forward and backward."""

    def make() -> tuple:
        logits = torch.randn(batch, 10, device=device).to(dtype).requires_grad_()
        return logits, torch.randint(10, (batch,), device=device)

    def use(operation, logits, labels) -> Results:
        loss, correct = operation(logits, labels, 0.2)
        return loss.detach(), correct, *torch.autograd.grad(loss, logits)

    # Logits are read, their gradient written, labels read.
    moved = batch * (2 * 10 * dtype.itemsize + 8)
    return Case(
        "cross_entropy", f"{batch}x10", kernels.cross_entropy_reference, kernels.cross_entropy, make, use, moved
    )


def flat_sgd(size: int, device: torch.device, dtype: torch.dtype) -> Case:
    """`flat_sgd` with its moving average, on `size` weights."""
    rates, step = torch.full((10,), 0.1, device=device), torch.zeros(1, dtype=torch.int64, device=device)

    def make() -> tuple:
        weights = torch.randn(size, device=device)
        gradient = torch.randn(size, device=device).to(dtype)
        return weights, gradient, torch.zeros_like(weights), weights.to(dtype), weights.clone(), rates, step

    def use(operation, *tensors) -> Results:
        operation(*tensors, momentum=0.9, weight_decay=5e-4, ema_decay=0.95, ema_every=1)
        return tensors[0], *tensors[2:5]  # all that are floating point but the gradient and the rates

    # Weights, velocity and average (float32) read and written, gradient read, compute copy written.
    moved = size * (3 * 2 * 4 + 2 * dtype.itemsize)
    return Case("flat_sgd", f"{size} weights", kernels.flat_sgd_reference, kernels.flat_sgd, make, use, moved)


def flat_muon(shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> Case:
    """`muon_direction` and `muon_update`, without Newton-Schulz between them, on filters of these `shapes`, each of a
    multiple of 32 elements, without a moving average."""
    layout, size = [], 0
    for rows, columns in shapes:
        layout += [size, rows, columns, size, columns]
        size += rows * columns
    rates, step = torch.full((10,), 0.1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    normalize = torch.ones(10, dtype=torch.bool, device=device)

    def make() -> tuple:
        weights = torch.randn(size, device=device)
        gradient, direction = torch.randn(size, device=device).to(dtype), torch.zeros(size, dtype=dtype, device=device)
        return weights, gradient, torch.zeros_like(weights), direction, direction.clone(), rates, normalize, step

    def kernel(weights, gradient, velocity, direction, compute, *rest) -> None:
        norms = kernels.muon_direction(weights, gradient, velocity, direction, layout, momentum=0.6)
        kernels.muon_update(weights, direction, compute, None, norms, *rest, layout)

    def reference(weights, gradient, velocity, direction, compute, *rest) -> None:
        norms = kernels.muon_direction_reference(weights, gradient, velocity, direction, layout, 0.6)
        kernels.muon_update_reference(weights, direction, compute, None, norms, *rest, layout, 0.0, 0.0, 1)

    def use(operation, *tensors) -> Results:
        operation(*tensors)
        return tensors[0], *tensors[2:5]

    # As kernels/flat_muon.py counts them.
    moved = size * (24 + 5 * dtype.itemsize)
    return Case("flat_muon", f"{len(shapes)} filters, {size} weights", reference, kernel, make, use, moved)
