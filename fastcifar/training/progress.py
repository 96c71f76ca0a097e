"""`ShowProgress`: the listener that shows a training on a screen; and the lines above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fastcifar.data import Dataset
from fastcifar.escape import shown
from fastcifar.launch import Rank
from fastcifar.models import Network
from fastcifar.models.freezing import layers_of
from fastcifar.recipes import label
from fastcifar.record import EpochRow
from fastcifar.screen import Screen
from fastcifar.training.listeners import Listener

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer


class ShowProgress(Listener):
    """Shows a training on `screen`: a bar of its steps, and with `rows` a row for each epoch. It reads what the
    training has at hand, and that only where the bar is drawn: a GPU is not waited for."""

    def __init__(self, screen: Screen, rows: bool = True) -> None:
        super().__init__()
        self._screen, self._rows = screen, rows

    def on_start(self, trainer: Trainer) -> None:
        self._state = trainer.state
        self._screen.begin(trainer.total_steps, tested(trainer.dataset), trainer.state.step)

    def on_step(self, step: int, total_steps: int) -> None:
        self._screen.step(step, total_steps, self._state.row_so_far)

    def on_epoch(self, row: EpochRow) -> None:
        if self._rows:
            self._screen.epoch(row)


@contextmanager
def showing(progress: bool, listeners: Sequence[Listener]) -> Iterator[Sequence[Listener]]:
    """Give the listeners of a training, with `progress` one more, which shows it until the block ends in any way."""
    if not (progress and Rank.here().is_first):
        yield listeners
        return
    screen = Screen()
    announce = Listener(on_start=lambda trainer: screen.say(header(trainer, [trainer.state.seed])))
    try:
        is_list = isinstance(listeners, Iterable)  # what is none is refused by the training
        yield [announce, ShowProgress(screen), *listeners] if is_list else listeners
    finally:
        screen.end()


def tested(dataset: Dataset) -> dict[str, str]:
    """Return the columns of the accuracies that an epoch is told by, those on images with labels."""
    found = {"held-out" if dataset.holdout else "test acc": "test_accuracy"}
    if dataset.val is not None and dataset.val.label_range[1] >= 0:
        found = (found if dataset.test.label_range[1] >= 0 else {}) | {"val acc": "val_accuracy"}
    return found


def header(trainer: Trainer, seeds: Sequence[int], at_once: int = 1) -> str:
    """Return two lines: the recipe on its data, and how and where it is computed, `at_once` runs at a time."""
    recipe, dataset = trainer.recipe, trainer.dataset
    train_size, test_size = len(dataset.train), len(dataset.test)
    name = "synthetic data, not CIFAR-10" if dataset.name == "synthetic" else shown(dataset.title)
    val = "" if dataset.val is None else f", {len(dataset.val):,} validation"
    tests = f"{dataset.tested} images" + " without labels" * (dataset.test.label_range[1] < 0)
    most = "up to " if recipe.select.keep < 1 or recipe.early_batches else ""
    steps = trainer.timeline.steps_per_epoch
    epochs = f"{recipe.epochs:g} epoch{'s' * (recipe.epochs != 1)} of {most}{steps} step{'s' * (steps != 1)}"
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    which += f", {at_once} at once" * (at_once > 1)
    if recipe.freeze != "none":
        which += f", {_frozen(trainer.network, recipe.freeze)}"
    return (
        f"{label(recipe)} on {name}: {train_size:,} training{val}, {test_size:,} {tests}\n"
        f"{epochs} of {recipe.batch_size} images on {_place(trainer, at_once)}, {which}"
    )


def _frozen(network: Network, freeze: str) -> str:
    """Return which layers are frozen from the start: "frozen up to layer1.0.bn2", "frozen all but fc"."""
    network = getattr(network, "networks", (network,))[0]  # of an ensemble's members each is frozen alike
    if freeze.isdigit():
        return f"frozen up to {[*layers_of(network)][int(freeze) - 1]}"
    return f"frozen all but {network.head}"


def _place(trainer: Trainer, at_once: int) -> str:
    """Return the device, the threads of a run and the compute type: "cpu (2 threads, bfloat16)"."""
    dtype = str(trainer.dtype).removeprefix("torch.")
    if trainer.device.type != "cpu":
        return f"{torch.cuda.get_device_name(trainer.device)} ({dtype})"
    threads = max(1, torch.get_num_threads() // at_once)
    return f"cpu ({threads} thread{'s' * (threads > 1)}, {dtype})"
