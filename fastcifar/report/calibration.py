"""Calibration: expected calibration error, reliability, and the temperature that mends it. Numpy only.

Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastcifar.report.figures import GRAY, Figure, Line

BINS = 15
"""Bins of equal width, as in the paper's tables."""
COLDEST, HOTTEST = 0.01, 100.0
"""The temperatures that are looked among."""
_TOLERANCE = 1e-7
"""The last step, relative. Newton's steps square the error: what is left is far smaller."""
_SPLIT_SEED = 0
"""Names the halves of the images, which are always the same."""


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy by bins of confidence, which are open below and closed above; arrays `[bins]`."""

    counts: np.ndarray
    """Images in each bin."""
    confidence: np.ndarray
    """Sum of their confidences, each the probability of the class that is predicted."""
    right: np.ndarray
    """How many of them are predicted right."""

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean over images of |accuracy - mean confidence| of their bin."""
        return float(np.abs(self.right - self.confidence).sum() / self.counts.sum())

    def __add__(self, other: Reliability) -> Reliability:
        """Return that of the images of both."""
        return Reliability(self.counts + other.counts, self.confidence + other.confidence, self.right + other.right)

    def points(self) -> list[tuple[float, float]]:
        """Return mean confidence and accuracy of each bin that has images, from the least confident on."""
        held = self.counts > 0
        pairs = zip(self.confidence[held] / self.counts[held], self.right[held] / self.counts[held], strict=True)
        return [(float(confidence), float(accuracy)) for confidence, accuracy in pairs]


@dataclass(frozen=True)
class Calibration:
    """How right and how sure predictions are, as they are and, as `scaled_*`, with temperatures fitted on other images.
    Losses in nats."""

    accuracy: float
    loss: float
    ece: float
    temperature: float | None
    """The geometric mean of the temperatures of the two halves; None, as what follows, for one image."""
    scaled_loss: float | None
    scaled_ece: float | None
    reliability: Reliability


NUMBERS = tuple(each.name for each in dataclasses.fields(Calibration) if each.name != "reliability")
"""The fields of a `Calibration` that are numbers."""


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the log-softmax over the last axis, float64, of logits of any shape and float type."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def reliability(log_probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Return confidence and accuracy by bins of log-probabilities `[N, classes]` and labels `[N]`, none of them -1."""
    answers = log_probs.argmax(1)
    sure = np.exp(log_probs[np.arange(len(labels)), answers])
    place = np.searchsorted(np.arange(1, bins) / bins, sure)  # a confidence of an edge belongs to the bin below it
    sums = (np.bincount(place, values, bins) for values in (sure, (answers == labels).astype(float)))
    return Reliability(np.bincount(place, minlength=bins), *sums)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T, `COLDEST` to `HOTTEST`, for which softmax(logits / T) has the least log-loss.

    logits: `[N, classes]`; log-probabilities are logits too.
    labels: `[N]`, none of them -1.

    The loss is convex in 1 / T: Newton's steps on its derivative, halving where one leaves what is known to hold the
    minimum or is no shorter than half of the last (as `rtsafe` of Numerical Recipes).
    """
    z = logits.T.astype(np.float64)  # classes first: sums over them are of whole rows
    z -= z[labels, np.arange(len(labels))]  # so that the derivative is a mean of z alone
    low, high, inverse, last = 1 / HOTTEST, 1 / COLDEST, 1.0, math.inf
    while abs(last) > _TOLERANCE * inverse:
        weights = inverse * z
        np.exp(weights - weights.max(0), out=weights)
        weights /= weights.sum(0)
        weights *= z
        means = weights.sum(0)
        slope, bend = means.mean(), (weights * z).sum(0).mean() - (means * means).mean()
        if slope == 0:  # also where no temperature changes anything
            break
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = float(-slope / bend) if bend > 0 else math.inf
        if not low <= inverse + step <= high or abs(step) > abs(last) / 2:
            step = math.sqrt(low * high) - inverse
        inverse, last = inverse + step, step
    return 1 / inverse


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Return the calibration of logits `[N, classes]` by labels `[N]`, none of them -1, N 1 or more.

    The images are dealt into two halves at random, always the same. The temperature of each half scales the images of
    the other: no image is measured with a temperature that was fitted on it.
    """
    log_probs = log_probabilities(logits)
    rows = np.arange(len(labels))
    found = reliability(log_probs, labels)
    accuracy, loss = found.right.sum() / len(labels), -log_probs[rows, labels].mean()
    if len(labels) < 2:
        return Calibration(float(accuracy), float(loss), found.ece, None, None, None, found)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scaled, temperatures = np.empty_like(log_probs), []
    for fitted, measured in (halves, halves[::-1]):
        temperatures.append(fit_temperature(log_probs[fitted], labels[fitted]))
        scaled[measured] = log_probabilities(log_probs[measured] / temperatures[-1])
    return Calibration(
        accuracy=float(accuracy),
        loss=float(loss),
        ece=found.ece,
        temperature=math.sqrt(math.prod(temperatures)),
        scaled_loss=float(-scaled[rows, labels].mean()),
        scaled_ece=reliability(scaled, labels).ece,
        reliability=found,
    )


def mean_calibration(found: Sequence[Calibration]) -> Calibration:
    """Return each number's mean over runs, and the reliability of all their predictions together."""
    columns = {name: [getattr(each, name) for each in found] for name in NUMBERS}
    means = {name: None if None in values else float(np.mean(values)) for name, values in columns.items()}
    first, *others = (each.reliability for each in found)
    return Calibration(**means, reliability=sum(others, first))  # pyright: ignore[reportArgumentType]


def reliability_figure(named: Mapping[str, Calibration], title: str, colors: Sequence[int] = ()) -> Figure:
    """Return the reliability diagram of predictions by their names: the accuracy of those that are so sure.

    colors: those of the names, as in `Line`; by default each one's place, without gray.
    """
    lines = [Line([0, 100], [0, 100], GRAY, "calibrated", bare=True)]
    colors = colors or [place + (place >= GRAY) for place in range(len(named))]
    for color, (label, each) in zip(colors, named.items(), strict=True):
        sure, right = zip(*each.reliability.points(), strict=True)
        percents = [100 * share for share in sure], [100 * share for share in right]
        lines.append(Line(*percents, color, f"{label}: ECE {each.ece:.2%}"))
    return Figure("confidence (%)", "accuracy (%)", tuple(lines), title=title)
