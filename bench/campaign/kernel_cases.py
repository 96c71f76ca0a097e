"""Part `kernels`: each fused operation right against float64, then fast beside its reference and torch.compile's."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench.campaign.campaign import Campaign, Record, seconds_per_call
from bench.campaign.environment import copy_rate
from fastcifar import kernels
from fastcifar.training.device import resolve_dtype

_ROTATED_BYTES = 256 << 20
"""Inputs are rotated over more than any GPU's L2 cache holds."""

Tensors = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Case:
    """One operation at one shape, both passes: `make` gives its tensors, `reference` and `kernel` turn them into the
    tensors to compare."""

    operation: str
    shape: str
    make: Callable[[], Tensors]
    reference: Callable[..., Tensors]
    kernel: Callable[..., Tensors]
    bytes_moved: int


_NORMS = {
    # images per batch, channels, side before the pool, pool, residual, images per group, activation
    "davidnet stem": (512, 64, 32, False, False, 32, "celu"),
    "davidnet layer 1": (512, 128, 32, True, False, 32, "celu"),
    "davidnet layer 1, residual": (512, 128, 16, False, True, 32, "celu"),
    "davidnet layer 2": (512, 256, 16, True, False, 32, "celu"),
    "davidnet layer 3": (512, 512, 8, True, False, 32, "celu"),
    "davidnet layer 3, residual": (512, 512, 4, False, True, 32, "celu"),
    "speedrun block 1": (2000, 64, 31, True, False, 2000, "gelu"),
    "speedrun block 1, second": (2000, 64, 15, False, False, 2000, "gelu"),
    "speedrun block 2": (2000, 256, 15, True, False, 2000, "gelu"),
    "speedrun block 2, second": (2000, 256, 7, False, False, 2000, "gelu"),
    "speedrun block 3": (2000, 256, 7, True, False, 2000, "gelu"),
    "speedrun block 3, second": (2000, 256, 3, False, False, 2000, "gelu"),
}


def kernel_cases(campaign: Campaign) -> Iterator[Record]:
    """Correctness of all cases first, then speed: the largest tensors first, since they carry the time."""
    cases = sorted(_cases(campaign), key=lambda case: -case.bytes_moved)
    for case in cases:
        yield {"what": "error", "operation": case.operation, "shape": case.shape, **_errors(case)}
    bandwidth = copy_rate(campaign)["rate"]
    for case in cases:
        if campaign.seconds_left < 0:
            return
        yield {"what": "speed", "operation": case.operation, "shape": case.shape, **_speed(campaign, case, bandwidth)}


def _cases(campaign: Campaign) -> Iterator[Case]:
    device, dtype = campaign.device, resolve_dtype("auto", campaign.device)

    def images(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)

    for name, (batch, channels, side, pool, residual, group, activation) in _NORMS.items():
        if campaign.tiny:
            batch, channels, group = 8, channels // 16, 4
        yield _norm_case(name, batch, channels, side, pool, residual, batch // group, activation, images)
    for name, batch in {"davidnet": 512, "speedrun": 2000}.items():
        batch = 16 if campaign.tiny else batch
        yield _augment_case(name, batch, 256 if campaign.tiny else 50_000, device, dtype)
        yield _loss_case(name, batch, device, dtype)
    yield _optimizer_case(10_000 if campaign.tiny else 6_573_120, device, dtype)


def _norm_case(name, batch, channels, side, pool, residual, groups, activation, images) -> Case:
    after = side // 2 if pool else side
    large, small = batch * channels * side * side, batch * channels * after * after

    def make() -> Tensors:
        x = images(batch, channels, side, side)
        bias = torch.randn(channels, device=x.device)
        return (
            x,
            bias,
            images(batch, channels, after, after) if residual else None,
            images(batch, channels, after, after),
        )

    def both(operation) -> Callable[..., Tensors]:
        def run(x, bias, added, upstream) -> Tensors:
            leaves = [tensor.detach().requires_grad_() for tensor in (x, bias, added) if tensor is not None]
            with torch.enable_grad():
                out, mean, var = operation(
                    *leaves[:2],
                    None,
                    groups=groups,
                    activation=activation,
                    pool=pool,
                    residual=leaves[2] if residual else None,
                )
                return (out.detach(), mean, var, *torch.autograd.grad(out, leaves, upstream))

        return run

    # Forward: the input for pool and statistics, the pooled for the rest, the output; backward: gradient and pooled
    # twice each, the result; the pool's argmax, a byte, both ways; a residual is read, its gradient is the upstream's.
    size = 2
    moved = size * (large + 2 * small) + size * (4 * small + large) + (2 * small if pool else 0)
    moved += size * small if residual else 0
    shape = f"{name}: {batch}x{channels}x{side}x{side}"
    return Case("norm_act_pool", shape, make, both(kernels.norm_act_pool_reference), both(kernels.norm_act_pool), moved)


def _augment_case(name: str, batch: int, count: int, device: torch.device, dtype: torch.dtype) -> Case:
    everything = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, device=device)

    def make() -> Tensors:
        corners = torch.randint(25, (batch, 2), dtype=torch.int32, device=device)
        return (
            torch.randperm(count, device=device)[:batch],
            torch.randint(-4, 5, (batch, 2), dtype=torch.int32, device=device),
            torch.rand(batch, device=device) < 0.5,
            torch.cat([corners, torch.full_like(corners, 8)], dim=1),
        )

    def one(operation) -> Callable[..., Tensors]:
        def run(indices, offsets, flips, cutouts, out_dtype=dtype) -> Tensors:
            mean, std = (125.31, 122.95, 113.87), (62.99, 62.09, 66.70)
            return (operation(everything, indices, offsets, flips, cutouts, None, mean, std, out_dtype),)

        return run

    shape = f"{name}: {batch} of {count}x32x32x3"
    moved = batch * 32 * 32 * 3 * (1 + 2)
    return Case("augment", shape, make, one(kernels.augment_reference), one(kernels.augment), moved)


