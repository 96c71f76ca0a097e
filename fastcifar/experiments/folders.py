"""`RunFolders`: the folders of the runs of `fastcifar train`, finished and broken off ones."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from fastcifar.diagnose import DIAGNOSES, diagnosis_file
from fastcifar.errors import Notice, UserError
from fastcifar.experiments.experiment import Job
from fastcifar.experiments.result import Diverged, Failed, Outcome, failed_from, is_tried_again
from fastcifar.experiments.store import json_values, refuse_difference
from fastcifar.interval import read_interval
from fastcifar.locks import claimed
from fastcifar.output import (
    BESIDE,
    CHECKPOINTS,
    EPOCHS,
    PARTIAL,
    RECORD,
    RUNS,
    TRACK,
    WEIGHTS,
    append_line,
    made,
    read_json,
    read_lines,
    write_whole,
)
from fastcifar.phases import Phases
from fastcifar.report.runs import may_be_alike
from fastcifar.track import tracker_in
from fastcifar.training import EpochRow, Listener, Run, RunRecord, Trainer
from fastcifar.training.checkpoint import Checkpoints
from fastcifar.training.run import save_weights

_SEED = re.compile(r"seed-(\d+)(\.diverged\.json)?")


class RunFolders:
    """The folders that runs are saved in, whole (see `Run.save`), and what those that were broken off go on from.

    jobs: alike but for their seeds.
    out: the folder of a single job's run. Those of several are its folders seed-S, and its runs.jsonl has a line for
        each outcome; those of other seeds than the jobs' may be there too.
    same: what a record that is there already must say (`RunRecord.to_json`), such as the dataset and the start.
    spares: folders to make for a run that cannot be saved in its own; the first that can be made is taken.
    every: when the state of a training is kept; see `Checkpoints`.
    keeps_epochs: keep the evaluated weights of every epoch too.
    track: the trackers of each run, by the words of --track.

    Of a single run that fails nothing is kept. Raises UserError where `out` holds other runs.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        out: Path,
        same: Mapping[str, Any],
        phases: Phases,
        spares: Sequence[Path] = (),
        *,
        every: str = "auto",
        keeps_epochs: bool = False,
        track: Sequence[str] = (),
    ) -> None:
        self._jobs, self._out, self._several = {job.key: job for job in jobs}, out, len(jobs) > 1
        self._same, self._phases, self._spares = json_values(same), phases, spares
        self._every, self._keeps_epochs, self._track = every, keeps_epochs, tuple(track)
        self._checkpoints: Checkpoints | None = None
        self._stamp: tuple[int, int] | None = None
        self._lines: dict[int, dict[str, Any]] = {}
        self.outcomes()  # refuses other runs

    def get(self, job: Job) -> Outcome | None:
        """Return the outcome that is kept of `job`, if there is one. A run that failed but did not diverge is tried
        again."""
        outcome = self._outcome(job)
        return None if is_tried_again(outcome) else outcome

    def has(self, job: Job) -> bool:
        """Return whether the outcome of `job` is kept."""
        return (self.folder(job.key) / RECORD).is_file() or self.get(job) is not None

    def put(self, job: Job, outcome: Outcome, run: Run | None, weights: bool) -> Outcome:
        """Save the run of `job`, with its weights always, and return its outcome as it is kept."""
        checkpoints = Checkpoints(self.folder(job.key) / CHECKPOINTS, self._every)
        if isinstance(outcome, Failed):
            if isinstance(outcome, Diverged):
                checkpoints.remove()
            if self._several:
                line = {"seed": job.seed, **outcome.to_json(), "run": self._asked(job)}
                append_line(self._out / RUNS, json_values(line))
                with suppress(OSError):  # it holds something
                    self.folder(job.key).rmdir()
            return outcome
        assert run is not None
        with self._phases("saving"):
            _save(run, self.folder(job.key), self._spares)
            kept = self._outcome(job)
            assert isinstance(kept, RunRecord)
            if self._several:
                append_line(self._out / RUNS, kept.to_json())
            checkpoints.remove()
        return kept

    def outcomes(self) -> dict[int, Outcome]:
        """Return the outcomes that are kept by their seeds, of other commands too. Each run has a line from then on.
        Raises UserError where one is of another kind."""
        if not self._several:
            (job,) = self._jobs.values()
            outcome = self._outcome(job)
            return {job.seed: outcome} if outcome else {}
        kept: dict[int, Outcome] = {}
        alike = next(iter(self._jobs.values()))
        for seed in _seeds_in(self._out, self._kept_lines()):
            outcome = self._outcome(dataclasses.replace(alike, seed=seed))
            if outcome is not None:
                kept[seed] = outcome
            if isinstance(outcome, RunRecord):
                self._complete(seed, outcome)
        return kept

    def _complete(self, seed: int, record: RunRecord) -> None:
        """Do what is left of a run whose process was killed before its line; one that is still at it does so itself."""
        folder = self._folder(seed)
        if self._has_line(seed) and not (folder / CHECKPOINTS).is_dir():
            return
        with self._claimed(folder) as is_ours:
            if is_ours:
                if not self._has_line(seed):
                    append_line(self._out / RUNS, record.to_json())
                Checkpoints(folder / CHECKPOINTS).remove()

    def _has_line(self, seed: int) -> bool:
        line = self._kept_lines().get(seed)
        return line is not None and not failed_from(line)

    def folder(self, key: str) -> Path:
        """Return the folder of the run of the job `key`."""
        return self._folder(self._jobs[key].seed)

    def weights(self, key: str) -> Path:
        """Return the file of the weights of the job `key`; what a job that is after none has is not there."""
        return self.folder(key) / WEIGHTS if key else self._out / WEIGHTS

    def claim(self, job: Job) -> AbstractContextManager[bool]:
        """Return a context that gives whether this process may train `job`; of a single one it always may."""
        return self._claimed(self.folder(job.key)) if self._several else nullcontext(True)

    def _claimed(self, folder: Path) -> AbstractContextManager[bool]:
        return claimed(folder.parent / f".{folder.name}.lock")

    def state(self, job: Job) -> Mapping[str, Any] | None:
        """Return the state that `job` goes on from, None where it begins; and remove what a process that was killed
        left half-written. Raises UserError for the state of another run, and where all that are there are damaged."""
        folder = self.folder(job.key)
        for left in [*folder.rglob(f"{PARTIAL}*"), *(folder / name for name in BESIDE)]:
            if not left.name.endswith("lock"):
                left.unlink(missing_ok=True)
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, self._every)
        if not (folder / CHECKPOINTS).is_dir():
            return None
        state = self._checkpoints.newest()
        if state:
            asked = {"seed": job.run_seed, "init": self._same["init"]}
            there = json_values({name: state.get(name) for name in asked})
            refuse_difference(f"{folder} holds the state of another run", _part(there, asked), asked)
        return state

    def listeners(self, job: Job) -> list[Listener]:
        """Return what keeps `job` while it is trained."""
        assert self._checkpoints is not None
        folder = self.folder(job.key)
        keeps = [KeepWeights(folder / EPOCHS)] if self._keeps_epochs else []
        diagnoses = [DIAGNOSES[kind](diagnosis_file(folder, kind)) for kind in dict.fromkeys(job.diagnose)]
        trackers = [tracker_in(folder / TRACK, kind) for kind in dict.fromkeys(self._track)]
        return [*keeps, *diagnoses, *trackers, self._checkpoints]  # in this order: an epoch in a state has its weights

    def keep_state(self) -> None:
        """Keep the state of the present training now, unless none is to be kept. Raises UserError where that cannot be
        done."""
        assert self._checkpoints is not None
        if not read_interval(self._every).never:
            self._checkpoints.save()

    def _folder(self, seed: int) -> Path:
        return self._out / f"seed-{seed}" if self._several else self._out

    def _outcome(self, job: Job) -> Outcome | None:
        """Return the outcome that is kept of `job`, of any seed."""
        folder, asked = self._folder(job.seed), self._asked(job)
        if self._several:
            values, path = _values(folder, self._out / RUNS, self._kept_lines().get(job.seed))
        else:
            path = folder / RECORD
            values = read_json(path) if path.is_file() else None
        if values is None:
            return None
        if failed := failed_from(values):
            return failed if values.get("run") == asked else None
        record = RunRecord.from_json(values, str(path))
        refuse_difference(f"{folder} holds another run", _part({**record.to_json(), "keep": record.keep}, asked), asked)
        return record

    def _kept_lines(self) -> dict[int, dict[str, Any]]:
        """Return the last line of each seed; other processes write some too."""
        path = self._out / RUNS
        if not self._several or not path.is_file():
            return {}
        stamp = path.stat().st_size, path.stat().st_mtime_ns
        if stamp != self._stamp:
            self._lines, self._stamp = _last_lines(path), stamp
        return self._lines

    def _asked(self, job: Job) -> dict[str, Any]:
        return {"recipe": json_values(dataclasses.asdict(job.recipe)), "seed": job.seed, **self._same}


