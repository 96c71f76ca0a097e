"""Which hidden units do little: ReDo's dormant ones and continual backprop's least useful ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch


def magnitudes(values: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the mean magnitude of each unit `[U]` over the images and pixels of activations `[N, U]` or
    `[N, U, H, W]`; `dtype`: of the result, and in which it is computed."""
    others = [dim for dim in range(values.dim()) if dim != 1]
    return values.abs().mean(others, dtype=dtype)  # faster, and nearer in float32, than vector_norm


def follow(average: torch.Tensor, magnitudes: torch.Tensor, decay: float) -> None:
    """Let a moving `average` `[U]` follow the units' `magnitudes` `[U]` of a step. That of a unit that was not finite
    at the step before begins again at 0."""
    average.nan_to_num_(0.0, 0.0, 0.0).lerp_(magnitudes, 1 - decay)


def dormant(magnitudes: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which units of a layer are dormant, bool `[U]`: those whose mean magnitude `[U]` is at most `threshold`
    times the mean of the layer's (Sokar 2023, arXiv 2302.12902); all where all are 0. A unit that is not finite is
    dormant too, and not in the mean."""
    finite = magnitudes.isfinite()
    return ~finite | (magnitudes <= threshold * magnitudes.where(finite, torch.nan).nanmean())


def outgoing(weight: torch.Tensor, units: int) -> torch.Tensor:
    """Return the mean magnitude of the weights that read each unit `[U]`, for those of the layer behind,
    `[out, U, ...]`, or `[out, U * k]` behind a flattened convolution."""
    return weight.reshape(len(weight), units, -1).abs().mean((0, 2))


def utilities(averages: torch.Tensor, ages: torch.Tensor, decay: float, weight: torch.Tensor) -> torch.Tensor:
    """Return the contribution utility of each unit `[U]` (Dohare 2023, arXiv 2306.13812): its mean magnitude times that
    of the weights that read it.

    averages: exponential moving averages `[U]` of magnitudes, from 0, which are divided by 1 - decay ** age.
    ages: steps in them, `[U]`, 1 or more.
    decay: of the averages, by step.
    weight: of the layer behind; see `outgoing`.
    """
    return averages / (1 - decay ** ages.to(averages.dtype)) * outgoing(weight, len(averages))


def least_useful(utilities: torch.Tensor, ages: torch.Tensor, maturity: int, count: int) -> torch.Tensor:
    """Return the `count` units with the least of `utilities` `[U]` among those older than `maturity` steps, bool
    `[U]`; there must be as many. What is not finite is the least."""
    mature = torch.where(ages > maturity, utilities.nan_to_num(-torch.inf, -torch.inf, -torch.inf), torch.inf)
    chosen = torch.topk(mature, count, largest=False).indices
    return torch.zeros_like(ages, dtype=torch.bool).scatter_(0, chosen, True)


def replacements(units: int, rate: float, maturity: int, steps: int) -> Iterator[int]:
    """Give the number of units of a layer that are replaced after each of `steps` steps.

    Once some are older than `maturity` steps, `rate * units` more are due at each step, and whole ones are replaced, at
    most those that are that old. Their ages begin again, so that which units it is makes no difference to the number.
    """
    born, waiting, mature = deque([(0, units)]), 0.0, 0
    for step in range(1, steps + 1):
        while born and step - born[0][0] > maturity:
            mature += born.popleft()[1]
        waiting += rate * units if mature else 0
        count = min(int(waiting), mature)
        waiting, mature = waiting - count, mature - count
        if count:
            born.append((step, count))
        yield count
