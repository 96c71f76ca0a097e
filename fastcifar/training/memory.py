"""Running out of memory, told in a line: where, on which device, how much was asked for and free, what to try."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import TYPE_CHECKING

import torch

from fastcifar.errors import OutOfMemory, as_out_of_memory
from fastcifar.machine import GIB, UNITS, free_memory, size_words, total_memory
from fastcifar.recipes.declare import declaration

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

_OTHERS = 2 * GIB
"""A GPU's memory in use by more than this process's tensors and its CUDA context: other processes have it."""


def out_of_memory(error: BaseException, trainer: Trainer | None) -> OutOfMemory:
    """Return the error to raise in place of `error`, by which memory ran out in a method of `trainer`, which may not be
    whole yet; None: before there was one."""
    if trainer is None or not hasattr(trainer, "recipe"):
        return as_out_of_memory(error)
    recipe, phase = trainer.recipe, trainer.phases.failed
    device: torch.device | None = getattr(trainer, "device", None)
    asked = re.search(rf"allocate ([\d.]+) ?({'|'.join(UNITS)})", str(error))
    facts = [f"{size_words(float(asked[1]) * UNITS[asked[2]])} more were asked for"] if asked else []
    tries, others = _tries(trainer, phase), 0
    if device and device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # a device that does not answer any more
            free, total = torch.cuda.mem_get_info(device)
            facts.append(f"{size_words(free)} of {size_words(total)} are free")
            others = total - free - torch.cuda.memory_reserved(device)
    elif free := free_memory():
        facts.append(f"{size_words(free)} of {size_words(total_memory() or free)} are free")
    if others > _OTHERS:
        tries.append(f"to end other processes on this GPU, which have {size_words(others)}")
    sizes = f"batch_size is {recipe.batch_size}, evaluate.batch_size {recipe.evaluate.batch_size}"
    place = f"{device or 'the device'} {_where(trainer, phase)}"
    return OutOfMemory(f"out of memory on {place}: {', '.join([*facts, sizes])}; allowed: {', '.join(tries)}")


def _where(trainer: Trainer, phase: str | None) -> str:
    state = getattr(trainer, "state", None)
    if phase == "training: steps" and state is not None:
        return f"at step {state.step + 1} of {trainer.total_steps}"
    if phase is None:
        return f"after step {state.step} of {trainer.total_steps}" if state is not None else "in data and settings"
    return f"in {phase.removeprefix('training: ')}"


def _tries(trainer: Trainer, phase: str | None) -> list[str]:
    """Return what would take less memory in `phase`, the most helpful first."""
    recipe, network = trainer.recipe, trainer.recipe.network
    tries = []
    if phase not in ("evaluation", "training: whitening", "model and optimizer"):
        tries.append(f"a batch_size below {recipe.batch_size}")
    if phase in ("evaluation", "warm-up", "kernel compilation"):
        tries.append(f"an evaluate.batch_size below {recipe.evaluate.batch_size}")
    if phase == "training: whitening" and (images := getattr(network, "whitening_images", 0)):
        tries.append(f"network.whitening_images below {images}")
    if getattr(trainer, "dtype", None) == torch.float32:
        tries.append("dtype float16" if trainer.device.type == "cuda" else "dtype bfloat16")
    if getattr(trainer, "own_model", None) is not None:
        return [*tries, "a smaller model"]
    widths = [f"network.{field.name}" for field in dataclasses.fields(network) if declaration(field).width]
    return [*tries, *(f"a smaller {name}" for name in widths or ["network"])]
