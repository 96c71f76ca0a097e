"""`Run`: the result of a training, and its folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from fastcifar.by_class import ClassScores
from fastcifar.errors import UserError
from fastcifar.host import TORCH, building
from fastcifar.input import sha256_of, weights_file
from fastcifar.models import build_model, remember_normalization
from fastcifar.models.export import export_onnx
from fastcifar.output import (
    IN_TRAINING,
    RECORD,
    UNFINISHED,
    WEIGHTS,
    check_out,
    made,
    read_json,
    run_files,
    user_path,
    write_all,
)
from fastcifar.recipes import Recipe
from fastcifar.record import DatasetFacts, EpochRow, RunRecord, Versions, json_text, own_commit
from fastcifar.registry import resolve
from fastcifar.training.device import describe_device
from fastcifar.training.evaluate import Evaluation, evaluate
from fastcifar.training.weights import load_weights, put_weights, read_weights, refuse_another

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

LOG, PREDICTIONS = "log.tsv", "predictions.npz"
MEMBER = "member_"
"""What the names of the members' logits in it begin with, before the name of the run's own."""
_LOGITS = ("plain_logits", "tta_logits")
_SHOWN = 200
"""Characters that an error shows of messages of torch, json or safetensors."""


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A finished training."""

    model: nn.Module
    """The network that was evaluated, its own copy: float32 on the run's device, in evaluation mode."""
    record: RunRecord
    """The record of the training: run.json."""
    plain_logits: torch.Tensor
    """Logits of the test images as they are, float32 `[N, classes]` on the CPU."""
    tta_logits: torch.Tensor
    """The same with the recipe's test-time augmentation."""
    labels: torch.Tensor
    """Labels of the test images, int64 `[N]` on the CPU; -1 where an image has none."""
    state: Mapping[str, torch.Tensor]
    """The network's tensors by name, float32 on the CPU: model.safetensors."""
    side: int = 32
    """Side of the test images in pixels."""
    member_plain_logits: torch.Tensor | None = None
    """Those of each network inside that answers on its own (`Network.members`), float32 `[members, N, classes]`, as it
    gives them alone; None: there is none."""
    member_tta_logits: torch.Tensor | None = None
    """The same with the recipe's test-time augmentation."""

    @classmethod
    def of(cls, trainer: Trainer, evaluation: Evaluation, train_seconds: float, time_seconds: float) -> Run:
        """Return the run that `trainer` has just finished, with its final `evaluation` and the stopwatch's readings."""
        state, dataset = trainer.state, trainer.dataset
        row = state.history.rows[-1]
        best = state.best and state.best.row
        scored = best or row
        record = RunRecord(
            recipe=trainer.recipe,
            dataset=DatasetFacts.of(dataset),
            subset=copy.deepcopy(dataset.subset),
            seed=state.seed,
            init=dict(state.init),
            network=None if trainer.own_model is None else "own",
            device=describe_device(trainer.device),
            dtype=str(trainer.dtype).removeprefix("torch."),
            versions=Versions.here(),
            commit=own_commit(),
            epochs=trainer.recipe.epochs if state.step == trainer.total_steps else row.epoch,
            steps=state.step,
            history=tuple(state.history.rows),
            accuracy=evaluation.plain_accuracy,
            loss=evaluation.plain_loss,
            tta_accuracy=evaluation.accuracy,
            tta_loss=evaluation.loss,
            val_accuracy=scored.val_accuracy,
            val_loss=scored.val_loss,
            best_epoch=best and best.epoch,
            by_class=scores_by_class(evaluation.plain_logits, dataset.test.labels),
            train_seconds=train_seconds,
            time_seconds=time_seconds,
            compiled=bool(trainer.compiled and trainer.compiled.active),
            captured=not trainer.not_captured,
            not_captured=trainer.not_captured,
            images_per_second=(row.images or 0) / train_seconds,
            resident=dataset.train.resident,
            waited_seconds=state.waited_seconds,
            units_replaced=int(state.replacement.count) if state.replacement.layers else None,
            **state.processes.finish(),
        )
        tensors = trainer.flat_evaluated.state_dict()
        model = _copied(trainer).float().eval()
        # The weights before they were rounded to the compute type; what is no tensor stays.
        model.load_state_dict({**model.state_dict(), **tensors})
        remember_normalization(model, dataset.mean, dataset.std)
        labels = dataset.test.labels.to("cpu", copy=True)
        side = dataset.test.image_shape[0]
        logits = evaluation.plain_logits, evaluation.logits
        return cls(model, record, *logits, labels, tensors, side, *_member_logits(trainer))

    @property
    def recipe(self) -> Recipe:
        """The recipe that was trained."""
        return self.record.recipe

    @property
    def seed(self) -> int:
        """The seed of the run's random choices."""
        return self.record.seed

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """A row for each epoch."""
        return self.record.history

    @property
    def losses(self) -> dict[str, dict[int, float]]:
        """`losses[split][epoch]`, as in `run.losses["train"][3]`: mean losses in nats of the epochs that have one. The
        splits are "train" (smoothed as in training), "test" (without test-time augmentation) and, if there is one,
        "val"; epoch 0 is before the training."""
        return self.record.losses

    @property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """`accuracies[split][epoch]`: fractions, otherwise as `losses`."""
        return self.record.accuracies

    @property
    def accuracy(self) -> float | None:
        """Test accuracy without test-time augmentation, a fraction; None for test images without labels."""
        return self.record.accuracy

    @property
    def tta_accuracy(self) -> float | None:
        """Test accuracy with the recipe's test-time augmentation, a fraction; None for test images without labels."""
        return self.record.tta_accuracy

    @property
    def train_seconds(self) -> float:
        """From the first touch of the resident images to the last step, evaluation left out (DAWNBench's rule)."""
        return self.record.train_seconds

    @property
    def time_seconds(self) -> float:
        """train_seconds and the final evaluation with test-time augmentation (airbench's rule)."""
        return self.record.time_seconds

    @property
    def process_seconds(self) -> float:
        """To the final accuracy, from the call of `train` or `Trainer.run`; on the command line from the start of the
        process, or the end of the run before in it."""
        return self.record.process_seconds

    def __repr__(self) -> str:
        return f"Run{repr(self.record).removeprefix('RunRecord')}"

    def save(self, folder: str | Path, unfinished: bool = False) -> Path:
        """Write log.tsv, predictions.npz, model.safetensors and, last, run.json to `folder`, all of them or none.

        unfinished: it may hold what this run left there before it was finished: unfinished.json and the folders
            checkpoints, weights and diagnose.

        Raises UserError where the folder holds anything already or cannot be written.
        """
        folder = user_path(folder, "the output folder")
        check_out(folder, besides=(UNFINISHED, *IN_TRAINING) if unfinished else ())
        record, arrays = self.record, self.predictions()

        def write_weights(path: Path) -> None:
            nonlocal record
            record = replace(record, weights_sha256=save_weights(self.state, path))

        with made(folder):
            write_all(
                folder,
                {
                    LOG: self._dawnbench_log(),
                    PREDICTIONS: lambda path: np.savez(path, **arrays),
                    WEIGHTS: write_weights,
                    RECORD: lambda path: path.write_text(json_text(record.to_json()) + "\n", "utf-8"),
                },
            )
        return folder

    def predictions(self) -> dict[str, Any]:
        """Return the arrays of predictions.npz by their names: the logits, the labels and, where the network has
        members, their logits."""
        found = {name: getattr(self, name) for name in (*_LOGITS, *(f"{MEMBER}{each}" for each in _LOGITS), "labels")}
        return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}

    @TORCH.applied()
    def export(self, file: str | Path) -> Path:
        """Write the evaluated network as an ONNX file, in place of one that is there, and return its path.

        Its input `images` is float32 `[batch, 3, side, side]`, RGB of 0 to 255, for any batch: the file normalizes the
        images itself. Its output `logits` is `[batch, classes]`, float32, without test-time augmentation. The names of
        the classes are its metadata `classes`, a JSON list.

        Raises UserError without the packages onnx and onnxscript, and where the file cannot be written.
        """
        file = user_path(file, "file")
        dataset, model = self.record.dataset, copy.deepcopy(self.model).to("cpu")
        export_onnx(model, file, self.side, dataset.mean, dataset.std, dataset.classes)
        return file

    def _dawnbench_log(self) -> str:
        lines = ["epoch\thours\ttop1Accuracy"]
        for row in self.rows:
            if row.test_accuracy is not None:
                lines.append(f"{row.epoch}\t{row.seconds / 3600:.8f}\t{row.test_accuracy * 100:.2f}")
        return "\n".join(lines) + "\n"


