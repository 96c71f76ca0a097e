"""A recipe's training step at growing batch sizes: images per second and memory, up to the size that no longer fits.

A step is that of the recipe's last stage, on random images, so that no data set limits the batch: on CUDA captured and
replayed, as a training's. Memory is what the process takes at most, from the making of the network to the last step,
beyond what it had before the first size: on CUDA as torch allocates it, on a CPU as the system has it resident, after a
first step that loads the libraries. It includes the step's images; a training also holds all others, and evaluates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastcifar.costs.flops import count_recipe
from fastcifar.data.synthetic import make_noise
from fastcifar.errors import OutOfMemory, UserError
from fastcifar.host import TORCH
from fastcifar.kernels import give_back_freed_memory
from fastcifar.machine import free_memory, peak_memory, resident_memory, restart_peak, size_words
from fastcifar.recipes import Recipe
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.record import Versions
from fastcifar.training import Stopwatch, Trainer, describe_device, resolve_device
from fastcifar.training.device import cudnn_search, current
from fastcifar.training.failures import told
from fastcifar.training.rehearse import repeated_step

GROUPS = 5
"""Timed groups of steps of a size; the median of their rates counts."""
_LONGEST = 2.0
"""Seconds that a group of more than one step may take."""
_WARM_UP = 3
_COUNT = Declaration(at_least=1)
_NEAR = 0.01
"""How near the largest size is found, as a share of it."""


@dataclass(frozen=True)
class Size:
    """What was measured at one batch size."""

    batch_size: int
    steps: int
    """Steps of a group."""
    seconds: tuple[float, ...]
    """Of a step, the mean of each group."""
    memory: int
    """Bytes."""
    dtype: str
    not_captured: str | None
    """Why the step is not replayed from a CUDA graph; None: it is."""

    @property
    def rates(self) -> list[float]:
        """Images per second of each group."""
        return [self.batch_size / each for each in self.seconds]

    @property
    def rate(self) -> float:
        """Images per second: the median of the groups."""
        return statistics.median(self.rates)

    def to_json(self) -> dict[str, Any]:
        """Return it as data, ready for JSON."""
        spread = {"images_per_second": self.rate, "least": min(self.rates), "most": max(self.rates)}
        return {**dataclasses.asdict(self), **spread, "n": len(self.seconds)}


class Throughput:
    """Measures a recipe size by size.

    recipe: its batch size is replaced; smaller batches of early epochs and of an epoch's end are left out.
    device: as `Trainer` takes it.
    classes, side: of the images.
    memory: bytes that a size may take; None: on CUDA what there is, on a CPU half of what is free.
    steps: of a timed group, at most; fewer where they would take more than two seconds.

    `sizes` are those measured so far, `left_out` those that the recipe cannot have, with the reason; `ended` says why
    the next one, `too_large`, does not fit (None: nothing said so). Raises UserError for a recipe that does not fit the
    images, and without `memory` on a CPU where what is free is not known.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: str | torch.device = "auto",
        *,
        classes: int = 10,
        side: int = 32,
        memory: int | None = None,
        steps: int = 20,
    ) -> None:
        classes, side = checked("classes", classes, int, _COUNT), checked("side", side, int, _COUNT)
        recipe.refuse_side(side)
        if recipe.loading.loader != "resident":
            said = f"loading.loader is {recipe.loading.loader}, and steps are timed on images that are on the device"
            raise UserError(f"{said}; allowed: resident")
        self.recipe, self.device, self.classes, self.side = recipe, resolve_device(device), classes, side
        self.steps, self.facts = checked("steps", steps, int, _COUNT), describe_device(self.device)
        self._on_cuda = self.device.type == "cuda"
        if memory is None and not self._on_cuda:
            free = free_memory()
            if free is None:
                raise UserError(
                    "memory is not given, and what is free is not known here; allowed: a size (--memory 4GiB)"
                )
            memory = free // 2
        self.memory = memory
        self.memory_is = "allocated on the device" if self._on_cuda else "resident"
        if not self._on_cuda and not restart_peak():
            self.memory_is = "activations, counted"  # no peak to be had: at least these
        self.sizes: list[Size] = []
        self.left_out: dict[int, str] = {}
        self.ended: str | None = None
        self.too_large: int | None = None
        self._clear()
        self._before = torch.cuda.memory_allocated(self.device) if self._on_cuda else None

    def measure(self, first: int = 1, last: int | None = None) -> Iterator[Size]:
        """Measure `first`, twice that, and so on, up to `last` or to the size that does not fit, and give each. Raises
        UserError where the recipe can have none of them; its own batch size is the last that is looked at."""
        size, last = checked("first", first, int, _COUNT), checked("last", last, int | None, _COUNT)
        while last is None or size <= last:
            try:
                self.sizes.append(self._measured(size, self.steps))
                yield self.sizes[-1]
            except UserError as error:
                if self.sizes or size >= self.recipe.batch_size:
                    raise
                self.left_out[size] = str(error)
            except OutOfMemory as error:
                self.ended, self.too_large = str(error), size
                break
            size *= 2
        if not self.sizes and self.ended is None:
            raise UserError(next(reversed(self.left_out.values())))

    def largest(self) -> tuple[int, int] | None:
        """Return a batch size that fits and one that does not, one in a hundred or a ghost batch apart, by bisection
        between the last that was measured and `too_large`; without either None."""
        if not self.sizes or self.too_large is None:
            return None
        fits, fits_not, unit = self.sizes[-1].batch_size, self.too_large, self.recipe.ghost_batch
        while fits_not - fits > max(unit, fits * _NEAR):
            middle = (fits + fits_not) // 2 // unit * unit
            try:
                self._measured(middle, steps=1)
                fits = middle
            except OutOfMemory:
                fits_not = middle
        return fits, fits_not

    def describe(self) -> dict[str, Any]:
        """Return all that was found and what it was found on, ready for JSON."""
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "side": self.side,
            "classes": self.classes,
            "device": dataclasses.asdict(self.facts),
            "versions": dataclasses.asdict(Versions.here()),
            "memory_limit": self.memory,
            "memory_is": self.memory_is,
            "sizes": [size.to_json() for size in self.sizes],
            "left_out": {str(size): reason for size, reason in self.left_out.items()},
            "ended": self.ended,
            "too_large": self.too_large,
        }

    def _measured(self, size: int, steps: int) -> Size:
        """Measure one size; nothing of it stays allocated. Raises OutOfMemory where it does not fit, and UserError
        where the recipe cannot have it."""
        recipe = dataclasses.replace(self.recipe, batch_size=size, early_batches=(), drop_last=True)
        self._refuse_more(size, self._expected(recipe), "expected")
        self._clear()
        if self._before is None:
            self._run(recipe, 1)  # as libraries load parts of theirs at the first step
            self._clear()
            self._before = resident_memory() or 0
        try:
            memory, (count, seconds, dtype, not_captured) = self._run(recipe, steps)
        finally:
            self._clear()
        self._refuse_more(size, memory, "taken")
        return Size(size, count, tuple(seconds), memory, dtype, not_captured)

    def _run(self, recipe: Recipe, steps: int) -> tuple[int, tuple[int, list[float], str, str | None]]:
        timed = _time(_trainer(recipe, self.side, self.classes, self.device), steps)
        if self._on_cuda:
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = peak_memory() if self.memory_is == "resident" else None
        return self._counted(recipe) if peak is None else max(0, peak - (self._before or 0)), timed

    def _expected(self, recipe: Recipe) -> float:
        """Return the bytes that a size should take, as a CPU that is out of memory ends processes: on the line through
        the last two that were measured; after one with the activations that come to it, before it those alone."""
        if self.memory is None:
            return 0
        if len(self.sizes) < 2:
            sizes = ((each, dataclasses.replace(recipe, batch_size=each.batch_size)) for each in self.sizes)
            return self._counted(recipe) + sum(each.memory - self._counted(other) for each, other in sizes)
        before, last = self.sizes[-2:]
        slope = (last.memory - before.memory) / (last.batch_size - before.batch_size)
        return last.memory + max(0.0, slope) * (recipe.batch_size - last.batch_size)

    def _counted(self, recipe: Recipe) -> int:
        """Return the bytes of the activations that a step keeps for its backward pass; 0 where they cannot be counted,
        as of some networks of a user's own."""
        with contextlib.suppress(UserError, RuntimeError):
            return count_recipe(recipe, _images(recipe), 1, self.classes, self.side).activation_bytes
        return 0

    def _refuse_more(self, size: int, needed: float, word: str) -> None:
        if self.memory is not None and needed > self.memory:
            room = f"{size_words(needed)} are {word}, and {size_words(self.memory)} may be taken"
            raise OutOfMemory(f"out of memory on {self.device}: with batch_size {size} {room}")

    def _clear(self) -> None:
        """Free what is no longer used, and let the peak count anew."""
        gc.collect()
        if self._on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            give_back_freed_memory()
            restart_peak()


