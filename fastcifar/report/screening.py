"""Two-level designs that vary many factors at once (Plackett and Burman 1946), and the effects that their runs show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastcifar.errors import UserError
from fastcifar.report.statistics import t_quantile

_CYCLES = {12: "++-+++---+-", 20: "++--++++-+-+----++-", 24: "+++++-+-++--++--+-+----"}
"""The first rows of the designs of Plackett and Burman, whose others are their shifts and one of minus signs."""
_RUNS = (4, 8, 12, 16, 20, 24)
MOST_FACTORS = _RUNS[-1] - 1
_ZERO = 1e-9
"""What of numbers about 1 is rounding."""

Signs = tuple[int, ...]
"""A run of a design: for each factor 1, high, or -1, low."""


def plackett_burman(factors: int) -> tuple[Signs, ...]:
    """Return the smallest design of 4, 8, 12, 16, 20 or 24 runs that has more runs than `factors`; in the first run all
    are low.

    Each factor is high in half of the runs, and any two are alike in half of them: the effect of each is estimated from
    all runs, free of the others. Designs of 4, 8 and 16 runs are Sylvester's; up to 2, 4 and 8 factors they are free of
    effects of pairs, too. Raises UserError for no factor, and for more than 23.
    """
    if not 1 <= factors <= MOST_FACTORS:
        raise UserError(f"there are {factors} factors; allowed: 1 to {MOST_FACTORS}")
    runs = next(size for size in _RUNS if size > factors)
    if runs in _CYCLES:
        cycle = [1 if sign == "+" else -1 for sign in _CYCLES[runs]]
        rows = [[-1] * (runs - 1), *([cycle[place - shift] for place in range(runs - 1)] for shift in range(runs - 1))]
    else:  # a column whose number has an odd count of bits is no product of two such columns
        columns = sorted(range(1, runs), key=lambda column: column.bit_count() % 2 == 0)
        rows = [[1 if (run & column).bit_count() % 2 else -1 for column in columns] for run in range(runs)]
    return tuple(tuple(row[:factors]) for row in rows)


@dataclass(frozen=True)
class Effect:
    """The change of the mean result from all low to all high, of a factor or of several together."""

    mean: float
    interval: tuple[float, float] | None
    """95% interval by Student's t; None without degrees of freedom, and where all residuals are 0."""


@dataclass(frozen=True)
class Effects:
    """Effects of factors by least squares, from runs of a design or from what is left of them.

    Each block of runs has a mean of its own, so that what differs between blocks is in no effect.
    """

    signs: Sequence[Signs]
    blocks: Sequence[int]
    """The block of each run."""
    values: Sequence[float]
    """The result of each run."""

    def of(self, factor: int) -> Effect | None:
        """Return the effect of a factor; None where the runs cannot tell it from others."""
        return self.together([float(place == factor) for place in range(self.factors)])

    def together(self, weights: Sequence[float]) -> Effect | None:
        """Return the sum of the factors' effects, each times its weight; None where the runs cannot tell it."""
        asked = [*weights, *[0.0] * len(set(self.blocks))]
        contrast = asked @ self._inverse
        if abs(contrast @ self._matrix - asked).max() > _ZERO:
            return None
        mean = float(contrast @ self.values)
        if self.std is None:
            return Effect(mean, None)
        half = t_quantile(0.975, self.df) * self.std * math.sqrt(contrast @ contrast)
        return Effect(mean, (mean - half, mean + half))

    @property
    def factors(self) -> int:
        return len(self.signs[0])

    @cached_property
    def df(self) -> int:
        """Degrees of freedom of the residuals."""
        import numpy as np

        return len(self.values) - int(np.linalg.matrix_rank(self._matrix))

    @cached_property
    def std(self) -> float | None:
        """The standard deviation of a run's result, from the residuals; None without degrees of freedom, and where they
        are all 0: runs that chance changes are never so."""
        residuals = self.values - self._matrix @ (self._inverse @ self.values)
        if not self.df or abs(residuals).max() <= _ZERO * max(map(abs, self.values)):
            return None
        return math.sqrt(residuals @ residuals / self.df)

    @cached_property
    def is_clear(self) -> bool:
        """True where no effect of a pair of factors (what one changes at the other's effect) shifts an effect."""
        import numpy as np

        signs = np.array(self.signs)
        pairs = [signs[:, one] * signs[:, other] for one, other in itertools.combinations(range(self.factors), 2)]
        return not pairs or bool(abs(self._inverse[: self.factors] @ np.transpose(pairs)).max() < _ZERO)

    @cached_property
    def _matrix(self) -> Any:
        """A column for each factor, -1/2 and 1/2, and one for each block, 0 and 1."""
        import numpy as np

        blocks = [[float(block == each) for block in self.blocks] for each in sorted(set(self.blocks))]
        return np.hstack([np.array(self.signs) / 2, np.transpose(blocks)])

    @cached_property
    def _inverse(self) -> Any:
        import numpy as np

        return np.linalg.pinv(self._matrix)
