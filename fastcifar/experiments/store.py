"""`Store` keeps the finished runs of an experiment one by one, so that the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.data import Dataset
from fastcifar.diagnose import DIAGNOSES, Found, read_diagnosis
from fastcifar.errors import RenamedWarning, UserError
from fastcifar.experiments.experiment import Job
from fastcifar.experiments.result import Failed, Outcome, failed_from, is_tried_again
from fastcifar.locks import WAIT_SECONDS, claimed
from fastcifar.output import PARTIAL, SETTINGS, TRACK, read_json, write_whole
from fastcifar.recipes import network_of
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.recipes.legacy import in_steps, modernize
from fastcifar.recipes.text import leaves, recipe_from_dict
from fastcifar.record import json_text
from fastcifar.track import tracker_in
from fastcifar.training import Listener, Run, RunRecord, resolve_device
from fastcifar.training.run import save_weights

AT_ONCE = "parallel.json"
"""The file that says how many of its runs were trained at once, where that was more than one."""

_KEY = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")
_SHOWN = 60
_RECIPES = ("recipe", "a", "b")
"""Settings that hold a recipe."""


class Store:
    """A folder with `settings.json` and a JSON file for each finished run.

    `settings` (anything that JSON holds; tuples become lists) are written when the folder is new or empty, and must
    equal those that are there otherwise: so runs of different settings never mix. Every file is written whole or not at
    all. `track`, the words of --track, says what is written of each run into the folder `track` while it is trained.
    Raises UserError, which names the first setting that differs, and for a folder that holds something else or cannot
    be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], track: Sequence[str] = ()) -> None:
        self.folder, self._track = Path(folder), tuple(track)
        self.settings = json_values(settings)
        self._had: dict[str, int] = {}  # the times of the files that had an outcome
        path = self.folder / SETTINGS
        if not path.is_file():
            self._begin(path)
        there = _in_todays_form(read_json(path), str(path))
        unsaid = {key: self.settings[key] for key in ("mean", "std") if key in self.settings}  # by older versions
        there = {**unsaid, **there}
        refuse_difference(f"{self.folder} was begun with other settings", there, self.settings)

    def _begin(self, path: Path) -> None:
        """Make the folder and its settings, unless another process does so now. Raises UserError where that cannot be
        done, or where it holds something else."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = any(not entry.name.startswith(PARTIAL) for entry in self.folder.iterdir())
        except OSError as error:
            raise UserError(f"output folder {self.folder} cannot be made: {error.strerror or error}") from None
        if used and not path.is_file():  # which another process may have written meanwhile
            raise UserError(
                f"output folder {self.folder} holds files but no {SETTINGS}; allowed: a new or an empty folder, or one "
                "that this experiment was begun in"
            )
        with claimed(self.folder / f"{PARTIAL}{SETTINGS}.lock", wait=WAIT_SECONDS):
            if not path.is_file():
                write_whole(path, _text(self.settings))

    def at_once(self, parallel: int) -> int:
        """Return the most runs that a process trained at once here, `parallel` from now on: times depend on it, and
        other runs do not."""
        path = self.folder / AT_ONCE
        before = read_json(path).get("parallel") if path.is_file() else 1
        most = max(parallel, checked(f"parallel in {path}", before, int, Declaration(at_least=1)))
        if most > 1:
            write_whole(path, _text({"parallel": most}))
        return most

    def get(self, job: Job) -> Outcome | None:
        """Return what is kept of `job`; None where there is nothing, where the file of a diagnosis or of its
        predictions is gone, or where a run of another recipe diverged. Raises UserError for a file that cannot be read,
        and for the record of a run of another recipe."""
        path = self.path(job.key)
        if not path.is_file():
            return None
        values = read_json(path)
        failed, run = failed_from(values), values.get("run")
        if not failed and not all(map(Path.is_file, self._beside(job))):
            return None
        with warnings.catch_warnings():  # older names were said of the settings: not again of every run
            warnings.simplefilter("ignore", RenamedWarning)
            if failed:
                is_same = isinstance(run, dict) and _in_todays_form(run, str(path)) == _asked(job)
                return failed if is_same else None
            record = RunRecord.from_json(values, str(path))
        if {"recipe": json_values(dataclasses.asdict(record.recipe))} != _asked(job):
            raise UserError(f"{path} is a run of another recipe than {job.arm} is now; allowed: another folder")
        return record

    def has(self, job: Job) -> bool:
        """Return whether `get` has an outcome of `job`."""
        try:
            written = self.path(job.key).stat().st_mtime_ns
        except OSError:
            return False
        known = self._had.get(job.key) == written and all(map(Path.is_file, self._beside(job)))
        if known or self.get(job) is not None:
            self._had[job.key] = written
            return True
        return False

    def put(self, job: Job, outcome: Outcome, run: Run | None, weights: bool) -> Outcome:
        """Keep the outcome of `job`, in place of an earlier one, and with `weights` those of its run; return it as
        kept. One that failed but did not diverge is not kept: it is tried again.

        Weights and predictions are written first: a run counts as kept once its record is there.
        """
        if is_tried_again(outcome):
            return outcome
        if run and weights:
            written: list[str] = []
            write_whole(self.weights(job.key), lambda path: written.append(save_weights(run.state, path)))
            if isinstance(outcome, RunRecord):
                outcome = dataclasses.replace(outcome, weights_sha256=written[0])
        if run and job.keep_predictions:
            write_whole(self.predictions(job.key), lambda path: np.savez(path, **run.predictions()))
        values = json_values(outcome.to_json())
        values |= {"run": _asked(job)} if isinstance(outcome, Failed) else {}
        write_whole(self.path(job.key), _text(values))
        return outcome

    def weights(self, key: str) -> Path:
        """Return the file of the weights that the run of the job `key` ended with."""
        return self.path(key).with_suffix(".safetensors")

    def predictions(self, key: str) -> Path:
        """Return the file of the predictions of the run of the job `key`."""
        return self.path(key).with_suffix(".npz")

    def claim(self, job: Job) -> AbstractContextManager[bool]:
        """Return a context that gives whether this process may train `job`; see `claimed`."""
        return claimed(self.path(job.key).with_suffix(".lock"))

    def state(self, job: Job) -> None:
        """Return None: an experiment's runs are trained from their beginning."""

    def listeners(self, job: Job) -> list[Listener]:
        """Return the diagnoses and the trackers of `job`: else only finished runs are kept."""
        trackers = [tracker_in(self.folder / TRACK / job.key, kind) for kind in dict.fromkeys(self._track)]
        diagnoses = (DIAGNOSES[kind](self.diagnosis(job.key, kind), job.moments) for kind in job.diagnose)
        return [*trackers, *diagnoses]

    def diagnosis(self, key: str, kind: str) -> Path:
        """Return the file of what the diagnosis `kind` of the run of the job `key` found."""
        return self.path(key).with_suffix(f".{kind}.npz")

    def _beside(self, job: Job) -> list[Path]:
        """Return the files that a run of `job` has beside its record."""
        predictions = [self.predictions(job.key)] if job.keep_predictions else []
        return [*(self.diagnosis(job.key, kind) for kind in job.diagnose), *predictions]

    def found(self, key: str, kind: str) -> Found | None:
        """Return what the diagnosis `kind` of the run of the job `key` found; None where the run failed before there
        was a file of it. Raises UserError for a file that is none."""
        file = self.diagnosis(key, kind)
        try:
            return read_diagnosis(file) if file.is_file() else None
        except UserError as error:
            raise UserError(f"{error}; allowed: to delete it, as its run is trained again then") from None

    keep_state = None

    def path(self, key: str) -> Path:
        """Return the file of the run `key`: letters, digits and . _ + -, with slashes that make folders.
        Raises UserError for any other key."""
        if not _KEY.fullmatch(key) or f"{key}.json" == SETTINGS:
            raise UserError(f"the key of a run is {key!r}; allowed: letters, digits and . _ + -, as in a/seed-0")
        return self.folder / f"{key}.json"


