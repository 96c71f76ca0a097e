"""The runs of an experiment: each is trained once and kept, so that an interrupted experiment goes on where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments.outcome import Outcome, known, read_record
from fastcifar.experiments.store import Store
from fastcifar.start import ColdStart, Start
from fastcifar.training import Listener, RunRecord, Trainer, evaluate
from fastcifar.training.record import Scores
from fastcifar.training.rehearse import estimate_seconds

SEEDS = 10**9
"""The seeds of an experiment are below this, and those of a run's phases lie this far apart: shrink-perturb draws its
noise from the run's seed, and it must not be the fresh weights that its source began with."""


@dataclass(frozen=True)
class Progress:
    """How far an experiment is."""

    done: int
    """Runs that are finished."""
    total: int
    """Runs that there are."""
    key: str
    """The run that was finished last, or, before the first is trained, that one."""
    outcome: Outcome | None = None
    """What is kept of it; None where it is only about to be trained."""
    kept: bool = False
    """Whether it had been kept from before."""
    seconds_left: float | None = None
    """What the others will take; None where nothing is known yet."""


OnProgress = Callable[[Progress], None]


def phase_seed(seed: int, phase: int) -> int:
    """The seed of the run in `phase` (0, 1, ...) of the experiment's `seed`."""
    return seed + phase * SEEDS


class Runs:
    """Trains runs one after the other, or takes them from the store, and says after each how far it is.

    `images` has the key of every run, and how many training images it passes (size times epochs, or a guess at it): the
    measure of its work. Runs whose keys are equal up to the first slash are taken to cost the same for each image.
    """

    def __init__(
        self,
        store: Store,
        images: Mapping[str, float],
        on_progress: OnProgress | None = None,
        on_step: Callable[[int, int], None] | None = None,
        eval_every: int = 1,
    ) -> None:
        self.store, self._left = store, dict(images)
        self._total = len(images)
        self._on_progress, self._eval_every = on_progress, eval_every
        self._listeners = [Listener(on_step=on_step)] if on_step else []
        self._seconds: dict[str, float] = {}
        self._images: dict[str, float] = {}

    def weights(self, key: str) -> Path:
        """The file of the weights that the run `key` ended with."""
        return self.store.path(key).with_suffix(".safetensors")

    def train(
        self,
        key: str,
        trainer: Callable[[], Trainer],
        seed: int,
        start: Callable[[], Start] = ColdStart,
        until_train_accuracy: float | None = None,
    ) -> RunRecord:
        """The record of the run `key`, `train_split` included, trained first unless it is kept; `trainer` and `start`
        are called only then."""
        values = self.store.get(key)
        if values is not None:
            record = read_record(self.store, key, values)
        else:
            began = time.perf_counter()
            ready = trainer()
            if not self._images:
                self._say(key, seconds_left=self._estimate(ready))
            run = ready.run(
                seed,
                listeners=self._listeners,
                eval_every=self._eval_every,
                init=start(),
                until_train_accuracy=until_train_accuracy,
            )
            seen = evaluate(run.model, ready.dataset.train, replace(ready.recipe.evaluate, tta="none"))
            scores = Scores(known(seen.accuracy), known(seen.loss))
            if not math.isfinite(scores.loss):  # though it was finite on the test split
                rate = ready.recipe.optimizer.lr
                raise NonFiniteLoss(
                    f"the loss on the training images is {scores.loss}: optimizer.lr {rate:g} is too high"
                )
            record = replace(run.record, train_split=scores)
            self._keep(key, run.state, record)
            kind = key.partition("/")[0]
            self._seconds[kind] = self._seconds.get(kind, 0.0) + time.perf_counter() - began
            self._images[kind] = self._images.get(kind, 0.0) + record.steps * ready.recipe.batch_size
        del self._left[key]
        self._say(key, record, values is not None, self._seconds_left())
        return record

    def expect(self, key: str, images: float) -> None:
        """Guess anew at the images that the run `key` will pass, unless it is finished."""
        if key in self._left:
            self._left[key] = images

    def _keep(self, key: str, state: Mapping[str, Any], record: RunRecord) -> None:
        """Weights first: a run counts as kept once its record is there."""
        file = self.weights(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(state), file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot keep weights in {file}: {getattr(error, 'strerror', None) or error}") from None
        self.store.put(key, record.to_json())

    def _say(
        self, key: str, record: RunRecord | None = None, kept: bool = False, seconds_left: float | None = None
    ) -> None:
        if self._on_progress:
            done = self._total - len(self._left)
            self._on_progress(Progress(done, self._total, key, record, kept, seconds_left))

    def _estimate(self, trainer: Trainer) -> float:
        """Seconds for all that is left, going by a few timed steps of `trainer`."""
        images = trainer.total_steps * trainer.recipe.batch_size
        return estimate_seconds(trainer) / images * sum(self._left.values())

    def _seconds_left(self) -> float | None:
        """From what an image took in the runs of each kind, and in all of them where none of a kind was trained."""
        if not self._left:
            return 0.0
        if not self._images:
            return None
        overall = sum(self._seconds.values()) / sum(self._images.values())
        seconds = 0.0
        for key, images in self._left.items():
            kind = key.partition("/")[0]
            rate = self._seconds[kind] / self._images[kind] if kind in self._images else overall
            seconds += rate * images
        return seconds