def scores_by_class(logits: torch.Tensor, labels: torch.Tensor) -> ClassScores | None:
    """Return the scores of logits `[N, classes]` by class, over the images whose label is not -1; None where there is
    none."""
    labels, count = labels.to("cpu"), logits.shape[1]
    is_labeled = labels >= 0
    if not is_labeled.any():
        return None
    pairs = labels[is_labeled] * count + logits.argmax(1)[is_labeled]
    return ClassScores.of(torch.bincount(pairs, minlength=count * count).reshape(count, count).tolist())


def _member_logits(trainer: Trainer) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Evaluate the members of the evaluated network one by one, and return their logits."""
    with trainer.phases("evaluation"):
        how, test = trainer.recipe.evaluate, trainer.dataset.test
        found = [evaluate(member, test, how) for member in trainer.evaluated.members]
    if not found:
        return None, None
    return torch.stack([each.plain_logits for each in found]), torch.stack([each.logits for each in found])


def _copied(trainer: Trainer) -> nn.Module:
    """Return a copy of the evaluated network whose tensors share no memory, as buffers within a flat one do."""
    module = trainer.evaluated.module
    try:
        return copy.deepcopy(module, {id(buffer): buffer.detach().clone() for buffer in module.buffers()})
    except Exception:  # an own network may hold what has no copy, such as a lock
        return trainer.new_network(seed=0).module.to(trainer.device)


def save_weights(state: Mapping[str, torch.Tensor], path: Path) -> str:
    """Write a network's tensors as a .safetensors file, and return its sha256. Raises OSError where that cannot be
    done."""
    try:
        save_file(dict(state), path)
    except SafetensorError as error:  # such as a full disk
        raise OSError(" ".join(str(error).split())[:_SHOWN]) from None
    return sha256_of(path, "the weights in")


@TORCH.applied()
def load_run(
    folder: str | Path,
    model: Callable[[int], nn.Module] | None = None,
    member: int | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> tuple[Recipe, nn.Module, RunRecord]:
    """Return the recipe, the evaluated model (float32, evaluation mode, on the CPU) and the record in a run's
    folder, or of a run whose weights an experiment kept, as in "kept/warm/seed-0".

    model: of a run of a network of the user's own: its class, or a function of the number of classes.
    member: take out that member, from 0, of networks that were trained at once, in place of all.
    weights: other weights for the whole network than the run's, such as those of an epoch; see `load_weights`.

    Raises UserError where the folder holds no whole run, or one of another network, for weights that do not fit, and
    for a member that is not there.
    """
    folder = user_path(folder, "the run's folder")
    record_file, own = run_files(folder)
    for file in (record_file, own):
        if not os.path.isfile(file):
            raise UserError(f"{folder} holds no run: {file.name} is missing")
    try:
        record = RunRecord.from_json(read_json(record_file, "the record"), str(record_file))
        dataset = record.dataset
        if model is None and record.network is not None:
            raise UserError(
                f"{folder} holds a run of a network of its own; allowed: with model=, the class of that network or a "
                "function of the number of classes"
            )
        with building(0, model or resolve(record.recipe.network.builder)):
            if model is not None and record.recipe.ensemble.members == 1:
                network, members = model(len(dataset.classes)).to("cpu", torch.float32), ()
            else:
                sides = (dataset.side,) if record.recipe.network.one_side else ()
                facts = record.recipe, len(dataset.classes), dataset.mean, dataset.std
                whole = build_model(*facts, model, sides=sides)
                network, members = whole.module, whole.members
    except UserError:
        raise
    except Exception as error:  # a network of the user's own may raise anything
        reason = " ".join(str(error).split())[:_SHOWN]
        raise UserError(f"{folder} holds a damaged run: {type(error).__name__}: {reason}") from None
    try:
        tensors, sha256 = read_weights(weights_file(own))
        refuse_another(folder, own, sha256)
        put_weights(remember_normalization(network, dataset.mean, dataset.std), tensors, own)
    except UserError as error:
        raise UserError(f"{folder} holds a damaged run: {error}") from None
    if weights is not None:
        load_weights(network, weights)
    if member is not None:
        if not 0 <= member < len(members):
            allowed = f"0 to {len(members) - 1}" if members else "none, it has no members that answer on their own"
            raise UserError(f"member {member} of {folder} is asked for; allowed: {allowed}")
        network = remember_normalization(members[member].module, dataset.mean, dataset.std)
    return record.recipe, network.eval(), record
