"""`Tracker`, the base of the listeners that send each epoch's metrics elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastcifar.errors import notify, one_line
from fastcifar.output import short_name
from fastcifar.recipes import label
from fastcifar.recipes.text import leaves
from fastcifar.record import EpochRow, RunRecord
from fastcifar.training.listeners import Listener

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

METRICS = ("epoch", "train_acc", "train_loss", "val_acc", "val_loss")
"""The names of what is tracked, in their order. Accuracies are in percent, losses in nats."""

Metrics = dict[str, Any]
"""An epoch's metrics by their names; None where one was not measured."""


def metrics_of(row: EpochRow) -> Metrics:
    """Return the metrics of an epoch. `val_*` are of the validation split, or where no image of one has a label of the
    test split, which is the held-out images where there are some."""
    accuracy, loss = row.validation
    train, val = (None if share is None else 100 * share for share in (row.train_accuracy, accuracy))
    return dict(zip(METRICS, (row.epoch, train, row.train_loss, val, loss), strict=True))


def configuration(trainer: Trainer) -> dict[str, Any]:
    """Return what is trained: the course's six names, the seed, and every field of the recipe by its dotted name."""
    recipe, dataset = trainer.recipe, trainer.dataset
    return {
        "dataset": short_name(dataset.name),
        "batch_size": recipe.batch_size,
        "image_size": dataset.train.image_shape[0],
        "learning_rate": recipe.optimizer.lr,
        "epochs": recipe.epochs,
        "optimizer": recipe.optimizer.kind,
        "seed": trainer.state.seed,
        **dict(leaves(dataclasses.asdict(recipe))),
    }


class Tracker(Listener):
    """The base of trackers: a subclass says in `begin`, `note` and `end` what is done with the metrics.

    Whatever fails there ends the tracking with one `Notice`, and the training goes on. A training that goes on from a
    state goes on in the same log, in which each epoch stands once.
    """

    _works = False

    def begin(self, name: str, config: dict[str, Any], told: Sequence[Metrics]) -> None:
        """Begin with a training.

        name: what a reader may call it: the recipe and the seed.
        config: see `configuration`.
        told: the metrics of the epochs before the state that it goes on from; none where it begins.
        """
        raise NotImplementedError

    def note(self, metrics: Metrics) -> None:
        """Keep the metrics of an epoch."""
        raise NotImplementedError

    def end(self) -> None:
        """Do what is left to do after the training."""

    def on_start(self, trainer: Trainer) -> None:
        self._works, state = True, trainer.state
        told = [metrics_of(row) for row in state.history.rows[: state.told]]
        self._do(self.begin, f"{label(trainer.recipe)}-seed-{state.seed}", configuration(trainer), told)

    def on_epoch(self, row: EpochRow) -> None:
        self._do(self.note, metrics_of(row))

    def on_end(self, record: RunRecord) -> None:
        self._do(self.end)

    def _do(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self._works:
            return
        try:
            call(*arguments)
        except Exception as error:  # a full disk, a service that fails: anything is less than the training
            self._works = False
            reason = one_line(" ".join(str(error).split()) or type(error).__name__, 300)
            notify(f"{type(self).__name__} tracks no more: {reason}; the training goes on")
