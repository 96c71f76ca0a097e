"""Effective robustness: the accuracy on shifted test images beyond what the accuracy on the original ones predicts
(Taori et al. 2020, arXiv 2007.00644).

What it predicts is the baseline, a line on logit axes through the pairs of accuracies of many ordinary networks. Miller
et al. (2021, arXiv 2107.04649) draw it on probit axes, which differ little between 1% and 99%.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from fastcifar.errors import UserError, brief
from fastcifar.report.figures import GRAY, Figure, Line
from fastcifar.report.statistics import share_interval, t_quantile, wilson_interval

_TABLE = Path(__file__).with_name("published.csv")
_LEAST = 5
"""Networks that a baseline takes at least."""
_NEAREST = 1e-12
"""Accuracies of 0 and 1, which lie at infinity on logit axes, are taken to be so near to them."""
_MANY = 20_000
"""More images than Clopper's and Pearson's sums are taken over."""
_STEPS = 100
"""Parts of the baseline as it is drawn."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class AccuracyPair:
    """The accuracies, fractions, of a network on the original and on the shifted test images.

    Raises UserError for what is no fraction, and for numbers of images below 1.
    """

    name: str
    original: float
    shifted: float
    images: int | None = None
    """Number of the original images; None: not known, and there is no interval."""
    shifted_images: int | None = None
    """Number of the shifted images."""
    group: str = "runs"
    """What the network is, for the legend of a figure."""

    def __post_init__(self) -> None:
        for what in ("original", "shifted"):
            if not 0 <= getattr(self, what) <= 1:
                raise UserError(f"{what} of {brief(self.name)} is {getattr(self, what)!r}; allowed: 0 to 1, a fraction")
        for what in ("images", "shifted_images"):
            if (count := getattr(self, what)) is not None and count < 1:
                raise UserError(f"{what} of {brief(self.name)} is {count!r}; allowed: 1 or more")

    @cached_property
    def interval(self) -> Interval | None:
        """95% interval of `original`, of the choice of the images (Clopper and Pearson 1934; of more than 20,000 images
        Wilson's of 1927, which is as wide)."""
        return _chance(self.original, self.images)

    @cached_property
    def shifted_interval(self) -> Interval | None:
        """95% interval of `shifted`, likewise. It is too wide for a mean over corruptions of the same images."""
        return _chance(self.shifted, self.shifted_images)


@dataclass(frozen=True)
class Baseline:
    """The line logit(shifted) = intercept + slope · logit(original) through the accuracies of `pairs`; see
    `fit_baseline`."""

    slope: float
    intercept: float
    pairs: tuple[AccuracyPair, ...]
    """The networks that it was fitted to."""
    source: str = ""
    """What these are."""

    def predict(self, original: float) -> float:
        """Return the accuracy on the shifted images that goes with an accuracy on the original ones."""
        return _accuracy(self.intercept + self.slope * _logit(original))

    def band(self, original: float) -> Interval:
        """Return the 95% interval of `predict(original)`, by Student's t of the regression with n - 2 degrees of
        freedom: where the line may lie, not the networks about it."""
        distance = _logit(original) - self._middle
        middle = self.intercept + self.slope * _logit(original)
        half = self._t * self.std * math.sqrt(1 / len(self.pairs) + distance**2 / self._spread)
        return _accuracy(middle - half), _accuracy(middle + half)

    @property
    def slope_interval(self) -> Interval:
        """95% interval of the slope, by the same t."""
        half = self._t * self.std / math.sqrt(self._spread)
        return self.slope - half, self.slope + half

    @cached_property
    def std(self) -> float:
        """Standard deviation of the networks about the line on the logit axis (divisor n - 2)."""
        residuals = (_logit(pair.shifted) - self.intercept - self.slope * _logit(pair.original) for pair in self.pairs)
        return math.sqrt(math.fsum(each**2 for each in residuals) / (len(self.pairs) - 2))

    @property
    def range(self) -> Interval:
        """The least and the largest original accuracy of `pairs`."""
        found = [pair.original for pair in self.pairs]
        return min(found), max(found)

    @cached_property
    def _middle(self) -> float:
        return statistics.fmean(_logit(pair.original) for pair in self.pairs)

    @cached_property
    def _spread(self) -> float:
        return math.fsum((_logit(pair.original) - self._middle) ** 2 for pair in self.pairs)

    @property
    def _t(self) -> float:
        return t_quantile(0.975, len(self.pairs) - 2)


