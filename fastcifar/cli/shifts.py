"""The accuracies of several saved runs, and of their ensemble, on their data set's own test images and on shifted
ones: what `fastcifar robustness` measures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fastcifar.cli.corruptions import Accuracies, Grid
from fastcifar.cli.saved import Saved, labeled_images
from fastcifar.corruptions.apply import corrupt
from fastcifar.data import Split
from fastcifar.data.archives import read_npz
from fastcifar.errors import UserError, brief, notify
from fastcifar.input import sha256_of, weights_file
from fastcifar.training.run import PREDICTIONS

if TYPE_CHECKING:
    from fastcifar.data import Dataset


@dataclass(frozen=True)
class Shift:
    """Shifted test images: a data set, an archive of corruptions, or the original images corrupted here."""

    word: str
    """The data set's name or path; empty: corrupted here."""
    grid: Grid
    """The corruptions and their severities; empty for a data set as it is."""
    title: str
    """What the images are, for tables."""
    seed: int = 0
    """Names the random choices of what is corrupted here."""

    @property
    def key(self) -> str:
        """How a file of pairs names it."""
        return self.word or "corrupt"

    @property
    def cells(self) -> list[tuple[str, int, str]]:
        """Each corruption at each severity, and the data set that holds it, empty if it is made here; one without a
        corruption for a data set as it is."""
        found = [(name, level) for name, levels in self.grid.items() for level in levels]
        return [(*each, self.word and f"{self.word}:{each[0]}-{each[1]}") for each in found] or [("", 0, self.word)]


@dataclass(frozen=True)
class Measured:
    """The accuracy of one network on shifted images."""

    accuracy: float
    images: int
    """How many images with labels there are, once for all corruptions."""
    table: dict[str, Any]
    """The accuracies by corruption and severity, ready for JSON."""


