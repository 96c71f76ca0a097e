"""Several recipes trained in turn on one dataset, so that what changes with time, as a machine's speed, meets all
alike."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from fastcifar.data import Dataset
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments.outcome import Diverged, Outcome, get_outcome
from fastcifar.experiments.runs import SEEDS, OnProgress, Progress
from fastcifar.experiments.store import Store
from fastcifar.recipes import Recipe
from fastcifar.training import Listener, Trainer

Plan = Sequence[tuple[str, int]]
"""The runs in their order, each the name of its arm and its seed."""

_TRAINERS = 2
"""Arms that are always kept ready to train: those of a comparison."""


def train_arms(
    arms: Mapping[str, Recipe],
    dataset: Dataset,
    plan: Plan,
    store: Store,
    device: str | torch.device = "auto",
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[str, int, Outcome]]:
    """Train the runs of `plan` one by one, those that are in `store` excepted, and give each one's arm, seed and
    outcome when it is finished: stop listening to stop training.

    Raises UserError where a kept run is of another recipe than its arm.
    """
    trainers: dict[str, Trainer] = {}
    listeners = [Listener(on_step=on_step)] if on_step else []
    seconds: dict[str, list[float]] = {}
    for number, (arm, seed) in enumerate(plan):
        key = f"{arm}/seed-{seed}"
        outcome = get_outcome(store, key)
        kept = outcome is not None
        if outcome is None:
            began = time.perf_counter()
            trainer = trainers.get(arm) or Trainer(arms[arm], dataset, device)
            if len(trainers) < _TRAINERS or _has_room(trainer.device):
                trainers[arm] = trainer  # any other is made ready anew for each of its runs
            try:
                outcome = trainer.run(seed, listeners=listeners, eval_every=0).record
            except NonFiniteLoss as error:
                outcome = Diverged(str(error))
            store.put(key, outcome.to_json())
            seconds.setdefault(arm, []).append(time.perf_counter() - began)
        else:
            _refuse_other_recipe(store, key, outcome, arms[arm])
        if on_progress:
            on_progress(Progress(number + 1, len(plan), key, outcome, kept, _left(plan[number + 1 :], seconds, store)))
        yield arm, seed, outcome


def held_out(dataset: Dataset, holdout: int) -> Dataset:
    """`dataset` with `holdout` training images in the place of its test split; as it is, where that was done before or
    `holdout` is 0."""
    return dataset.hold_out(holdout) if holdout and not dataset.holdout else dataset


def check_runs(runs: int, seed: int) -> None:
    """Raise UserError unless there are runs, and their seeds are in range."""
    if runs < 1:
        raise UserError(f"runs is {runs}; allowed: 1 or more")
    if not 0 <= seed <= SEEDS - runs:
        raise UserError(f"seed is {seed}; allowed: 0 up to 10**9 - 1, the last of the runs included")


def _has_room(device: torch.device) -> bool:
    """Whether half of a GPU's memory is free. A CPU's trainers are quickly made: nothing is captured for them."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return free > total / 2


def _refuse_other_recipe(store: Store, key: str, outcome: Outcome, recipe: Recipe) -> None:
    if isinstance(outcome, Diverged):
        return
    if outcome.to_json()["recipe"] != json.loads(json.dumps(dataclasses.asdict(recipe))):
        raise UserError(
            f"{store.path(key)} is a run of another recipe than {key.partition('/')[0]} is now; allowed: another folder"
        )


def _left(plan: Plan, seconds: Mapping[str, Sequence[float]], store: Store) -> float | None:
    """Seconds that the runs of `plan` will take: as many as others of their arm on average, or, where none of it was
    trained now, as all others; None where none was."""
    every = [second for arm in seconds.values() for second in arm]
    left = [arm for arm, seed in plan if not store.path(f"{arm}/seed-{seed}").is_file()]
    if left and not every:
        return None
    return sum(sum(known) / len(known) for known in (seconds.get(arm) or every for arm in left))
