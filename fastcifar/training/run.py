"""`Run`: what a training gave, and the folder it is kept in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.output import RECORD, WEIGHTS, check_out, umask
from fastcifar.recipes import Recipe, recipe_from_dict

LOG, PREDICTIONS = "log.tsv", "predictions.npz"


@dataclass(frozen=True)
class EpochRow:
    """One epoch: mean training loss (smoothed, nats), accuracies as fractions (test None where not evaluated), and
    `seconds`, the training stopwatch at its end."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished training: the evaluated model, its logits on the test split, `record` (run.json) and a row per
    epoch."""

    recipe: Recipe
    seed: int
    model: nn.Module
    record: Mapping[str, object]
    rows: list[EpochRow]
    logits: torch.Tensor
    labels: torch.Tensor
    state: Mapping[str, torch.Tensor] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Test accuracy without test-time augmentation, a fraction."""
        return self.record["accuracy"]

    @property
    def tta_accuracy(self) -> float:
        """Test accuracy with the recipe's test-time augmentation, a fraction."""
        return self.record["tta_accuracy"]

    @property
    def train_seconds(self) -> float:
        """From the first touch of the resident images to the last step, evaluation left out (DAWNBench's rule)."""
        return self.record["train_seconds"]

    @property
    def time_seconds(self) -> float:
        """train_seconds and the final evaluation with test-time augmentation (airbench's rule)."""
        return self.record["time_seconds"]

    @property
    def process_seconds(self) -> float:
        """From the start of the process, or the end of the run before in it, to the final accuracy."""
        return self.record["process_seconds"]

    def save(self, folder: str | Path) -> Path:
        """Write run.json, log.tsv, predictions.npz and model.safetensors to `folder`, all of them or none.

        Raises UserError where the folder holds anything already or cannot be written.
        """
        folder = Path(folder)
        check_out(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            (partial / RECORD).write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
            (partial / LOG).write_text(self._dawnbench_log(), encoding="utf-8")
            np.savez(partial / PREDICTIONS, logits=self.logits.numpy(), labels=self.labels.numpy())
            save_file(dict(self.state), partial / WEIGHTS)
            partial.chmod(0o777 & ~umask())
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return folder

    def _dawnbench_log(self) -> str:
        lines = ["epoch\thours\ttop1Accuracy"]
        for row in self.rows:
            if row.test_accuracy is not None:
                lines.append(f"{row.epoch}\t{row.seconds / 3600:.8f}\t{row.test_accuracy * 100:.2f}")
        return "\n".join(lines) + "\n"


def load_run(folder: str | Path) -> tuple[Recipe, nn.Module, dict[str, object]]:
    """The recipe, the evaluated model (float32, evaluation mode, on the CPU) and the record kept in a run's folder.

    Raises UserError where the folder holds no whole run.
    """
    folder = Path(folder)
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no run: {name} is missing")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recipe = recipe_from_dict(record["recipe"])
        dataset = record["dataset"]
        model = build_model(recipe, len(dataset["classes"]), dataset["mean"], dataset["std"])
        model.load_state_dict(load_file(folder / WEIGHTS))
    except UserError as error:
        raise UserError(f"{folder / RECORD}: {error}") from None
    except Exception as error:  # whatever a damaged file makes json, safetensors or torch say
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder} holds a damaged run: {type(error).__name__}: {reason}") from None
    return recipe, model.eval(), record
