"""`Runner`: trains the jobs of an experiment one by one, keeps each as it is finished, and says how long the rest take.

Interrupted, it goes on where it was. Several processes that are given the same jobs and the same folder share them.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fastcifar.data import Dataset
from fastcifar.errors import NonFiniteLoss, UserError, as_out_of_memory, is_out_of_memory
from fastcifar.experiments.experiment import Job
from fastcifar.experiments.result import Diverged, Failed, NotTrained, Outcome, known
from fastcifar.launch import Rank
from fastcifar.phases import Phases
from fastcifar.record import Scores
from fastcifar.start import ColdStart
from fastcifar.training import Listener, Run, RunRecord, Trainer, evaluate, resolve_device
from fastcifar.training.timeline import Timeline

_WAIT_SECONDS = 0.5
"""A process that has nothing to train looks so often for what others have finished."""
_TRAINERS = 2
"""Trainers that are always kept ready: those of a comparison."""
_STEPS = 3
"""Steps, after the first, that the first guess at the time left goes by."""


@dataclass(frozen=True)
class Progress:
    """The state of an experiment while it goes on."""

    done: int
    """Runs that are finished."""
    total: int
    """Runs that there are or, where more may be added, that there may be."""
    key: str
    """The run that was finished last or, while the first is trained, that one."""
    outcome: Outcome | None = None
    """Its outcome; None while the first is trained."""
    kept: bool = False
    """It was trained before, or by another process."""
    seconds_left: float | None = None
    """The time that the others will take; None where nothing is known yet."""
    is_waiting: bool = False
    """Nothing is left to train but what other processes train."""


OnProgress = Callable[[Progress], None]


class Keeper(Protocol):
    """A place that keeps outcomes: `Store`, or the folders of `fastcifar train`."""

    def get(self, job: Job) -> Outcome | None: ...
    def has(self, job: Job) -> bool: ...
    def put(self, job: Job, outcome: Outcome, run: Run | None, weights: bool) -> Outcome: ...
    def weights(self, key: str) -> Path: ...
    def claim(self, job: Job) -> AbstractContextManager[bool]: ...
    def state(self, job: Job) -> Mapping[str, Any] | None: ...
    def listeners(self, job: Job) -> Sequence[Listener]: ...
    @property
    def keep_state(self) -> Callable[[], object] | None: ...


class Runner:
    """The jobs of an experiment, and what trains them.

    jobs: in the order in which their outcomes are given; a job stands after the one whose weights it begins with.
        More can be added (`add`) whenever an outcome is given.
    store: keeps outcomes, weights and the claims of several processes.
    listeners: hear of every run.
    on_progress: hears of every finished run, of waiting for other processes and, on a CPU where no run is finished, of
        a guess at the time left after the first steps.
    phases: count the seconds of the first run from before this.

    Iterate over it: it gives each job and its outcome when that is known. Who stops iterating stops training.
    Raises UserError for jobs that are none, of one key, or after one that does not stand before them.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        dataset: Dataset,
        store: Keeper,
        device: str | torch.device = "auto",
        *,
        listeners: Sequence[Listener] = (),
        on_progress: OnProgress | None = None,
        phases: Phases | None = None,
    ) -> None:
        self.jobs: list[Job] = []
        self.at_most = 0
        """How many jobs there may be once all are added; 0: no more than there are."""
        self._dataset, self._store = dataset, store
        self._jobs: dict[str, Job] = {}
        self._successors: set[str] = set()
        self.add(jobs)
        if not jobs:
            raise UserError("there are no jobs; allowed: one or more")
        self._device, self._phases = resolve_device(device), phases or Phases()
        self._listeners, self._on_progress = list(listeners), on_progress
        self._outcomes: dict[str, Outcome] = {}
        self._trainers: dict[Hashable, Trainer] = {}
        self._rates: dict[str, list[float]] = {}
        self._processes = Rank.here().count

    def add(self, jobs: Sequence[Job]) -> None:
        """Put jobs behind the others. Raises UserError as the class does."""
        for job in jobs:
            if job.key in self._jobs:
                raise UserError(f"two jobs have the key {job.key}; allowed: another arm or another seed for each")
            if job.after is not None:
                if job.after not in self._jobs:
                    allowed = "the key of a job that stands before it"
                    raise UserError(f"{job.key} is after {job.after!r}; allowed: {allowed}")
                if callable(job.start):  # begins with its weights
                    self._successors.add(job.after)
            self._jobs[job.key] = job
            self.jobs.append(job)

    @property
    def total(self) -> int:
        """The number of jobs, those that may yet be added included."""
        return max(len(self.jobs), self.at_most)

    def __iter__(self) -> Iterator[tuple[Job, Outcome]]:
        for number, job in enumerate(self.jobs):
            is_waiting = False
            while (outcome := self._known(job)) is None:
                if self._train_one_of(self.jobs[number:]):
                    continue
                if self._on_progress and not is_waiting:
                    self._on_progress(Progress(number, self.total, job.key, is_waiting=True))
                is_waiting = True
                time.sleep(_WAIT_SECONDS)
                self._phases.restart()  # no run took this time
            kept = job.key not in self._outcomes
            self._outcomes[job.key] = outcome
            self._drop_weights(job.after)
            self._say(number + 1, job, outcome, kept)
            yield job, outcome

    def _known(self, job: Job) -> Outcome | None:
        return self._outcomes.get(job.key) or self._store.get(job)

    def trainer(self, job: Job) -> Trainer:
        """Return what trains `job`: one that trained another such job, or a new one."""
        key = _likeness(job)
        if key not in self._trainers:
            needed = {_likeness(other) for other in self.jobs if other.key not in self._outcomes}
            self._trainers = {other: each for other, each in self._trainers.items() if other in needed}
            dataset = self._dataset
            if job.train_size is not None:
                dataset = dataset.take(job.train_size, seed=job.subset_seed)
            trainer = Trainer(job.recipe, dataset, self._device, self._phases)
            if len(self._trainers) >= _TRAINERS and not _has_room(self._device):
                return trainer
            self._trainers[key] = trainer
        return self._trainers[key]

    def _train_one_of(self, jobs: Sequence[Job]) -> bool:
        """Train the first of `jobs` that can be and that no other process trains."""
        for job in jobs:
            if self._is_done(job.key) or (job.after and not self._is_done(job.after)):
                continue
            with self._store.claim(job) as is_ours:
                if is_ours and not self._is_done(job.key):
                    self._train(job)
                    return True
        return False

    def _train(self, job: Job) -> None:
        self._train_again(job)
        began = time.perf_counter()
        run, outcome = None, self._outcome_of_start(job)
        if outcome is None:
            try:
                run, outcome = self._run(job)
            except UserError:
                if not (job.after and callable(job.start)) or self._store.weights(job.after).is_file():
                    raise
                return self._train(job)  # another process, all of whose jobs are done, has just removed them
            except NonFiniteLoss as error:
                outcome = Diverged(str(error))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                outcome = Failed(str(as_out_of_memory(error)))
        if isinstance(outcome, Failed):
            self._phases.restart()
            if not isinstance(outcome, Diverged):
                self.free_memory()
        keeps_weights = job.keep_weights or job.key in self._successors
        self._outcomes[job.key] = self._store.put(job, outcome, run, weights=keeps_weights)
        if run and not run.record.resumed:
            self._learn(job, time.perf_counter() - began)

    def _train_again(self, job: Job) -> None:
        """Train the job before `job` again where its weights were removed, as no job of that time needed them."""
        before = self._jobs[job.after] if job.after else None
        while before and callable(job.start) and not isinstance(self._known(before), Failed):
            if self._store.weights(before.key).is_file():
                return
            with self._store.claim(before) as is_ours:
                if is_ours and not self._store.weights(before.key).is_file():
                    self._train(before)
                    self._drop_weights(before.after)
            if not is_ours:
                time.sleep(_WAIT_SECONDS)

    def _run(self, job: Job) -> tuple[Run, RunRecord]:
        """Train `job`, from the state that is kept of it if there is one; return the run, and its record."""
        state, trainer = self._store.state(job), self.trainer(job)
        first = [_FirstSteps(self, job, trainer.timeline)] if self._guesses() and not state else []
        start = ColdStart() if state else job.start
        run = trainer.run(
            job.run_seed,
            listeners=[*first, *self._store.listeners(job), *self._listeners],
            eval_every=job.eval_every or int(job.recipe.schedule.follows_loss),
            evaluate_at_start=job.evaluate_at_start,
            init=start(self._store.weights(job.after or "")) if callable(start) else start,
            until_train_accuracy=job.until_train_accuracy,
            keep=job.keep,
            resume=state,
        )
        return run, replace(run.record, train_split=_train_scores(trainer)) if job.evaluate_train else run.record

    def free_memory(self) -> None:
        """Drop the trainers, so that other runs have their memory."""
        self._trainers.clear()
        gc.collect()  # buffers in cycles, which stay until it
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _outcome_of_start(self, job: Job) -> Failed | None:
        """Return the outcome of a job whose weights to begin with are not there, because their run failed."""
        before = self._jobs[job.after] if job.after else None
        outcome = before and (self._outcomes.get(before.key) or self._store.get(before))
        if not isinstance(outcome, Failed):
            return None
        if isinstance(outcome, NotTrained):
            return outcome
        if isinstance(outcome, Diverged) and not callable(job.start):  # it needs no weights of that run
            return NotTrained(f"{job.after} {outcome.word}: {outcome.reason}")
        begins = "the run that it begins with"
        is_later = outcome.reason.startswith(begins)
        return outcome if is_later else type(outcome)(f"{begins}, {job.after}, {outcome.word}: {outcome.reason}")

    def _drop_weights(self, key: str | None) -> None:
        """Remove the weights of a job that are not to be kept, once all jobs that begin with them are done."""
        before = self._jobs[key] if key else None
        later = (job for job in self.jobs if job.after == key)
        if before and not before.keep_weights and all(map(self._store.has, later)):  # one that failed is tried again
            self._store.weights(before.key).unlink(missing_ok=True)

    def _is_done(self, key: str) -> bool:
        return key in self._outcomes or self._store.has(self._jobs[key])

    def _say(self, done: int, job: Job, outcome: Outcome | None, kept: bool) -> None:
        if self._on_progress:
            self._on_progress(Progress(done, self.total, job.key, outcome, kept, self.seconds_left()))

    def _learn(self, job: Job, seconds: float) -> None:
        for kind in _kinds(job):
            self._rates.setdefault(kind, []).append(seconds / self._work(job))

    def _guesses(self) -> bool:
        """Return True before the first run: on a CPU, where steps are heard of one by one."""
        return bool(self._on_progress) and not self._rates and not self._outcomes and self._device.type == "cpu"

    def guess(self, job: Job, seconds: float) -> None:
        """Say what is left, going by a first run that will take `seconds`."""
        self._rates[""] = [seconds / self._work(job)]
        self._say(sum(self._is_done(other.key) for other in self.jobs), job, None, False)
        del self._rates[""]

    def seconds_left(self) -> float | None:
        """Return what the jobs that are left will take, going by the finished ones that are most like each; None where
        none is finished."""
        left = [job for job in self.jobs if not self._is_done(job.key)]
        if not self._rates:
            return None if left or self.total > len(self.jobs) else 0.0
        rates = ((job, next(self._rates[kind] for kind in _kinds(job) if kind in self._rates)) for job in left)
        seconds = sum(self._work(job) * statistics.fmean(known) for job, known in rates)
        if more := self.total - len(self.jobs):  # they are taken to be like the last
            seconds += more * self._work(self.jobs[-1]) * statistics.fmean(self._rates[""])
        return seconds / self._processes

    def _work(self, job: Job) -> float:
        """Return the training images that `job` passes at most."""
        return job.recipe.epochs * (job.train_size or len(self._dataset.train))