@dataclass(frozen=True)
class EffectiveRobustness:
    """The effective robustness of a network, in fractions of 1."""

    predicted: float
    """What the baseline predicts."""
    value: float
    """The accuracy on the shifted images less what is predicted."""
    interval: Interval | None
    """95% interval of `value`: of the choice of both sets of images, and of the baseline's fit. None where the numbers
    of images are not known."""


def fit_baseline(pairs: Sequence[AccuracyPair], source: str = "") -> Baseline:
    """Return the least-squares line through `pairs` on logit axes. Accuracies of 0 and 1 are left out.

    source: what the networks are, for titles.

    Raises UserError for fewer than five networks, and where their original accuracies differ by no more than chance:
    where the intervals of the least and the largest meet.
    """
    inside = tuple(pair for pair in pairs if 0 < pair.original < 1 and 0 < pair.shifted < 1)
    if len(inside) < _LEAST:
        said = f"a baseline takes {_LEAST} networks with accuracies above 0% and below 100%"
        raise UserError(f"{said}, and there are {len(inside)}; allowed: {_LEAST} or more")
    low, high = (pick(inside, key=lambda pair: pair.original) for pick in (min, max))
    if (low.interval or (0, low.original))[1] >= (high.interval or (high.original, 1))[0]:
        said = f"the accuracies on the original images, {low.original:.2%} to {high.original:.2%}"
        raise UserError(f"{said}, differ by no more than chance; allowed: {_LEAST} or more networks that differ")
    x, y = ([_logit(getattr(pair, name)) for pair in inside] for name in ("original", "shifted"))
    slope, intercept = statistics.linear_regression(x, y)
    return Baseline(slope, intercept, inside, source)


@cache
def _published() -> tuple[list[str], list[list[str]]]:
    """Return the data sets of the published table, the original one first, and the rows, first the images' numbers."""
    lines = _TABLE.read_text(encoding="utf-8").splitlines()
    (_, *names), *rows = csv.reader(line for line in lines if not line.startswith("#"))
    return names, rows


def published_sets() -> tuple[str, list[str]]:
    """Return the names of the data set whose test images are the original ones of the published networks, and of those
    whose images are shifted."""
    (original, *shifted), _ = _published()
    return original, shifted


def published_pairs(name: str) -> tuple[AccuracyPair, ...]:
    """Return the accuracies of 30 networks on the test images of CIFAR-10 and on those of CIFAR-10.1.

    name: the data set of the shifted images, version 6 or, with ":v4", version 4.

    The networks are those of Recht et al. (2018, arXiv 1806.00451); right answers were counted from the predictions in
    modestyachts/CIFAR-10.1. Raises UserError for another name.
    """
    names, (images, *rows) = _published()
    if name not in names[1:]:
        allowed = f"{', '.join(names[1:])}; of others, fit_baseline of networks of your own"
        raise UserError(f"no pairs of accuracies are published for {brief(name)}; allowed: {allowed}")
    places = 1, 1 + names.index(name)
    n, m = (int(images[place]) for place in places)
    found = []
    for row in rows:
        original, shifted = (int(row[place]) for place in places)
        found.append(AccuracyPair(row[0], original / n, shifted / m, n, m, "published networks"))
    return tuple(found)


