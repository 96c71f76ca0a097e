"""The parts of each stage with their shares of its time, and the order in which they have their turns.

While the rivals' programs compile in the background, for minutes, the other parts run one after the other. When all are
ready each is raced, as soon as the present part is over and alone on the machine; so are those that are ready when no
more time is left than the races are to have, and the others are ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bench.campaign.campaign import Campaign, Line
from bench.campaign.ceilings import ceilings
from bench.campaign.kernels import compiled, errors, times
from bench.campaign.process import GRACE, Part, PartProcess
from bench.campaign.race import TINY_RIVAL, cold, race
from bench.campaign.recipes import MAIN, OTHER_SEARCH, REST
from bench.campaign.screen import screen
from bench.campaign.sizes import sizes
from bench.campaign.steps import steps
from bench.campaign.tests import tests
from bench.campaign.throughput import throughput
from bench.campaign.trainings import smoke, trainings

SECONDS = {"smoke": 150.0, "campaign": 330.0}  # of each stage, unless others are asked for

_RACE_SHARE = 0.11  # the share of a stage's seconds for the rounds with a rival
_LEAST_RACE = 0.10
"""The share that is kept for the rounds with each rival."""
_POLL = 0.2
"""Seconds from one look at the rivals to the next."""
_LEAST_PART = 0.25  # the share of a part's limit below which it is left out


def _of(recipe: str, run: Callable[..., Iterator[Line]], share: float, **options: Any) -> Part:
    """Return the part of one recipe, called as its function is."""
    return Part(run.__name__, partial(run, recipe=recipe, **options), run.__name__, share, recipe)


_CANDIDATES = ("speedrun94-55", "davidnet-alternating")

PARTS: dict[str, tuple[Part, ...]] = {
    "smoke": (
        _of("speedrun94", smoke, 0.45),
        Part("kernels", errors, "kernels", 0.4),
        _of("davidnet", smoke, 0.4),
        Part("tests", tests, "tests", 0.6),
        _of(OTHER_SEARCH, smoke, 0.3),
        *(_of(recipe, smoke, 0.3, runs=1) for recipe in REST),
    ),
    "campaign": (
        Part("kernels", errors, "kernels", 0.1),
        Part("ceilings", ceilings, "ceilings", 0.1),
        _of("speedrun94", steps, 0.07),
        _of("davidnet", steps, 0.07),
        _of("speedrun94", trainings, 0.15),
        _of("speedrun94-next", trainings, 0.07),
        _of("speedrun94-1536", trainings, 0.07),
        _of("davidnet", trainings, 0.08),
        Part("kernel-times", times, "kernels", 0.1),
        _of("speedrun94", trainings, 0.15),
        _of(OTHER_SEARCH, trainings, 0.05),
        _of("speedrun94-in-turn", trainings, 0.05),
        _of("speedrun94-1536", steps, 0.05),
        _of("speedrun95", steps, 0.05),
        _of("speedrun96", steps, 0.05),
        _of("speedrun94", trainings, 0.3),
    ),
}
"""The parts of each stage, in order of value; shares may sum to more than the whole."""

BY_NAME = (
    Part("cold", cold, "cold", 0.9),
    Part("ceilings-unlimited", partial(ceilings, search=0), "ceilings", 0.9),
    Part("compiled", compiled, "kernels", 0.9),
    *(_of(recipe, trainings, 0.3) for recipe in _CANDIDATES),
    Part("sizes", sizes, "sizes", 0.9),
    Part("conv-pool-sizes", partial(sizes, operators=("conv_pool", "conv_pool_backward")), "sizes", 0.9),
    Part("screen", screen, "screen", 0.95),
    *(_of(recipe, throughput, 0.3) for recipe in MAIN),
)
"""Parts of the campaign that run only where they are asked for by name."""
RACE = "race"
_ON_IMAGES = {"smoke", "trainings", "cold", "screen"}
"""Parts that train on the data set; races do, too."""


def wants_images(stage: str, only: Sequence[str], rivals: Sequence[str]) -> bool:
    """Return True if any part or race of the stage trains on the data set."""
    parts = [*parts_of(stage, only, tiny=False), *races(stage, only, rivals, tiny=False)]
    return any(part.name in _ON_IMAGES or part.name == RACE for part in parts)


def part_names() -> list[str]:
    """Return what --only may name, without recipes and rivals."""
    names = [part.name for part in (*PARTS["smoke"], *PARTS["campaign"])]
    return list(dict.fromkeys([*names, RACE, *(part.name for part in BY_NAME)]))


def parts_of(stage: str, only: Sequence[str], tiny: bool) -> list[Part]:
    """Return the stage's parts in their order; only those in `only`, if it names any. With `tiny` each comes once, for
    the main recipes alone, and the tests only by name."""
    parts: Sequence[Part] = PARTS[stage]
    if only:
        parts = [part for part in (*parts, *(BY_NAME if stage == "campaign" else ())) if part.names.intersection(only)]
    if not tiny:
        return list(parts)
    small = {part.title: part for part in parts if part.of in ("", *MAIN)}
    return [part for part in small.values() if part.name != "tests" or "tests" in only]


def races(stage: str, only: Sequence[str], rivals: Sequence[str], tiny: bool) -> list[Part]:
    """Return the stage's races, one a rival."""
    if stage != "campaign" or (only and RACE not in only):
        return []
    rivals = [TINY_RIVAL] if tiny else rivals
    return [Part(RACE, partial(race, rival=rival), "race", 1.0, rival) for rival in rivals]


