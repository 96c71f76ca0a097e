"""The fused operations at the shapes where networks use them, forward and, where they have one, backward.

`bench/test_kernels.py` times them beside their references and what torch.compile makes of those, the campaign's part
`compiled` beside the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from bench.recorded_cases import record_cases
from fastcifar import kernels

MEAN, STD = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)


@dataclass(frozen=True)
class OperationCase:
    """One operation at one shape (see `bench.cases`)."""

    operation: str
    shape: str
    kernel: Callable
    reference: Callable
    make: Callable[[], tuple]
    """Returns fresh arguments; where there is a backward pass, the last is the first result's gradient, None: 1."""
    has_backward: bool = False

    def variant(self, name: str) -> Callable[..., object]:
        """Return what is timed: of "kernel", "reference", or "compiled", what torch.compile makes of the reference."""
        operation = self.kernel if name == "kernel" else self.reference
        if name == "compiled":
            torch.compiler.reset()  # else a second shape of the same function is compiled for shapes of any size
            operation = torch.compile(self.reference, dynamic=False)

        def forward_and_backward(*arguments: object) -> object:
            *arguments, upstream = arguments
            results = operation(*arguments)
            leaves = [tensor for tensor in arguments if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
            return results, torch.autograd.grad(results[0], leaves, upstream)

        return forward_and_backward if self.has_backward else operation

    @cached_property
    def bytes_moved(self) -> int:
        """Read and written by the operators that it calls, each operand and each result once."""
        calls = record_cases(lambda: self.variant("kernel")(*self.make()))
        return sum(case.bytes_moved * case.calls for case in calls)


class Layer(NamedTuple):
    """A place of `norm_act_pool` in a network."""

    channels: int
    side: int  # pixels, before the pool
    pool: bool = False
    residual: bool = False


DAVIDNET = {
    "stem": Layer(64, 32),
    "layer1": Layer(128, 32, pool=True),
    "layer1-residual": Layer(128, 16, residual=True),
    "layer2": Layer(256, 16, pool=True),
    "layer3": Layer(512, 8, pool=True),
    "layer3-residual": Layer(512, 4, residual=True),
}
SPEEDRUN = {
    "block1": Layer(64, 31, pool=True),
    "block1-second": Layer(64, 15),
    "block2": Layer(256, 15, pool=True),
    "block2-second": Layer(256, 7),
    "block3": Layer(256, 7, pool=True),
    "block3-second": Layer(256, 3),
}
WEIGHTS = 6_573_120  # DavidNet's
FILTERS = ((64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304))  # the speedrun network's


def all_cases(device: torch.device, dtype: torch.dtype, tiny: bool) -> Iterator[tuple[str, OperationCase]]:
    """Yield the networks' operations, each with its place; with `tiny` small ones."""
    where = (device, dtype)
    networks = (("davidnet", DAVIDNET, 512, 16, "celu"), ("speedrun", SPEEDRUN, 2000, 1, "gelu"))
    for name, layers, *sizes, activation in networks:
        batch, groups = (8, 2) if tiny else sizes
        for place, layer in layers.items():
            layer = layer._replace(channels=layer.channels // 16) if tiny else layer
            yield f"{name} {place}", norm_act_pool(layer, batch, groups, activation, *where)
        yield name, augment(batch, 256 if tiny else 50_000, *where)
        yield name, cross_entropy(batch, *where)
    yield "davidnet", flat_sgd(10_000 if tiny else WEIGHTS, *where)
    yield "speedrun", flat_muon(FILTERS[:2] if tiny else FILTERS, *where)


def norm_act_pool(
    layer: Layer, batch: int, groups: int, activation: str, device: torch.device, dtype: torch.dtype
) -> OperationCase:
    """Return `norm_act_pool` without scale, forward and backward.

    layer: its place in a network.
    batch: images.
    groups: slices of the batch that are normalized by themselves.
    activation: its name.
    device, dtype: where and in what type the images are.
    """
    channels, side, after = layer.channels, layer.side, layer.side // 2 if layer.pool else layer.side
    constants = {"groups": groups, "activation": activation, "pool": layer.pool}

    def images(side: int) -> torch.Tensor:
        values = torch.randn(batch, channels, side, side, device=device).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def make() -> tuple:
        residual = images(after).requires_grad_() if layer.residual else None
        bias = torch.randn(channels, device=device).requires_grad_()
        return images(side).requires_grad_(), bias, residual, images(after)

    def of(operation: Callable) -> Callable:
        return lambda x, bias, residual: operation(x, bias, residual=residual, **constants)

    kernel, reference = of(kernels.norm_act_pool), of(kernels.norm_act_pool_reference)
    return OperationCase("norm_act_pool", f"{batch}x{channels}x{side}x{side}", kernel, reference, make, True)


def augment(batch: int, count: int, device: torch.device, dtype: torch.dtype) -> OperationCase:
    """Return `augment` with crop, flip and cutout: a batch out of `count` images."""
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, device=device)

    def make() -> tuple:
        indices = torch.randperm(count, device=device)[:batch]
        offsets = torch.randint(-4, 5, (batch, 2), dtype=torch.int32, device=device)
        flips = torch.rand(batch, device=device) < 0.5
        corners = torch.randint(25, (batch, 2), dtype=torch.int32, device=device)
        cutouts = torch.cat([corners, torch.full_like(corners, 8)], dim=1)
        return images, indices, offsets, flips, cutouts, None, MEAN, STD, dtype

    return OperationCase("augment", f"{batch} of {count}x32x32x3", kernels.augment, kernels.augment_reference, make)


def whiten(batch: int, device: torch.device, dtype: torch.dtype) -> OperationCase:
    """Return `whiten` of 2x2 pixels with GELU, without a bias, as the speedrun network calls it."""

    def make() -> tuple:
        images, weight = torch.randn(batch, 3, 32, 32, device=device), torch.randn(24, 3, 2, 2, device=device)
        return tuple(tensor.to(dtype, memory_format=torch.channels_last) for tensor in (images, weight))

    return OperationCase("whiten", f"{batch}x3x32x32", kernels.whiten, kernels.whiten_reference, make)


def cross_entropy(batch: int, device: torch.device, dtype: torch.dtype) -> OperationCase:
    """Return `cross_entropy` with smoothing, ten classes, forward and backward."""

    def make() -> tuple:
        logits = torch.randn(batch, 10, device=device).to(dtype).requires_grad_()
        return logits, torch.randint(10, (batch,), device=device), 0.2, None

    kernel, reference = kernels.cross_entropy, kernels.cross_entropy_reference
    return OperationCase("cross_entropy", f"{batch}x10", kernel, reference, make, True)


def flat_sgd(size: int, device: torch.device, dtype: torch.dtype) -> OperationCase:
    """Return `flat_sgd` with its moving average, on `size` weights."""
    rates, step = torch.full((10,), 0.1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    constants = {"momentum": 0.9, "weight_decay": 5e-4, "ema_decay": 0.95, "ema_every": 1}

    def make() -> tuple:
        weights = torch.randn(size, device=device)
        gradient = torch.randn(size, device=device).to(dtype)
        return weights, gradient, torch.zeros_like(weights), weights.to(dtype), weights.clone(), rates, step

    def of(operation: Callable) -> Callable:
        return lambda *tensors: operation(*tensors, **constants)

    return OperationCase("flat_sgd", f"{size} weights", of(kernels.flat_sgd), of(kernels.flat_sgd_reference), make)


def flat_muon(shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> OperationCase:
    """Return `muon_direction` and `muon_update`, without Newton-Schulz between them and without a moving average, on
    filters of these `shapes`, each of a multiple of 32 elements."""
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
        kernels.muon_update_reference(weights, direction, compute, None, norms, *rest, layout, 0.0, 0.0, 1, None, 0.0)

    return OperationCase("flat_muon", f"{len(shapes)} filters, {size} weights", kernel, reference, make)