class KeepWeights(Listener):
    """Writes the evaluated weights of every epoch to `folder`. Where that fails, it says so once, and the training goes
    on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._failed = folder, False

    def on_start(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_epoch(self, row: EpochRow) -> None:
        file = self._folder / f"epoch-{row.epoch:03}.safetensors"
        try:
            write_whole(file, lambda path: save_weights(self._trainer.evaluated_weights(), path))
        except UserError as error:
            if not self._failed:
                warnings.warn(f"{error}; the training goes on", Notice, stacklevel=2)
            self._failed = True


def record_in(folder: Path) -> RunRecord:
    """Return the record of the run in `folder`. Raises UserError where it cannot be read."""
    return RunRecord.from_json(read_json(folder / RECORD), str(folder / RECORD))


def outcomes_in(out: Path) -> dict[int, Outcome]:
    """Return the outcomes of the several runs in `out` by their seeds, without failures of other runs than those that
    have a record. Raises UserError where one cannot be read."""
    found: dict[int, Outcome] = {}
    asked: dict[int, tuple[object, str]] = {}
    lines = _last_lines(out / RUNS)
    for seed in _seeds_in(out, lines):
        values, path = _values(out / f"seed-{seed}", out / RUNS, lines.get(seed))
        if values is not None:
            found[seed] = failed_from(values) or RunRecord.from_json(values, str(path))
            asked[seed] = values.get("run"), f"{path}, seed {seed}"
    record = next((each for each in found.values() if isinstance(each, RunRecord)), None)
    if record is None:
        return found
    return {
        seed: each
        for seed, each in found.items()
        if isinstance(each, RunRecord) or may_be_alike(asked[seed][0], record, asked[seed][1])
    }


def _last_lines(path: Path) -> dict[int, dict[str, Any]]:
    """Return the last line of each seed in a file of several runs' outcomes."""
    return {line["seed"]: line for line in read_lines(path) if type(line.get("seed")) is int}