def published_baseline(name: str) -> Baseline:
    """Return the baseline of `published_pairs`."""
    pairs = published_pairs(name)
    return fit_baseline(pairs, f"{len(pairs)} networks of Recht et al. 2018")


def effective_robustness(pair: AccuracyPair, baseline: Baseline) -> EffectiveRobustness:
    """Return the effective robustness of a network.

    What chance may change adds up in squares, each side of the interval for itself: the two accuracies, as if of images
    chosen apart, and the line (MOVER: Zou and Donner 2008). Where the shifted images are made of the original ones both
    accuracies mostly move together, and the interval is too wide.
    """
    predicted, (below, above) = baseline.predict(pair.original), baseline.band(pair.original)
    value = pair.shifted - predicted
    if pair.interval is None or pair.shifted_interval is None:
        return EffectiveRobustness(predicted, value, None)
    low, high = sorted(map(baseline.predict, pair.interval))
    least, most = pair.shifted_interval
    down = math.hypot(pair.shifted - least, high - predicted, above - predicted)
    up = math.hypot(most - pair.shifted, predicted - low, predicted - below)
    return EffectiveRobustness(predicted, value, (value - down, value + up))


def plot_effective_robustness(
    points: Sequence[AccuracyPair],
    baseline: Baseline | str | None = None,
    *,
    original: str = "the original test images",
    shifted: str = "the shifted test images",
    title: str = "",
) -> Figure:
    """Return the figure of accuracies on original and shifted images on logit axes; its `save(stem)` draws it.

    points: the networks, each with its intervals, in a color for each `group`.
    baseline: the line of effective robustness 0, which is drawn with its 95% band and its networks; a name is that of a
        published one, as `published_pairs` has it; None: fitted to `points`.
    original, shifted: what the images are, for the axes.

    Raises UserError for another name, and where no baseline can be fitted.
    """
    if isinstance(baseline, str):
        original, shifted, baseline = published_sets()[0], baseline, published_baseline(baseline)
    elif baseline is None:
        baseline = fit_baseline(points)
    others = [pair for pair in baseline.pairs if pair not in points]
    inside = [pair.original for pair in (*points, *baseline.pairs) if 0 < pair.original < 1]
    first, last = _logit(min(inside)), _logit(max(inside))
    x = [_accuracy(first + (last - first) * step / _STEPS) for step in range(_STEPS + 1)]
    band = [baseline.band(each) for each in x]
    lines = [Line(x, list(map(baseline.predict, x)), 0, "effective robustness 0, 95% band", band=band, bare=True)]
    lines += [Line((x[0], x[-1]), (x[0], x[-1]), GRAY, "the same accuracy", faint=True)]
    lines += [_marks(others, 0, baseline.source or others[0].group, faint=True)] if others else []
    for color, group in enumerate(dict.fromkeys(pair.group for pair in points), 1):
        lines.append(_marks([pair for pair in points if pair.group == group], color, group))
    axes = f"accuracy on {original}", f"accuracy on {shifted}"
    return Figure(*axes, tuple(lines), accuracies=True, title=title)


def _marks(pairs: Sequence[AccuracyPair], color: int, label: str, faint: bool = False) -> Line:
    """Return a mark for each pair, with both of its intervals."""
    x, y = [pair.original for pair in pairs], [pair.shifted for pair in pairs]
    upright, level = [pair.shifted_interval for pair in pairs], [pair.interval for pair in pairs]
    return Line(x, y, color, label, faint, upright, marks=True, level=level)


def _chance(accuracy: float, images: int | None) -> Interval | None:
    if images is None:
        return None
    interval = share_interval if images <= _MANY else wilson_interval
    return interval(round(accuracy * images), images)


def _logit(accuracy: float) -> float:
    inside = min(max(accuracy, _NEAREST), 1 - _NEAREST)
    return math.log(inside / (1 - inside))


def _accuracy(logit: float) -> float:
    return (1 + math.tanh(logit / 2)) / 2
