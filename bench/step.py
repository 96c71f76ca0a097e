"""Time a recipe's training step on this device beside its convolutions alone, and beside the loader.

    python -m bench.step                        # DavidNet, in its own batch and compute type; minutes on two CPU cores
    python -m bench.step --recipe speedrun94    # any other recipe, by its name or its TOML file
    python -m bench.step --quick                # a narrower network and smaller batches: seconds

In each round a step, every convolution and an epoch of the loader are timed once, in turn. The ceiling, as this project
defines it, is the sum over the network's convolutions of the best of all rounds of forward, input gradient and weight
gradient, each alone, as torch computes them in the same compute type, layout and batch. On a CPU a step has kernels
of its own for them (kernels/conv3x3.py) and can be above it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.convolutions import PASSES, convolutions
from bench.program import new_recipe_parser, recipe_of, run_program
from bench.record import show
from bench.timing import Work, seconds_of, synchronize
from fastcifar.data import Loader
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.kernels.operators import PRODUCTS
from fastcifar.training import Trainer, resolve_device
from fastcifar.training.rehearse import step_on_noise

_LOADER_BATCHES = 4


@dataclass(frozen=True)
class Result:
    """Seconds, one for each round."""

    steps: list[float]
    batches: list[float]  # the loader's, for a batch
    convolutions: dict[str, dict[str, list[float]]]
    """`convolutions[name][pass]`; a pass that a step does not need is not there."""

    @property
    def ceiling(self) -> float:
        """The seconds of a step's convolutions at their best."""
        return sum(min(seconds) for passes in self.convolutions.values() for seconds in passes.values())


def main() -> int:
    parser = new_recipe_parser("bench.step", __doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        raise UserError(f"--rounds is {arguments.rounds}; allowed: 2 or more")
    recipe = recipe_of(arguments)
    device = resolve_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the command line does
    trainer = Trainer(recipe, make_synthetic(_LOADER_BATCHES * recipe.batch_size, 10), device)
    result = measure(trainer, arguments.rounds)

    print(f"{recipe.name}, batch {recipe.batch_size}, {device}, {torch.get_num_threads()} threads, {trainer.dtype}")
    for name, passes in result.convolutions.items():
        best = "  ".join(f"{which} {min(passes[which]) * 1e3:7.1f}" for which in PASSES if which in passes)
        print(f"  {name:34s} {best} ms")
    print(f"convolutions  {recipe.batch_size / result.ceiling:8.1f} images/s (best of {arguments.rounds} each)")
    command = f"python -m bench.step --recipe {arguments.recipe}" + " --quick" * arguments.quick
    for record in records(result, recipe.name, recipe.batch_size, command):
        show(record, arguments.save, device)
    if device.type == "cpu":
        print(f"neither convolution nor matrix product: {other_share(trainer):.2f} of a step, by torch's profiler")
    return 0


def measure(trainer: Trainer, rounds: int) -> Result:
    """Time `rounds` rounds, after one that is not timed."""
    recipe, data = trainer.recipe, trainer.dataset
    loader = Loader(data.train, recipe.batch_size, recipe.augment, mean=data.mean, std=data.std, dtype=trainer.dtype)
    found = convolutions(trainer)
    result = Result([], [], {one.name: {which: [] for which in one.passes} for one in found})
    work: list[tuple[Work, list[float]]] = [(step_on_noise(trainer), result.steps)]
    work += [(call, result.convolutions[one.name][which]) for one in found for which, call in one.passes.items()]
    work.append((lambda: list(loader), result.batches))
    for call, _ in work:
        call()
    for _ in range(rounds):
        for call, seconds in work:
            seconds.append(seconds_of(call, trainer.device))
    result.batches[:] = [seconds / len(loader) for seconds in result.batches]
    return result


def records(result: Result, name: str, batch: int, command: str) -> list[dict[str, object]]:
    """Return the results as `bench.record.append` takes them.

    result: what was measured.
    name: the recipe's.
    batch: images of a step.
    command: the command line that measured.
    """
    step, ceiling = statistics.median(result.steps), result.ceiling
    shares = [ceiling / seconds for seconds in result.steps]
    rates = [batch / seconds for seconds in result.steps]
    loader = [one / other for one, other in zip(result.batches, result.steps, strict=True)]
    common = {"n": len(result.steps), "command": command}
    return [
        {
            "what": f"training step of `{name}` against its convolutions alone",
            "value": f"{ceiling / step:.2f} of their rate ({batch / step:.0f} images/s)",
            "spread": f"{min(shares):.2f} to {max(shares):.2f}, {min(rates):.0f} to {max(rates):.0f} images/s",
            **common,
            "step_seconds": result.steps,
            "convolution_seconds": ceiling,
        },
        {
            "what": f"loader against the step of `{name}`",
            "value": f"{statistics.median(loader):.2%}",
            "spread": f"{min(loader):.2%} to {max(loader):.2%}",
            **common,
            "batch_seconds": result.batches,
        },
    ]


def other_share(trainer: Trainer) -> float:
    """Return the share of a training step's CPU time that is spent in no convolution and no matrix product."""
    convolutions = ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::_slow_conv2d")
    ours = (f"fastcifar::{name}" for name in PRODUCTS)
    products = (*convolutions, "aten::mm", "aten::bmm", "aten::addmm", *ours)
    rows = profile_step(step_on_noise(trainer), trainer.device)
    in_products = sum(row["ms"] for row in rows if row["name"].startswith(products))
    return 1 - in_products / sum(row["ms"] for row in rows)


def profile_step(step: Work, device: torch.device, repeats: int = 1) -> list[dict[str, Any]]:
    """Return `name`, `calls` and `ms` of each kernel in a step, on a CPU of each operation, the longest first."""
    step()
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
        for _ in range(repeats):
            step()
        synchronize(device)
    rows = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if microseconds > 0 and (not on_cuda or event.device_type == torch.autograd.DeviceType.CUDA):
            ms = round(microseconds / 1000 / repeats, 5)
            rows.append({"name": event.key[:120], "calls": event.count / repeats, "ms": ms})
    return sorted(rows, key=lambda row: -row["ms"])


if __name__ == "__main__":
    run_program("bench.step", main)