def refuse_difference(what: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError, which says `what` and the first value that differs."""
    old, new = dict(leaves(there)), dict(leaves(now))
    for name in {**old, **new}:
        if name not in old or name not in new or old[name] != new[name]:
            before, after = (_shown(values[name]) if name in values else "absent" for values in (old, new))
            raise UserError(
                f"{what}: {name} is {before} there and {after} now; allowed: the same settings, or another folder"
            )


def _in_todays_form(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `settings` with the recipes' fields of today: under their names, new ones at their defaults."""
    new = {}
    for name, value in settings.items():
        if name in _RECIPES and isinstance(value, dict):
            renamed = modernize(in_steps(value), f"{where}: {name}")
            new[name] = json_values(dataclasses.asdict(recipe_from_dict(renamed, where)))
    if isinstance(settings.get("networks"), list) and isinstance(settings.get("recipe"), dict):
        networks = (_network(each, settings["recipe"], where) for each in settings["networks"])
        new["networks"] = {network["kind"]: network for network in networks}
    return settings | new


def _network(network: Any, recipe: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the configuration of a network of a table of `recipe`, which was kept by its kind: that of the recipe,
    which formerly had a section for each, or of `network_of`."""
    if not isinstance(network, str):
        return network
    with warnings.catch_warnings():  # said already, of the recipe
        warnings.simplefilter("ignore", RenamedWarning)
        if isinstance(recipe.get("network"), str):
            config = recipe_from_dict({**recipe, "network": network}, where).network
        else:
            config = network_of(recipe_from_dict(recipe, where), network)
    return json_values(dataclasses.asdict(config))


def _asked(job: Job) -> dict[str, Any]:
    """Return what the outcome of `job` is an outcome of."""
    return {"recipe": json_values(dataclasses.asdict(job.recipe))}


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON gives back for `values`. Raises ValueError for NaN and infinities, which are not JSON."""
    return json.loads(json.dumps(values, allow_nan=False))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _text(record: dict[str, Any]) -> str:
    return json_text(record) + "\n"


def describe_data(dataset: Dataset, device: str | torch.device) -> dict[str, Any]:
    """Return what of the data and the device decides the runs, ready for JSON."""
    return {
        "dataset": dataset.name,
        "sha256": dataset.sha256,
        "train_size": len(dataset.train),
        "test_size": len(dataset.test),
        "holdout": dataset.holdout,
        "subset": dataset.subset,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        **dataset.changes,
        "device": resolve_device(device).type,
    }
