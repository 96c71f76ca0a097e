"""Ensembles of given networks beside their members: scores, and the tables of them. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastcifar.report.ensembles import MeanOf, score_ensembles
from fastcifar.report.statistics import Summary
from fastcifar.report.tables import nats, percent, points

HEADS = ("members' mean", "ensemble", "gain, points", "members' log-loss", "ensemble's", "gain, nats")
"""The columns of `Combined.cells`."""


@dataclass(frozen=True)
class Combined:
    """An ensemble and the mean of its members. Accuracies are fractions, losses log-losses in nats; all are summaries
    over the images: an interval is for other images of the same kind and the same networks."""

    members: int
    member_accuracy: Summary
    accuracy: Summary
    accuracy_gain: Summary
    """The ensemble's less the members' mean, image by image: the interval is of paired differences."""
    member_loss: Summary
    loss: Summary
    loss_gain: Summary
    """Below 0 where the ensemble is better."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the texts for a table's columns `HEADS`."""
        return cells(*(getattr(self, name) for name in SCORES))


SCORES = ("member_accuracy", "accuracy", "accuracy_gain", "member_loss", "loss", "loss_gain")
"""The scores of a `Combined`, in the order of `HEADS`."""


def combine(logits: np.ndarray, labels: np.ndarray, mean_of: MeanOf = "probabilities") -> Combined:
    """Return the scores of the ensemble of all networks in `logits`.

    logits: `[members, N, classes]`, of any float type and finite.
    labels: `[N]`; images labeled -1 count in nothing.
    mean_of: what of the members is averaged.

    Raises UserError for shapes that do not fit and where no image has a label.
    """
    single, whole = score_ensembles(logits, labels, mean_of, [1, len(logits)])
    accuracies = single.accuracy, whole.accuracy, whole.accuracy_gain
    return Combined(len(logits), *accuracies, single.loss, whole.loss, whole.loss_gain)


def cells(*scores: Summary) -> tuple[str, ...]:
    """Return the texts of scores in the order of `SCORES`: means, each with half its 95% interval."""
    texts = (percent, percent, points, nats, nats, lambda found: nats(found, "+"))
    return tuple(text(found) for text, found in zip(texts, scores, strict=True))


def member_rows(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> tuple[tuple[str, str, str], ...]:
    """Return name, accuracy and log-loss of each network, for a table."""
    found = (combine(each[None], labels) for each in logits)
    return tuple((name, percent(each.accuracy), nats(each.loss)) for name, each in zip(names, found, strict=True))
