"""`descend`: cyclical coordinate descent on a grid, as in "How to train your ResNet 5" (Page 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

Point = tuple[int, ...]
"""A place on the grid: for each axis the steps from the start, which is all zeros."""
_FAR = 10
"""Steps down from a point that diverges: from a rate a thousand times too high, by halves."""


@dataclass(frozen=True)
class Visit:
    """A point whose cost the search asks for."""

    point: Point
    cycle: int = 0
    """From 1; 0 is the start."""
    axis: int | None = None
    """The axis along which it was reached; None: it is the start."""


def descend(
    axes: int, move: Callable[[Point, int, int], Point | None], most_cycles: int
) -> Generator[Visit, float, bool]:
    """Give every point whose cost is asked for, once, and take its cost by `send`; return True at a point that no move
    makes better, and False where `most_cycles` end it before.

    A very crude line search goes along one axis after the other: up as long as every step lowers the cost, and down
    where the first step up does not. From a point of infinite cost, one that diverges, it goes down until one is
    finite, `_FAR` steps at most. When all axes have had their turn, a cycle is over; the last one brings nothing.

    move: the point one step from another along an axis, up (1) or down (-1); None where there is none. What it gives
        must depend on its arguments alone, and a step back must lead where the step came from.

    Costs may be infinite, not NaN.
    """
    best: Point = (0,) * axes
    costs: dict[Point, float] = {best: (yield Visit(best))}
    for cycle in range(1, most_cycles + 1):
        before = best
        for axis in range(axes):
            for direction in (1, -1):
                begun = point = best
                while (point := move(point, axis, direction)) is not None:
                    if point not in costs:
                        costs[point] = yield Visit(point, cycle, axis)
                    if costs[point] < costs[best]:
                        best = point
                    elif costs[best] < math.inf or direction == 1 or begun[axis] - point[axis] >= _FAR:
                        break
                if best != begun:  # the other direction is where it came from
                    break
        if best == before:
            return True
    return False
