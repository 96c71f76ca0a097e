"""The full DavidNet step on this device beside what its convolutions alone would take, and beside the loader.

    python -m bench.step            # batch 512, the recipe's own compute type; about a minute on two CPU cores
    python -m bench.step --tiny     # the same path at an eighth of the width and batch 32: seconds

The ceiling, as this project defines it: the sum over the network's convolutions of the best of 5 of forward, input
gradient and weight gradient, each alone, in the same compute type, layout and batch, in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fastcifar.data import Loader
from fastcifar.data.synthetic import make_synthetic
from fastcifar.kernels import keep_freed_memory
from fastcifar.recipes import get_recipe
from fastcifar.training import Trainer, resolve_device

_BEST_OF = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    recipe = get_recipe("davidnet")
    if arguments.tiny:
        narrow = tuple(width // 8 for width in recipe.model.widths)
        recipe = dataclasses.replace(recipe, batch_size=32, model=dataclasses.replace(recipe.model, widths=narrow))
    trainer = Trainer(recipe, make_synthetic(4 * recipe.batch_size, 10), resolve_device(arguments.device))
    batch = recipe.batch_size
    if trainer.device.type == "cpu":
        keep_freed_memory()  # as the command line does

    steps = step_seconds(trainer, arguments.steps)
    convolutions = convolution_seconds(trainer)
    loader = loader_seconds(trainer)
    step, ceiling = statistics.median(steps), sum(sum(times) for _, times in convolutions)
    print(f"davidnet, batch {batch}, {trainer.device}, {torch.get_num_threads()} threads, {trainer.dtype}")
    for name, times in convolutions:
        print(
            f"  {name:28s} forward {times[0] * 1e3:7.1f}  input {times[1] * 1e3:7.1f}  weight {times[2] * 1e3:7.1f} ms"
        )
    spread = f"n={len(steps)}, {batch / max(steps):.1f} to {batch / min(steps):.1f}"
    print(f"step          {batch / step:8.1f} images/s (median, {spread})")
    print(f"convolutions  {batch / ceiling:8.1f} images/s (best of {_BEST_OF} each)")
    print(f"step / convolutions {ceiling / step:.2f}")
    print(f"loader / step {loader / step:.4f}")
    if trainer.device.type == "cpu":
        print(f"neither convolution nor matrix product {other_share(trainer):.2f} of a step, by torch's profiler")
    return 0


def step_seconds(trainer: Trainer, steps: int) -> list[float]:
    """Seconds of each of `steps` training steps on random images, after one untimed."""
    step = trainer.step_on_noise()
    return [_seconds(step, trainer.device) for _ in range(steps + 1)][1:]


def convolution_seconds(trainer: Trainer) -> list[tuple[str, tuple[float, float, float]]]:
    """For each convolution of a training step: its name, and the best seconds of forward, input and weight gradient; 0
    for a gradient that the step does not need."""
    calls: list[tuple[str, nn.Conv2d, torch.Tensor]] = []
    model = trainer.model.train()
    hooks = [
        module.register_forward_hook(lambda module, args, _, name=name: calls.append((name, module, args[0].detach())))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    images = torch.randn(trainer.recipe.batch_size, 3, 32, 32, device=trainer.device, dtype=trainer.dtype)
    with torch.no_grad():
        model(images.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    results, trained_before = [], False
    for name, module, x in calls:
        weight = module.weight.detach()
        trained = module.weight.requires_grad
        out = torch.conv2d(x, weight, padding=module.padding)
        grad = torch.randn_like(out)

        def backward(mask: list[bool], grad=grad, x=x, weight=weight, padding=module.padding) -> None:
            torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, [*mask, False]
            )

        def best(call: Callable[[], object]) -> float:
            return min(_seconds(call, trainer.device) for _ in range(_BEST_OF))

        forward = best(lambda x=x, weight=weight, padding=module.padding: torch.conv2d(x, weight, padding=padding))
        by_input = best(lambda: backward([True, False])) if trained_before else 0.0
        by_weight = best(lambda: backward([False, True])) if trained else 0.0
        trained_before |= trained
        results.append((name, (forward, by_input, by_weight)))
    return results


def other_share(trainer: Trainer) -> float:
    """The share of a training step's CPU time that is spent in no convolution and no matrix product."""
    products = (
        "aten::mkldnn_convolution",
        "aten::convolution_backward",
        "aten::_slow_conv2d",
        "aten::mm",
        "aten::addmm",
    )
    step = trainer.step_on_noise()
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return 1 - sum(time for key, time in seconds.items() if key.startswith(products)) / sum(seconds.values())


def loader_seconds(trainer: Trainer) -> float:
    """Seconds that the loader takes for one batch: the median over an epoch, its plan included."""
    recipe, data = trainer.recipe, trainer.dataset
    loader = Loader(data.train, recipe.batch_size, recipe.augment, mean=data.mean, std=data.std, dtype=trainer.dtype)
    batches = len(loader)
    return statistics.median(_seconds(lambda: list(loader), trainer.device) / batches for _ in range(5))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