class Stage:
    """Parts and races that share some seconds.

    campaign: what they are given.
    seconds: what they share.
    limits: by part's name or its title, which counts more, the seconds after which it is ended, in place of its share;
        of a race, those of its rounds.
    tell: is called with a line about each.
    """

    def __init__(
        self, campaign: Campaign, seconds: float, limits: Mapping[str, float], tell: Callable[[str], None]
    ) -> None:
        self.campaign, self.seconds, self.limits, self.tell = campaign, seconds, limits, tell
        self._ends = time.monotonic() + seconds - GRACE

    def run(self, parts: Sequence[Part], races: Sequence[Part]) -> None:
        """Run each in its turn while there is time."""
        waiting = list(parts)
        racing: list[PartProcess] = []
        running: PartProcess | None = None
        try:
            racing += [started for rival in races if (started := self._start(rival, self._left))]
            while waiting or racing:
                for rival in [rival for rival in racing if rival.is_over]:
                    racing.remove(rival)
                    self._finish(rival)
                ready = [rival for rival in racing if rival.is_ready]
                compiling = [rival for rival in racing if rival not in ready]
                if ready and (not compiling or self._left <= self._kept(racing)):
                    for rival in compiling:  # would disturb the others
                        rival.cut_short()
                        self._finish(rival)
                    while ready:  # the rounds of each, at least one: a long one leaves the others what is kept
                        rival = ready.pop(0)
                        seconds = min(self._wanted(rival.part, _RACE_SHARE), self._left / (len(ready) + 1))
                        most = min(max(2 * seconds, self._kept([rival])), self._left - self._kept(ready))
                        rival.take_turn(seconds, max(seconds, most))
                        self._finish(rival)
                    racing = []
                elif waiting and (not racing or self._limit(waiting[0], racing)):
                    part = waiting.pop(0)
                    beside = ", ".join(rival.part.title for rival in compiling) or None
                    running = self._start(part, self._limit(part, racing), beside)
                    self._finish(running)
                    running = None
                elif compiling:
                    compiling[0].wait(or_ready=True, seconds=_POLL)
        finally:
            for process in (running, *racing):
                if process:
                    process.end()

    @property
    def _left(self) -> float:
        return self._ends - time.monotonic()

    def _limit(self, part: Part, racing: Sequence[PartProcess]) -> float:
        """Return the seconds after which the part is ended; 0 where too few are left, those apart that are kept."""
        left = self._left - self._kept(racing)
        wanted = self._wanted(part, part.share)
        return min(wanted, left) if left >= _LEAST_PART * wanted else 0.0

    def _kept(self, racing: Sequence[PartProcess]) -> float:
        """Return the seconds that are kept for the rounds with these rivals."""
        return _LEAST_RACE * self.seconds * len(racing)

    def _wanted(self, part: Part, share: float) -> float:
        """Return the part's seconds in `limits`, by its title or else its name; that share of all where it has none."""
        return self.limits.get(part.title, self.limits.get(part.name, share * self.seconds))

    def _start(self, part: Part, limit: float, beside: str | None = None) -> PartProcess | None:
        if limit:
            return PartProcess(part, dataclasses.replace(self.campaign, beside=beside), limit)
        self.tell(f"{part.title}: left out, the time is up")
        return None

    def _finish(self, process: PartProcess | None) -> None:
        if process:
            process.wait()
            self.tell(process.conclude(self.campaign))
