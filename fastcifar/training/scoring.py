"""`Scoring`: the evaluations of a training, by epoch and at its end, and the weights of the best epoch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from fastcifar.data import Split
from fastcifar.errors import UserError
from fastcifar.optim import FlatModel
from fastcifar.optim.flat import copy_tensors
from fastcifar.recipes import EvaluateConfig
from fastcifar.record import EpochRow
from fastcifar.training.average import estimate_statistics
from fastcifar.training.divergence import nonfinite_loss
from fastcifar.training.evaluate import Evaluation, evaluate
from fastcifar.training.predictions import LARGEST

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

_PLAIN = EvaluateConfig(tta="none")


class Best:
    """The weights of the epoch that is the best so far by validation accuracy or, without a validation split, by that
    on the images that are tested on. Of equal ones the first counts; epoch 0 does not.

    flat: the network that is evaluated.
    row: of that epoch; None before the first.
    taken: that network has these weights, as it has at the end of the training.
    """

    def __init__(self, flat: FlatModel) -> None:
        self._flat, self.taken = flat, False
        self.row: EpochRow | None = None
        self._tensors = {name: tensor.clone() for name, tensor in self._now().items()}

    def note(self, row: EpochRow) -> None:
        """Keep the weights of `row`, which are in the evaluated network, if it is the best. Raises UserError where its
        images have no labels."""
        if row.epoch and (self.row is None or _accuracy(row) > _accuracy(self.row)):
            self.row = row
            copy_tensors(self._now(), self._tensors)

    @torch.no_grad()
    def take(self) -> None:
        """Load the kept weights into the evaluated network."""
        self.taken = True
        copy_tensors(self._tensors, self._now())
        for group in self._flat.groups:
            group.compute.copy_(group.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the row and the weights; tensors are not copied."""
        return {"row": self.row and dataclasses.asdict(self.row), "tensors": self._tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        copy_tensors(state["tensors"], self._tensors)
        self.row = EpochRow(**state["row"]) if state["row"] else None

    def _now(self) -> dict[str, torch.Tensor]:
        return {
            name: tensor
            for name, tensor in self._flat.training_state().items()
            if not name.startswith("groups.") or name.endswith(".weights")
        }


def _accuracy(row: EpochRow) -> float:
    accuracy, _ = row.validation
    if accuracy is None:
        raise UserError("keep is best, and the images tested on have no labels; allowed: last, or --holdout N")
    return accuracy


class Scoring:
    """What `trainer` evaluates, in the network that is evaluated."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def zero(self) -> EpochRow:
        """Return the row of the initial network, evaluated on the training images too."""
        self.take_weights()
        trainer = self._trainer
        train, seconds = self.evaluate(trainer.dataset.train, _PLAIN), trainer.state.stopwatch.seconds
        return self.row(EpochRow(0, train.loss, train.accuracy, None, seconds, images=0))

    def row(self, row: EpochRow) -> EpochRow:
        """Return `row` with accuracy and loss on the test split and on the validation split, of those with labels; its
        weights are kept where they are the best and that is asked for."""
        self.take_weights()
        row = self._scored(self._scored(row, "test"), "val")
        if self._trainer.state.best:
            self._trainer.state.best.note(row)
        return row

    def last(self, row: EpochRow, train_seconds: float, evaluation: Evaluation) -> EpochRow:
        """Return `row` with the scores of the final `evaluation`, unless it has those of its own weights. Raises
        NonFiniteLoss where the last step spoiled the network: no file of results has numbers beyond LARGEST."""
        loss = 0.0 if evaluation.loss is None else evaluation.loss
        if not loss <= LARGEST:
            raise nonfinite_loss(f"the trained network's loss is {loss}", self._trainer)
        largest = max(float(each.abs().max()) for each in (evaluation.logits, evaluation.plain_logits))
        if not largest <= LARGEST:
            raise nonfinite_loss(f"the trained network has a logit of {largest:g}", self._trainer)
        row = dataclasses.replace(row, seconds=train_seconds)
        if self._trainer.state.best:
            return row
        scores = {"test_accuracy": evaluation.plain_accuracy, "test_loss": evaluation.plain_loss}
        return self._scored(dataclasses.replace(row, **scores), "val")

    def final(self) -> Evaluation:
        """Evaluate the network that the training ends with: the weights, their average, or those of the best epoch."""
        trainer = self._trainer
        if trainer.state.best:
            trainer.state.best.take()
        elif not trainer.recipe.average.epochs:
            self.take_weights()
        return self.evaluate(trainer.dataset.test, trainer.recipe.evaluate)

    def evaluate(self, split: Split, how: EvaluateConfig) -> Evaluation:
        """Evaluate the images of `split`; by their features where these are computed once and are all that is asked."""
        trainer = self._trainer
        with trainer.phases("evaluation"):
            if how is _PLAIN and trainer.features and (found := trainer.features.evaluate(trainer.evaluated, split)):
                return found
            return evaluate(
                trainer.evaluated, split, dataclasses.replace(how, batch_size=trainer.recipe.evaluate.batch_size)
            )

    def take_weights(self) -> None:
        """Load the weights, or their moving average, into the network that is evaluated."""
        trainer = self._trainer
        with trainer.phases("evaluation"):
            trainer.flat_evaluated.load_average(trainer.state.flat, averaged=trainer.recipe.ema.decay > 0)

    def weights(self, taken: bool) -> dict[str, torch.Tensor]:
        """Return a copy of the tensors of the evaluated network, into which the weights are `taken` or not yet."""
        if not taken:
            self.take_weights()
        found, best = self._trainer.flat_evaluated.state_dict(), self._trainer.state.best
        if best and best.taken:
            best.take()
        return found

    def take_average(self) -> None:
        """Load the average of the last weights into the network that is evaluated, and estimate its statistics."""
        trainer = self._trainer
        average, mean = trainer.recipe.average, trainer.state.average
        if not mean.count:  # the training ended before the first was due
            mean.add()
        trainer.flat_evaluated.load_average(trainer.state.flat)
        facts = average.images, trainer.recipe.batch_size, trainer.dtype
        estimate_statistics(trainer.evaluated, trainer.dataset.train, *facts)

    def _scored(self, row: EpochRow, name: str) -> EpochRow:
        split = getattr(self._trainer.dataset, name)
        if split is None or split.label_range[1] < 0:
            return row
        found = self.evaluate(split, _PLAIN)
        return dataclasses.replace(row, **{f"{name}_accuracy": found.accuracy, f"{name}_loss": found.loss})
