"""`ClassScores`: precision, recall and confusion by class, as a run's record has them. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassScores:
    """Scores of each of C classes, fractions, by scikit-learn's definitions with zero_division=0."""

    precision: tuple[float, ...]
    """Of the images that the network takes for the class, those that are of it; 0 where there are none."""
    recall: tuple[float, ...]
    """Of the images of the class, those that the network takes for it; 0 where there are none."""
    confusion: tuple[tuple[int, ...], ...]
    """`confusion[label][predicted]`: the number of images."""

    @classmethod
    def of(cls, confusion: Sequence[Sequence[int]]) -> ClassScores:
        """Return the scores of a square table of whole numbers."""
        given = tuple(map(sum, confusion))
        predicted = [sum(column) for column in zip(*confusion, strict=True)]
        right = [row[label] for label, row in enumerate(confusion)]
        precision, recall = (
            tuple(hits / count if count else 0.0 for hits, count in zip(right, counts, strict=True))
            for counts in (predicted, given)
        )
        return cls(precision, recall, tuple(map(tuple, confusion)))

    @property
    def mean_precision(self) -> float:
        """The macro mean: that of the classes that an image is of or is taken for."""
        return self._mean(self.precision)

    @property
    def mean_recall(self) -> float:
        """The macro mean, of the same classes; for equally many images of each it is the accuracy."""
        return self._mean(self.recall)

    def _mean(self, values: Sequence[float]) -> float:
        pairs = zip(values, self.confusion, zip(*self.confusion, strict=False), strict=False)  # a file may say anything
        known = [value for value, row, column in pairs if any(row) or any(column)]
        return sum(known) / max(1, len(known))
