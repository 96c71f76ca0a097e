"""A recipe's training step on this device beside what its convolutions alone would take, and beside the loader.

    python -m bench.step                        # DavidNet, in its own batch and compute type; minutes on two CPU cores
    python -m bench.step --recipe speedrun94    # any other recipe, by its name or its TOML file
    python -m bench.step --quick                # a narrower network and smaller batches: seconds

In each round a step, every convolution and an epoch of the loader are timed once, in turn. The ceiling, as this project
defines it, is the sum over the network's convolutions of the best of all rounds of forward, input gradient and weight
gradient, each alone, in the same compute type, layout and batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench.record import add_save_option, append
from bench.reference import synchronise
from fastcifar.data import Loader
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.recipes import get_recipe, quick
from fastcifar.training import Trainer, resolve_device

_PASSES = ("forward", "input", "weight")
_LOADER_BATCHES = 4


@dataclass(frozen=True)
class Result:
    """Seconds, one for each round: of a step, of a batch of the loader, and of each convolution's passes by its name;
    a pass that a step does not need is not there."""

    steps: list[float]
    batches: list[float]
    convolutions: dict[str, dict[str, list[float]]]

    @property
    def ceiling(self) -> float:
        """Seconds that the convolutions of a step take at their best."""
        return sum(min(seconds) for passes in self.convolutions.values() for seconds in passes.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="davidnet", metavar="NAME|FILE.toml")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="auto")
    add_save_option(parser)
    arguments = parser.parse_args()
    try:
        return _measure(arguments)
    except UserError as error:
        parser.error(str(error))


def _measure(arguments: argparse.Namespace) -> int:
    if arguments.rounds < 2:
        raise UserError(f"--rounds is {arguments.rounds}; allowed: 2 or more")
    recipe = get_recipe(arguments.recipe)
    if arguments.quick:
        recipe, _ = quick(recipe)
    device = resolve_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the command line does
    trainer = Trainer(recipe, make_synthetic(_LOADER_BATCHES * recipe.batch_size, 10), device)
    result = measure(trainer, arguments.rounds)

    print(f"{recipe.name}, batch {recipe.batch_size}, {device}, {torch.get_num_threads()} threads, {trainer.dtype}")
    for name, passes in result.convolutions.items():
        best = "  ".join(f"{which} {min(passes[which]) * 1e3:7.1f}" for which in _PASSES if which in passes)
        print(f"  {name:34s} {best} ms")
    print(f"convolutions  {recipe.batch_size / result.ceiling:8.1f} images/s (best of {arguments.rounds} each)")
    command = f"python -m bench.step --recipe {arguments.recipe}" + " --quick" * arguments.quick
    for record in records(result, recipe.name, recipe.batch_size, command):
        print(f"{record['what']}: {record['value']} (n={record['n']}, {record['spread']})")
        if arguments.save:
            append(arguments.save, record, device)
    if device.type == "cpu":
        print(f"neither convolution nor matrix product: {other_share(trainer):.2f} of a step, by torch's profiler")
    return 0


def measure(trainer: Trainer, rounds: int) -> Result:
    """`rounds` rounds, after one that is not timed."""
    step, calls = trainer.step_on_noise(), convolution_calls(trainer)
    steps: list[float] = []
    batches: list[float] = []
    convolutions: dict[str, dict[str, list[float]]] = {name: {which: [] for which in calls[name]} for name in calls}
    recipe, data = trainer.recipe, trainer.dataset
    loader = Loader(data.train, recipe.batch_size, recipe.augment, mean=data.mean, std=data.std, dtype=trainer.dtype)
    for round_number in range(rounds + 1):
        timed = round_number > 0
        _time(step, trainer.device, steps, timed)
        for name, passes in calls.items():
            for which, call in passes.items():
                _time(call, trainer.device, convolutions[name][which], timed)
        _time(lambda: list(loader), trainer.device, batches, timed)
    return Result(steps, [seconds / len(loader) for seconds in batches], convolutions)


def records(result: Result, name: str, batch: int, command: str) -> list[dict[str, object]]:
    """The results as `bench.record.append` takes them."""
    step, ceiling, rounds = statistics.median(result.steps), result.ceiling, len(result.steps)
    shares = [ceiling / seconds for seconds in result.steps]
    rates = [batch / seconds for seconds in result.steps]
    loader = [one / other for one, other in zip(result.batches, result.steps, strict=True)]
    return [
        {
            "what": f"training step of `{name}` against its convolutions alone",
            "value": f"{ceiling / step:.2f} of their rate ({batch / step:.0f} images/s)",
            "n": rounds,
            "spread": f"{min(shares):.2f} to {max(shares):.2f}, {min(rates):.0f} to {max(rates):.0f} images/s",
            "command": command,
            "step_seconds": result.steps,
            "convolution_seconds": ceiling,
        },
        {
            "what": f"loader against the step of `{name}`",
            "value": f"{statistics.median(loader):.2%}",
            "n": rounds,
            "spread": f"{min(loader):.2%} to {max(loader):.2%}",
            "command": command,
            "batch_seconds": result.batches,
        },
    ]


def convolution_calls(trainer: Trainer) -> dict[str, dict[str, Callable[[], object]]]:
    """For each convolution of a training step, by its name, a call for each pass that the step makes: forward, input
    gradient and weight gradient."""
    seen: list[tuple[str, nn.Conv2d, torch.Tensor]] = []
    model, side = trainer.model.train(), trainer.timeline.epochs[-1].stage.size
    hooks = [
        module.register_forward_hook(lambda module, inputs, _, name=name: seen.append((name, module, inputs[0])))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    images = torch.randn(trainer.recipe.batch_size, 3, side, side, device=trainer.device, dtype=trainer.dtype)
    model(images.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return {name: _passes(module, x) for name, module, x in seen}


def _passes(module: nn.Conv2d, inputs: torch.Tensor) -> dict[str, Callable[[], object]]:
    x, weight = inputs.detach(), module.weight.detach()
    where = (list(module.stride), list(module.padding), list(module.dilation))
    gradient = torch.randn_like(torch.conv2d(x, weight, None, *where, module.groups))

    def backward(by_input: bool) -> object:
        mask = [by_input, not by_input, False]
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *where, False, [0, 0], module.groups, mask
        )

    calls: dict[str, Callable[[], object]] = {"forward": lambda: torch.conv2d(x, weight, None, *where, module.groups)}
    if inputs.requires_grad:  # something before it is trained
        calls["input"] = lambda: backward(by_input=True)
    if module.weight.requires_grad:
        calls["weight"] = lambda: backward(by_input=False)
    return calls


def other_share(trainer: Trainer) -> float:
    """The share of a training step's CPU time that is spent in no convolution and no matrix product."""
    products = (
        "aten::mkldnn_convolution",
        "aten::convolution_backward",
        "aten::_slow_conv2d",
        "aten::mm",
        "aten::bmm",
        "aten::addmm",
    )
    step = trainer.step_on_noise()
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return 1 - sum(time for key, time in seconds.items() if key.startswith(products)) / sum(seconds.values())


def _time(call: Callable[[], object], device: torch.device, into: list[float], timed: bool) -> None:
    synchronise(device)
    start = perf_counter()
    call()
    synchronise(device)
    if timed:
        into.append(perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