def _images(recipe: Recipe) -> int:
    """Return how many images have a batch among those that the recipe's last epochs keep."""
    return math.ceil(recipe.batch_size / recipe.select.keep)


@told
def _trainer(recipe: Recipe, side: int, classes: int, device: torch.device) -> Trainer:
    """Return what makes the recipe's steps on random images."""
    return Trainer(recipe, make_noise(_images(recipe), 1, side, classes, device), device)


@told
def _time(trainer: Trainer, steps: int) -> tuple[int, list[float], str, str | None]:
    """Return the steps of a group, the seconds of a step in each, the compute type, and why it is not captured."""
    device, search = trainer.device, cudnn_search(trainer.recipe.cudnn_search)
    with TORCH.applied(), current(device), search, trainer.state.random, trainer.phases("the step at this size"):
        step, not_captured = repeated_step(trainer)
        for _ in range(_WARM_UP if steps > 1 else 0):
            step()
        once = _seconds(step, device, 1)
        count = max(1, min(steps, int(_LONGEST / once)))
        seconds = [_seconds(step, device, count) for _ in range(GROUPS if steps > 1 else 0)] or [once]
    return count, seconds, str(trainer.dtype).removeprefix("torch."), not_captured


def _seconds(step: Any, device: torch.device, count: int) -> float:
    with Stopwatch(device) as watch:
        for _ in range(count):
            step()
    return watch.seconds / count