class _FirstSteps(Listener):
    """A guess at the time left by the median of the first steps of a run."""

    def __init__(self, runner: Runner, job: Job, timeline: Timeline) -> None:
        super().__init__()
        self._runner, self._job, self._ends = runner, job, []
        pixels = {stage: steps * stage.images * stage.size**2 for stage, steps in timeline.steps_by_stage().items()}
        first = timeline.epochs[0].stage  # a step's time goes by its images' pixels
        self._steps_like_first = sum(pixels.values()) / (first.images * first.size**2)

    def on_step(self, step: int, total_steps: int) -> None:
        if len(self._ends) <= _STEPS:
            self._ends.append(time.perf_counter())
            if len(self._ends) == _STEPS + 1:
                seconds = statistics.median(end - start for start, end in itertools.pairwise(self._ends))
                self._runner.guess(self._job, seconds * self._steps_like_first)


def _likeness(job: Job) -> Hashable:
    """Return what jobs that one trainer serves have in common."""
    return job.recipe, job.train_size, job.subset_seed


def _kinds(job: Job) -> list[str]:
    """Return the kinds of jobs that take about as long an image as `job`, the most alike first; "" is all of them."""
    first, _, rest = job.arm.partition("/")
    return list(dict.fromkeys([job.arm, f"{first}/", f"/{rest}", ""]))


def _train_scores(trainer: Trainer) -> Scores:
    """Evaluate the training images, by the network that was evaluated last. Raises NonFiniteLoss, as the loss may be
    finite on the test split alone."""
    seen = evaluate(trainer.evaluated, trainer.dataset.train, replace(trainer.recipe.evaluate, tta="none"))
    scores = Scores(known(seen.accuracy), known(seen.loss))
    if not math.isfinite(scores.loss):
        rate = trainer.recipe.optimizer.lr
        raise NonFiniteLoss(f"the loss on the training images is {scores.loss}: optimizer.lr {rate:g} is too high")
    return scores


def _has_room(device: torch.device) -> bool:
    """Return True if half of a GPU's memory is free. A CPU's trainers are quickly made."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return free > total / 2
