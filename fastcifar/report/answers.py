"""What groups of runs say of the same test images: how sure and how right they are, and which images are hard. Numpy
only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastcifar.report.agreement import HardImage, counted_answers
from fastcifar.report.calibration import Calibration, calibrate, log_probabilities, mean_calibration


@dataclass(frozen=True, eq=False)
class GroupAnswers:
    """What the runs of a group say of test images. Their logits, which may be gigabytes, are not kept."""

    name: str
    color: int
    """That of the group in all figures: its place among all groups."""
    answers: np.ndarray
    """The predicted classes, `[runs, N]`."""
    probabilities: np.ndarray
    """Of each class, the sum over the runs: `[N, classes]`."""
    losses: np.ndarray
    """Log-loss in nats, the sum over the runs: `[N]`; 0 where an image has no label."""
    calibrations: tuple[Calibration, ...]
    """Of each run; none where no image has a label."""

    @classmethod
    def of(cls, name: str, color: int, logits: np.ndarray, labels: np.ndarray) -> GroupAnswers:
        """Return it for one run's logits `[N, classes]` and labels `[N]`, -1 where an image has none."""
        labeled, losses, log_probs = np.flatnonzero(labels >= 0), np.zeros(len(labels)), log_probabilities(logits)
        losses[labeled] = -log_probs[labeled, labels[labeled]]
        found = (calibrate(logits[labeled], labels[labeled]),) if len(labeled) else ()
        return cls(name, color, logits.argmax(1)[None], np.exp(log_probs), losses, found)

    def __add__(self, other: GroupAnswers) -> GroupAnswers:
        """Return that of the runs of both, which are of one group."""
        sums = self.probabilities + other.probabilities, self.losses + other.losses
        answers = np.concatenate([self.answers, other.answers])
        return GroupAnswers(self.name, self.color, answers, *sums, self.calibrations + other.calibrations)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Each number's mean over the runs; None where no image has a label."""
        return mean_calibration(self.calibrations) if self.calibrations else None


@dataclass(frozen=True, eq=False)
class Answers:
    """What groups of runs say of the same test images, and some of these."""

    what: str
    """Which images these are, as in "10,000 test images of mnist"."""
    classes: tuple[str, ...]
    labels: np.ndarray
    """`[N]`; -1 where an image has none."""
    groups: tuple[GroupAnswers, ...]
    images: Mapping[int, np.ndarray] = field(default_factory=dict)
    """uint8 `[H, W, 3]`, by their places among the test images."""
    missing: str = ""
    """Why there are none."""

    @property
    def runs(self) -> int:
        return sum(len(group.answers) for group in self.groups)

    def hardest(self, most: int) -> list[HardImage]:
        """Return the images that fewest runs get right, of these those with the largest mean loss first; none that all
        runs get right."""
        losses = np.sum([group.losses for group in self.groups], 0)
        right = (self._answers == self.labels).sum(0)
        order = np.lexsort((-losses, right))
        return self._described(order[(self.labels[order] >= 0) & (right[order] < self.runs)][:most])

    def most_confused(self, most: int) -> list[HardImage]:
        """Return the images of which the runs are least sure together: whose mean probabilities have the largest
        entropy."""
        shares = np.sum([group.probabilities for group in self.groups], 0) / self.runs
        entropy = -(shares * np.log(np.maximum(shares, np.finfo(float).tiny))).sum(1)
        order = np.argsort(-entropy, kind="stable")
        return self._described(order[self.labels[order] >= 0][:most])

    @cached_property
    def _answers(self) -> np.ndarray:
        return np.concatenate([group.answers for group in self.groups])

    def _described(self, places: np.ndarray) -> list[HardImage]:
        found = []
        for image in places.tolist():
            counted, label = counted_answers(self._answers[:, image]), int(self.labels[image])
            found.append(HardImage(image, label, counted.get(label, 0), counted))
        return found
