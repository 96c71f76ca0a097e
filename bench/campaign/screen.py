"""Part `screen`: what some changes of `RECIPE` are worth, all varied at once by a design, on held-out images: as many
rounds of the design as its time allows. `fastcifar screen` in a process of the campaign."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import dataset
from bench.campaign.recipes import get_recipe
from fastcifar.experiments import Job, Outcome
from fastcifar.experiments.named.screen import Screen
from fastcifar.experiments.result import failed_from
from fastcifar.experiments.runner import Runner
from fastcifar.experiments.store import describe_data
from fastcifar.recipes import change
from fastcifar.training import Run, RunRecord

RECIPE = "speedrun94"
FACTORS = (
    "select.keep=0.65..0.55",
    "optimizer.lr=0.19..0.17",
    "optimizer.momentum=0.655..0.7",
    "select.from_epoch=2..1",
    "augment.early_crops=24 0.2 28 0.6..24 0.3 28 0.6",
    "optimizer.ns_steps=3..2",
    "network.activation=gelu..silu",
    "augment.crop=2..3",
    "augment.brightness=0.14..0.1,augment.contrast=0.13..0.1",
    "network.norm_momentum=0.4434..0.3",
    "epochs=11..10.5",
)
"""The changes, each with both of its values, so that they stay what they are where the recipe changes. The last says
what FLOP are worth."""
_RUNS = 500  # wanted over all calls, at most
_TINY = 3  # factors


def screen(campaign: Campaign) -> Iterator[Line]:
    """Train the runs of the design that earlier calls have left out, and after each round say what all show."""
    experiment = _experiment(campaign.tiny)
    images = dataset(campaign).hold_out(32 if campaign.tiny else experiment.holdout)
    jobs, settings = experiment.jobs(images), {**experiment.settings(), **describe_data(images, campaign.device)}
    kept = _Kept(campaign.records("screen", "run"), jobs)
    said = [each for each in campaign.records("screen", "effects") if each["factors"] == list(experiment.factors)]
    known = max((each["rounds"] for each in said), default=0)
    result = experiment.result(settings, {arm: [] for arm in experiment.design})
    longest, began = 0.0, time.monotonic()
    for job, outcome in Runner(jobs, images, kept, campaign.device):
        result.outcomes[job.arm].append(outcome)
        if job.key in kept.new:
            if isinstance(outcome, RunRecord):
                campaign.require_capture(RECIPE, outcome.captured, outcome.not_captured)
            yield {"what": "run", "key": job.key, **outcome.to_json()}
            longest = max(longest, time.monotonic() - began)
        if job.arm == jobs[len(experiment.design) - 1].arm and result.n > known:
            (table,) = result.tables()
            facts = {"factors": list(experiment.factors), "rounds": result.n, "remarks": result.remarks()}
            yield {"what": "effects", **facts, "table": dataclasses.asdict(table)}
        if campaign.seconds_left < longest:
            return
        began = time.monotonic()


def _experiment(tiny: bool) -> Screen:
    """Return the experiment, in enough rounds for `_RUNS`. A search for cuDNN's fastest convolutions takes a while for
    each of the design's recipes, and changes no result."""
    recipe = change(get_recipe(RECIPE, tiny), {"cudnn_search": False})
    screen = Screen(recipe=recipe, factors=FACTORS[:_TINY] if tiny else FACTORS)
    return dataclasses.replace(screen, runs=2 if tiny else 2 * (_RUNS // (2 * len(screen.design))))


class _Kept:
    """The runs of earlier calls and of this one, for the runner."""

    def __init__(self, records: list[Line], jobs: Sequence[Job]) -> None:
        recipes = {job.key: job.recipe for job in jobs}
        self._outcomes: dict[str, Outcome] = {}
        self.new: set[str] = set()
        for record in records:
            outcome = failed_from(record) or RunRecord.from_json(record, "screen.jsonl")
            if isinstance(outcome, RunRecord) and outcome.recipe == recipes.get(record["key"]):
                self._outcomes[record["key"]] = outcome

    def get(self, job: Job) -> Outcome | None:
        return self._outcomes.get(job.key)

    def has(self, job: Job) -> bool:
        return job.key in self._outcomes

    def put(self, job: Job, outcome: Outcome, run: Run | None, weights: bool) -> Outcome:
        self._outcomes[job.key] = outcome
        self.new.add(job.key)
        return outcome

    def weights(self, key: str) -> Path:
        return Path(key)  # there is none

    def claim(self, job: Job) -> contextlib.AbstractContextManager[bool]:
        return contextlib.nullcontext(True)

    def state(self, job: Job) -> None:
        return None

    def listeners(self, job: Job) -> tuple[()]:
        return ()
