"""How far runs agree: churn, dominance, which images are hard, how good ensembles are and how well calibrated. Numpy
only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastcifar.report.calibration import NUMBERS, Calibration, calibrate, mean_calibration
from fastcifar.report.ensembles import (
    MEANS,
    EnsembleScore,
    check_predictions,
    mean_logits,
    pieces,
    score_ensembles,
)


@dataclass(frozen=True)
class OverPairs:
    """A number of each pair of runs: its mean, least and largest."""

    mean: float
    least: float
    largest: float


@dataclass(frozen=True)
class HardImage:
    """An image that not all runs get right."""

    image: int
    """Its place among the test images."""
    label: int
    right: int
    """How many runs get it right."""
    predicted: dict[int, int]
    """`predicted[class]`: how many runs say so, the most frequent first."""


@dataclass(frozen=True)
class Agreement:
    """What runs say of the same test images. Shares and accuracies are fractions, losses in nats."""

    runs: int
    images: int
    labeled: int
    """Images with a label: churn is over all images, all else over these."""
    churn: OverPairs
    dominance: OverPairs | None = None
    """The share of images on which the less accurate of two runs is right and the more accurate one wrong; None, as
    what follows, where no image has a label."""
    independent_dominance: OverPairs | None = None
    """What it would be if their errors were independent."""
    right: np.ndarray | None = None
    """How many images so many runs get right: `[runs + 1]`, from none of them to all."""
    hard: tuple[HardImage, ...] = ()
    """All images that not all runs get right, the hardest first."""
    ensembles: dict[str, list[EnsembleScore]] = field(default_factory=dict)
    """`ensembles["probabilities"]` and `["logits"]`, by what of the members is averaged."""
    calibrations: tuple[Calibration, ...] = ()
    """Of each run."""
    of_ensembles: dict[str, Calibration] = field(default_factory=dict)
    """Of the ensembles of all runs, keys as in `ensembles`."""

    @property
    def by_all(self) -> dict[str, int]:
        """How many images all, some and none of the runs get right."""
        right = [0] if self.right is None else self.right.tolist()
        return {"all": right[-1], "some": sum(right[1:-1]), "none": right[0]}

    @cached_property
    def mean_calibration(self) -> Calibration:
        """Each number's mean over the runs, and the reliability of all their predictions together."""
        return mean_calibration(self.calibrations)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return all of it as data, ready for JSON; names: those of the runs."""
        found: dict[str, Any] = {
            **{name: getattr(self, name) for name in ("images", "labeled")},
            "churn": dataclasses.asdict(self.churn),
            "runs": [{"name": name} for name in names],
        }
        if self.right is None or self.dominance is None or self.independent_dominance is None:
            return found
        runs = zip(names, self.calibrations, strict=True)
        return {
            **found,
            "runs": [{"name": name, **_numbers(each)} for name, each in runs],
            "dominance": dataclasses.asdict(self.dominance),
            "independent_dominance": dataclasses.asdict(self.independent_dominance),
            "ensembles": {name: list(map(dataclasses.asdict, found)) for name, found in self.ensembles.items()},
            "calibration": {
                "member": _with_bins(self.mean_calibration),
                **{name: _with_bins(each) for name, each in self.of_ensembles.items()},
            },
            "right": {**self.by_all, "by_runs": self.right.tolist()},
            "hard": list(map(dataclasses.asdict, self.hard)),
        }


def agreement(logits: np.ndarray, labels: np.ndarray) -> Agreement:
    """Return how far runs agree.

    logits: `[runs, N, classes]` of two runs or more, of any float type and finite.
    labels: `[N]`; -1 where an image has none.

    Raises UserError for fewer runs and for shapes that do not fit.
    """
    labeled = check_predictions(logits, labels, runs=2)
    runs, images, classes = logits.shape
    answers = np.stack([member.argmax(1) for member in logits])
    found = Agreement(runs, images, len(labeled), churn(answers, classes))
    if not len(labeled):
        return found
    are_right = answers[:, labeled] == labels[labeled]
    observed, independent = dominance(are_right)
    return dataclasses.replace(
        found,
        dominance=observed,
        independent_dominance=independent,
        right=np.bincount(are_right.sum(0), minlength=runs + 1),
        hard=hard_images(answers, labels),
        ensembles={mean_of: score_ensembles(logits, labels, mean_of) for mean_of in MEANS},
        calibrations=tuple(calibrate(member[labeled], labels[labeled]) for member in logits),
        of_ensembles={
            mean_of: calibrate(mean_logits(logits[:, labeled], mean_of), labels[labeled]) for mean_of in MEANS
        },
    )


def churn(answers: np.ndarray, classes: int) -> OverPairs:
    """Return the share of images on which two runs' answers differ, of all pairs (Milani Fard, Cormier, Canini and
    Gupta 2016, "Launch and Iterate: Reducing Prediction Churn").

    answers: the predicted classes `[runs, N]`, each below `classes`, of two runs or more.
    """
    runs, images = answers.shape
    same = np.zeros((runs, runs))
    for places in pieces(images, runs * classes):
        one_hot = answers[:, places, None] == np.arange(classes)
        one_hot = one_hot.reshape(runs, -1).astype(np.float32)  # whose sums are exact below 2^24
        same += one_hot @ one_hot.T
    return _over_pairs((images - same) / images)


def dominance(are_right: np.ndarray) -> tuple[OverPairs, OverPairs]:
    """Return of all pairs of runs the share of images on which the less accurate one is right and the more accurate one
    wrong, and what it would be for the same accuracies if they erred independently (Mania and Sra 2020, "Why do
    classifier accuracies show linear trends under distribution shift?", arXiv 2012.15483).

    are_right: whether each run is right, `[runs, N]`, of two runs or more. Of two equally accurate ones either is the
    less accurate: the numbers are the same.
    """
    runs, images = are_right.shape
    both = np.zeros((runs, runs))
    for places in pieces(images, runs):
        part = are_right[:, places].astype(np.float32)
        both += part @ part.T
    counts = are_right.sum(1)
    less, more = np.minimum.outer(counts, counts), np.maximum.outer(counts, counts)
    return _over_pairs((less - both) / images), _over_pairs(less / images * (1 - more / images))


def hard_images(answers: np.ndarray, labels: np.ndarray) -> tuple[HardImage, ...]:
    """Return the images with a label that not all runs get right: those first that fewest do, and of these those that
    most runs take for the same other class.

    answers: the predicted classes `[runs, N]`; labels: `[N]`, -1 where there is none.
    """
    right = (answers == labels).sum(0)
    found = []
    for image in np.flatnonzero((labels >= 0) & (right < len(answers))):
        found.append(HardImage(int(image), int(labels[image]), int(right[image]), counted_answers(answers[:, image])))

    def most_wrong(each: HardImage) -> int:
        return max(count for name, count in each.predicted.items() if name != each.label)

    return tuple(sorted(found, key=lambda each: (each.right, -most_wrong(each), each.image)))


def counted_answers(answers: np.ndarray) -> dict[int, int]:
    """Return `counted[class]`: how many of the answers `[runs]` are so, the most frequent first."""
    said, counts = np.unique(answers, return_counts=True)
    return dict(sorted(zip(said.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]))


def _over_pairs(matrix: np.ndarray) -> OverPairs:
    values = matrix[np.triu_indices(len(matrix), 1)]
    return OverPairs(float(values.mean()), float(values.min()), float(values.max()))


def _numbers(found: Calibration) -> dict[str, float | None]:
    return {name: getattr(found, name) for name in NUMBERS}


def _with_bins(found: Calibration) -> dict[str, Any]:
    return {**_numbers(found), "bins": {name: values.tolist() for name, values in vars(found.reliability).items()}}