class Networks:
    """Saved runs of one data set, in the order of their names, and at the end their ensemble where it is asked for: the
    mean of their probabilities (Lakshminarayanan et al. 2017)."""

    def __init__(self, saved: dict[str, Saved], ensemble: bool) -> None:
        self.saved, self.ensemble = saved, ensemble
        self.first = next(iter(saved.values()))
        self.names = [*saved, *[f"ensemble of {len(saved)}"] * ensemble]
        for name, each in saved.items():
            self._refuse_another(name, each)
        self._notice_equal()
        self.data = self.first.record.dataset
        self.hashes = {}
        """`hashes[data set]`: the sha256 of the images that were evaluated on."""

    def _refuse_another(self, name: str, saved: Saved) -> None:
        """Raise UserError for a run on other data than the first run's."""
        one, other = self.first.record, saved.record
        for what in ("name", "side", "classes", "sha256"):
            here, there = getattr(one.dataset, what), getattr(other.dataset, what)
            if here != there:
                said = f"{name} was trained on data whose {what} is {brief(there, 60)}, {next(iter(self.saved))}"
                raise UserError(f"{said} on {brief(here, 60)}; allowed: runs on the same data")
        if self.first.kept_classes != saved.kept_classes:
            raise UserError(f"{name} was restricted to other --classes than others; allowed: runs of the same classes")

    def _notice_equal(self) -> None:
        """Give a `Notice` where networks have equal weights: copies of one add nothing to an ensemble or a baseline."""
        first: dict[object, str] = {}
        for facts in self.facts():
            if (other := first.setdefault(facts["weights_sha256"], facts["name"])) != facts["name"]:
                notify(f"{facts['name']} has the weights of {other}; each counts as a network")

    def facts(self) -> list[dict[str, Any]]:
        """Return what each run is, ready for JSON."""
        found = []
        for name, saved in self.saved.items():
            record, path = saved.record, saved.options.weights or saved.folder
            found.append(
                {
                    "name": name,
                    "run": str(saved.folder),
                    "weights": saved.options.weights,
                    "weights_sha256": sha256_of(weights_file(path), "the weights in"),
                    "recipe": record.recipe.name,
                    "seed": record.seed,
                    "holdout": record.dataset.holdout,
                    "dtype": record.dtype,
                    "commit": record.commit,
                    "predictions": saved in self._predictions,
                }
            )
        return found

    def original(self) -> tuple[list[float], int]:
        """Return the accuracies on the test images of the runs' data set, in the order of `names`, and how many of
        these have labels. Saved predictions are taken where they are of the same weights and images."""
        kept = [labels for _, labels in self._predictions.values()]
        is_whole = len(kept) == len(self.saved) and all(torch.equal(each, kept[0]) for each in kept)
        labels = kept[0] if is_whole else self._images.labels.cpu()
        self.hashes[self.data.name] = self.data.sha256

        def logits(saved: Saved) -> torch.Tensor:
            kept = self._predictions.get(saved)
            if kept is not None and torch.equal(kept[1], labels):
                return kept[0]
            return saved.score(self._images).logits

        return self._accuracies(logits, labels)

    def prepare(self, shift: Shift) -> None:
        """Load the first of the shifted images. Raises UserError where they are not at hand, or do not fit the runs."""
        self._split(shift, *shift.cells[0])

    def measure(self, shift: Shift) -> list[Measured]:
        """Return the accuracies on shifted images, in the order of `names`: the mean over corruptions, of each the mean
        over severities, where there are several."""
        tables, images = [Accuracies(shift.grid) for _ in self.names], 0
        found: list[float] = []
        for name, level, word in shift.cells:
            split = self._split(shift, name, level, word)
            found, images = self._accuracies(lambda saved, split=split: saved.score(split).logits, split.labels.cpu())
            for table, value in zip(tables, found, strict=True):
                table.found.setdefault(name, {})[level] = value
        if not shift.grid:
            return [Measured(value, images, {}) for value in found]
        means = [table.mean(table.averaged) or 0.0 for table in tables]
        return [Measured(mean, images, table.to_json()) for mean, table in zip(means, tables, strict=True)]

    def _split(self, shift: Shift, name: str, level: int, word: str) -> Split:
        if word:
            return self._load(word)
        return Split(corrupt(self._images.images, name, level, shift.seed), self._images.labels)

    def _load(self, word: str) -> Split:
        dataset: Dataset = self.first.other(word, self.data.resized)
        self.hashes[word] = dataset.sha256
        return labeled_images(dataset)[0].loaded(self.first.device)

    @cached_property
    def _images(self) -> Split:
        """The test images of the runs' data set, which a run that was tested on held-out images had not."""
        split = self._load(self.data.name)
        if self.hashes[self.data.name] != self.data.sha256:
            said = f"{self.data.name} is here with another sha256 than {next(iter(self.saved))} was trained on"
            raise UserError(f"{said}; allowed: the same data, where --data-dir says it is")
        return split

    @cached_property
    def _predictions(self) -> dict[Saved, tuple[torch.Tensor, torch.Tensor]]:
        """The logits and labels that runs saved of all test images of the data set."""
        found = ((saved, _saved_predictions(saved)) for saved in self.saved.values())
        return {saved: kept for saved, kept in found if kept is not None}

    def _accuracies(self, logits_of: Callable[[Saved], torch.Tensor], labels: torch.Tensor) -> tuple[list[float], int]:
        labeled = labels >= 0
        count, total, found = int(labeled.sum()), torch.zeros(1), []
        for saved in self.saved.values():
            logits = logits_of(saved)
            found.append(_right(logits, labels) / count)
            total = total + logits.double().softmax(1) if self.ensemble else total
        if self.ensemble:
            found.append(_right(total, labels) / count)
        return found, count


def _right(scores: torch.Tensor, labels: torch.Tensor) -> int:
    return int((scores.argmax(1) == labels).sum())


def _saved_predictions(saved: Saved) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the logits and labels of a run's predictions.npz; None unless they are of all test images of its data set,
    with the asked test-time augmentation, and agree with the accuracy in its record."""
    record, data = saved.record, saved.record.dataset
    accuracies = {saved.recipe.evaluate.tta: ("tta_logits", record.tta_accuracy)}
    accuracies["none"] = ("plain_logits", record.accuracy)
    path, kind = saved.folder / PREDICTIONS, accuracies.get(saved.tta)
    is_part = data.holdout or data.fold or data.tests_val or saved.options.weights is not None
    if is_part or kind is None or not os.path.isfile(path):
        return None
    count = data.test_size
    try:
        logits = read_npz(path, kind[0], "f4", (count, len(data.classes)), "the run's logits")
        labels = read_npz(path, "labels", "i8", (count,), "the run's labels")
    except UserError:
        return None
    logits, labels = torch.from_numpy(logits.astype("f4")), torch.from_numpy(labels.astype("i8"))
    labeled = int((labels >= 0).sum())
    is_the_runs = labeled and bool(logits.isfinite().all()) and _right(logits, labels) / labeled == kind[1]
    return (logits, labels) if is_the_runs else None