def _seeds_in(out: Path, lines: Iterable[int]) -> list[int]:
    """Return the seeds of runs in `out`: those of `lines`, and of folders and files."""
    names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    return sorted({int(found[1]) for name in names if (found := _SEED.fullmatch(name))} | set(lines))


def _values(folder: Path, lines: Path, line: dict[str, Any] | None) -> tuple[dict[str, Any] | None, Path]:
    """Return what is kept of one run, and in which file: in its folder, else in its line, else as earlier versions kept
    one that diverged."""
    if (folder / RECORD).is_file():
        return read_json(folder / RECORD), folder / RECORD
    old = folder.with_name(f"{folder.name}.diverged.json")
    if line is None and old.is_file():
        return read_json(old), old
    return line, lines


def _save(run: Run, folder: Path, spares: Sequence[Path]) -> None:
    """Save `run` in `folder` or, where that fails, in the first of `spares` that can be made; then raise UserError,
    which names it."""
    try:
        run.save(folder, unfinished=True)
        return
    except UserError as error:
        reason = str(error)
    for spare in spares:
        try:
            with made(spare, anew=True) as other:
                run.save(other)
        except UserError:
            continue
        raise UserError(f"{reason}; the run is saved in {other} instead")
    lost = "is lost" if not any(folder.glob(f"{CHECKPOINTS}/*")) else f"goes on from its last state in {folder}"
    raise UserError(f"{reason}; the run cannot be saved elsewhere either, and {lost}")


def _part(there: Any, asked: Any) -> Any:
    """Return the values of a record whose names are in `asked`."""
    if isinstance(there, dict) and isinstance(asked, dict):
        return {name: _part(value, asked[name]) for name, value in there.items() if name in asked}
    return there