def _loss_case(name: str, batch: int, device: torch.device, dtype: torch.dtype) -> Case:
    def make() -> Tensors:
        return torch.randn(batch, 10, device=device).to(dtype), torch.randint(10, (batch,), device=device)

    def both(operation) -> Callable[..., Tensors]:
        def run(logits, labels) -> Tensors:
            logits = logits.detach().requires_grad_()
            with torch.enable_grad():
                loss, *rest = operation(logits, labels, 0.2)
                return (loss.detach(), *rest, *torch.autograd.grad(loss, logits))

        return run

    moved = batch * (2 * 2 * 10 + 8)
    return Case(
        "cross_entropy",
        f"{name}: {batch}x10",
        make,
        both(kernels.cross_entropy_reference),
        both(kernels.cross_entropy),
        moved,
    )


def _optimizer_case(size: int, device: torch.device, dtype: torch.dtype) -> Case:
    rates, step = torch.full((10,), 0.1, device=device), torch.zeros(1, dtype=torch.int64, device=device)

    def make() -> Tensors:
        weights = torch.randn(size, device=device)
        gradient = torch.randn(size, device=device).to(dtype)
        return weights, gradient, torch.zeros_like(weights), weights.to(dtype), weights.clone()

    def update(operation) -> Callable[..., Tensors]:
        def run(*tensors) -> Tensors:
            operation(*tensors, rates, step, momentum=0.9, weight_decay=5e-4, ema_decay=0.95, ema_every=1)
            return (tensors[0], *tensors[2:])

        return run

    moved = size * (3 * 2 * 4 + 2 + 2)
    return Case(
        "flat_sgd", f"{size} weights", make, update(kernels.flat_sgd_reference), update(kernels.flat_sgd), moved
    )


def _errors(case: Case) -> Record:
    """||kernel - reference|| / ||reference|| of every result, the reference being computed in float64 from the same
    values; the largest first."""
    inputs = case.make()
    wide = [_widened(tensor) for tensor in inputs]
    arguments = {"out_dtype": torch.float64} if case.operation == "augment" else {}
    expected = case.reference(*wide, **arguments)
    found = case.kernel(*[tensor if tensor is None else tensor.clone() for tensor in inputs])
    errors = [_relative(a, b) for a, b in zip(found, expected, strict=True)]
    return {"relative_errors": errors, "worst": max(errors)}


def _widened(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def _speed(campaign: Campaign, case: Case, bandwidth: float) -> Record:
    """Seconds of each variant and its share of the copy bandwidth."""
    count = 1 if campaign.device.type == "cpu" else 2 + _ROTATED_BYTES // case.bytes_moved
    turn = itertools.cycle([case.make() for _ in range(min(count, 200))])
    compiles = campaign.device.type == "cuda" or (shutil.which("c++") and not campaign.tiny)
    variants = {"kernel": case.kernel, "reference": case.reference}
    if compiles:
        torch._dynamo.reset()
        variants["compiled"] = torch.compile(case.reference)
    record: Record = {"bytes": case.bytes_moved}
    for variant, call in variants.items():
        calls = 2 if campaign.tiny else 20
        try:
            seconds = seconds_per_call(lambda call=call: call(*next(turn)), campaign.device, calls, repeats=5)
        except Exception as error:  # a compiler that fails on one reference must not end the part
            record[variant] = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
            continue
        share = case.bytes_moved / seconds / bandwidth
        record[variant] = {"seconds": seconds, "share_of_copy": round(share, 4)}
    return record
