"""Ensembles of runs: the accuracy and log-loss of mean probabilities or mean logits, by the number of members. Numpy
only."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastcifar.errors import UserError
from fastcifar.report.calibration import log_probabilities
from fastcifar.report.statistics import Summary, t_quantile

MOST_SUBSETS = 100
"""Subsets of one size, beyond which a sample of as many stands for all of them."""
_LISTED = 10_000
"""Up to so many subsets of one size are listed to draw from; of more, few are drawn twice."""
MeanOf = Literal["probabilities", "logits"]
"""What of the members is averaged. The mean of logits is, normalized, the geometric mean of probabilities."""
MEANS: tuple[MeanOf, ...] = ("probabilities", "logits")
_DENSE = 10
"""Each number of members up to this one has a row; above, each is a quarter larger than the one before."""
_FLOATS = 2**22
"""Numbers that an array of the computation holds at most, so that a thousand runs take no more memory than two."""
_t = functools.cache(functools.partial(t_quantile, 0.975))
_SMALLEST = np.finfo(np.float64).tiny
"""A mean probability of less is computed again from logarithms."""
_SMALLEST_LOSS = 700.0
"""The same in nats, with room for what is rounded."""


@dataclass(frozen=True)
class EnsembleScore:
    """The ensembles of so many members. Accuracies are fractions, losses log-losses in nats, both summaries over images
    of each one's mean over the subsets of runs: an interval is for other images of the same kind and the same runs."""

    members: int
    subsets: int
    """Subsets of the runs that were scored."""
    is_exact: bool
    """They are all that there are of this size."""
    accuracy: Summary
    loss: Summary
    accuracy_gain: Summary
    """The accuracy less the mean accuracy of all single runs, image by image: the interval is of paired differences."""
    loss_gain: Summary
    """The same of the loss: below 0 where the ensemble is better."""
    accuracy_std: float | None
    """Standard deviation between the subsets, which share runs; None for one subset."""
    loss_std: float | None


def default_sizes(members: int) -> list[int]:
    """Return numbers of members from 1 to `members`: all of the small ones, then each a quarter larger."""
    sizes = list(range(1, min(members, _DENSE) + 1))
    while sizes[-1] < members:
        sizes.append(min(members, math.ceil(sizes[-1] * 1.25)))
    return sizes


def choose_subsets(members: int, size: int, most: int = MOST_SUBSETS, seed: int = 0) -> np.ndarray:
    """Return different subsets of `size` of the numbers below `members`, a row each, ascending: all of them where
    there are at most `most`, or no more than runs; else `most` drawn at random, the same for the same seed."""
    count = math.comb(members, size)
    random = np.random.default_rng((seed, members, size))
    if count <= max(most, members, _LISTED):
        rows = np.array(list(itertools.combinations(range(members), size)))
        return rows if count <= max(most, members) else rows[np.sort(random.choice(count, most, replace=False))]
    rows = np.empty((0, size), np.int64)
    while len(rows) < most:
        drawn = np.sort(random.random((most, members)).argsort(1)[:, :size], 1)
        rows = np.concatenate([rows, drawn])
        rows = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])[:most]]  # in the order of drawing: no bias
    return rows


def score_ensembles(
    logits: np.ndarray,
    labels: np.ndarray,
    mean_of: MeanOf = "probabilities",
    sizes: Sequence[int] = (),
    most: int = MOST_SUBSETS,
    seed: int = 0,
) -> list[EnsembleScore]:
    """Return how good ensembles of some of the runs are, by their number of members.

    logits: `[runs, N, classes]`, of any float type and finite.
    labels: `[N]`; images labeled -1 count in nothing.
    mean_of: average the runs' probabilities, or their logits.
    sizes: numbers of members, ascending; by default `default_sizes`.
    most: subsets of one size; see `choose_subsets`.
    seed: names the choice of subsets.

    Raises UserError for a number of members that the runs do not have, for shapes that do not fit, and where no image
    has a label.
    """
    labeled = check_predictions(logits, labels)
    if not len(labeled):
        raise UserError("no image has a label; allowed: images with labels")
    runs, _, classes = logits.shape
    sizes = sizes or default_sizes(runs)
    if wrong := [size for size in sizes if not 1 <= size <= runs]:
        raise UserError(f"an ensemble of {wrong[0]} members is asked for; allowed: 1 to {runs}, as many as runs")
    subsets = {size: choose_subsets(runs, size, most, seed) for size in {1, *sizes}}
    right = {size: np.empty(len(labeled)) for size in subsets}  # of each image, the mean over subsets
    loss = {size: np.empty(len(labeled)) for size in subsets}
    sums = {size: np.zeros((2, len(rows))) for size, rows in subsets.items()}  # of each subset, over the images
    widest = max(runs, *map(len, subsets.values()))
    for places in pieces(len(labeled), widest * classes):
        images = labeled[places]
        part = logits[:, images]
        members = np.ascontiguousarray(_averaged(part, mean_of).transpose(0, 2, 1))
        for size, rows in subsets.items():
            are_right, losses = _score(_means(members, rows), labels[images], mean_of)
            if mean_of == "probabilities" and losses.max() > _SMALLEST_LOSS:
                _mend(losses, log_probabilities(part)[:, np.arange(len(images)), labels[images]], rows)
            right[size][places], loss[size][places] = are_right.mean(0), losses.mean(0)
            sums[size] += are_right.sum(1), losses.sum(1)
    found = []
    for size in sizes:
        count = len(subsets[size])
        stds = (sums[size] / len(labeled)).std(1, ddof=1).tolist() if count > 1 else (None, None)
        score = EnsembleScore(
            members=size,
            subsets=count,
            is_exact=count == math.comb(runs, size),
            accuracy=over_images(right[size]),
            loss=over_images(loss[size]),
            accuracy_gain=over_images(right[size] - right[1]),
            loss_gain=over_images(loss[size] - loss[1]),
            accuracy_std=stds[0],
            loss_std=stds[1],
        )
        found.append(score)
    return found


def mean_logits(logits: np.ndarray, mean_of: MeanOf = "probabilities") -> np.ndarray:
    """Return logits `[N, classes]`, float64, of the ensemble of all runs in `logits` `[runs, N, classes]`."""
    total = np.zeros(logits.shape[1:])
    for member in logits:
        total += _averaged(member, mean_of)
    total /= len(logits)
    if mean_of == "logits":
        return total
    found, small = np.log(np.maximum(total, _SMALLEST)), total < _SMALLEST
    if small.any():
        logs = np.full(small.sum(), -np.inf)
        for member in logits:
            logs = np.logaddexp(logs, log_probabilities(member)[small])
        found[small] = logs - math.log(len(logits))
    return found


def over_images(values: np.ndarray) -> Summary:
    """Return the summary of a value for each image, as `summarize` does: of thousands of images, where Student's t is
    the normal distribution, in no time."""
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Summary(1, mean, None, None)
    std = float(values.std(ddof=1))
    half = _t(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half, mean + half))


def check_predictions(logits: np.ndarray, labels: np.ndarray, runs: int = 1) -> np.ndarray:
    """Return the places of the images that have a label. Raises UserError for arrays that are not `[runs, N, classes]`
    and `[N]`, and for fewer runs than `runs`."""
    if logits.ndim != 3 or labels.shape != logits.shape[1:2] or not logits.size:
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise UserError(f"the shapes of logits and labels are {shapes}; allowed: [runs, N, classes] and [N]")
    if len(logits) < runs:
        raise UserError(f"the predictions are those of {len(logits)} run; allowed: {runs} runs or more")
    return np.flatnonzero(labels >= 0)


def pieces(count: int, width: int) -> list[slice]:
    """Return slices of `count` images, of which each takes `width` numbers, that are computed one after the other."""
    step = max(1, _FLOATS // width)
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _averaged(logits: np.ndarray, mean_of: MeanOf) -> np.ndarray:
    """Return what is averaged, float64. Logits stay as they are: the sums of some that a network computed in half
    precision are exact, so that equal ones stay equal and the first class is the answer, in whatever order."""
    return np.exp(log_probabilities(logits)) if mean_of == "probabilities" else logits.astype(np.float64)


def _means(members: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the means `[subsets, classes, N]` of members `[runs, classes, N]`, as one product."""
    if rows.shape[1] == 1:
        return members[rows[:, 0]]
    weights = np.zeros((len(rows), len(members)))
    np.put_along_axis(weights, rows, 1, 1)
    sums = weights @ members.reshape(len(members), -1)
    sums /= rows.shape[1]
    return sums.reshape(len(rows), *members.shape[1:])


def _score(means: np.ndarray, labels: np.ndarray, mean_of: MeanOf) -> tuple[np.ndarray, np.ndarray]:
    """Return for each subset and image whether the answer is right, and the log-loss, `[subsets, N]`, of means
    `[subsets, classes, N]`: classes lie before images, as sums over a last axis of ten take several times as long."""
    largest, answers = means[:, 0].copy(), np.zeros(means[:, 0].shape, np.int64)
    for number in range(1, means.shape[1]):
        np.copyto(answers, number, where=means[:, number] > largest)
        np.maximum(largest, means[:, number], out=largest)
    at_label = means[:, labels, np.arange(len(labels))]
    if mean_of == "probabilities":
        return answers == labels, -np.log(np.maximum(at_label, _SMALLEST))
    means -= largest[:, None]
    return answers == labels, largest + np.log(np.exp(means, out=means).sum(1)) - at_label


def _mend(losses: np.ndarray, log_at: np.ndarray, rows: np.ndarray) -> None:
    """Put in place of losses `[subsets, N]` whose mean probability is too small for a number those by the logarithms of
    the members' probabilities of the labels, `log_at` `[runs, N]`."""
    subsets, images = np.nonzero(losses > _SMALLEST_LOSS)
    for part in pieces(len(subsets), rows.shape[1]):
        logs = log_at[rows[subsets[part]], images[part, None]]
        losses[subsets[part], images[part]] = math.log(rows.shape[1]) - np.logaddexp.reduce(logs, 1)
