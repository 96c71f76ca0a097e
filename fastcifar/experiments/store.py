"""`Store` and `RunFolders` keep finished runs one by one, so that the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import RenamedWarning, UserError
from fastcifar.experiments.experiment import Job
from fastcifar.experiments.result import Diverged, Outcome
from fastcifar.output import PARTIAL, RECORD, WEIGHTS, claimed, made, read_json, write_whole
from fastcifar.phases import Phases
from fastcifar.recipes import network_of
from fastcifar.recipes.legacy import in_steps, modernize
from fastcifar.recipes.text import leaves, recipe_from_dict
from fastcifar.training import Run, RunRecord, resolve_device
from fastcifar.training.run import save_weights

SETTINGS = "settings.json"
"""The file that makes a folder an experiment's: what its runs were asked to do."""

_KEY = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")
_SHOWN = 60
_RECIPES = ("recipe", "a", "b")
"""Settings that hold a recipe."""


class Store:
    """A folder with `settings.json` and a JSON file for each finished run.

    `settings` (anything that JSON holds; tuples become lists) are written when the folder is new or empty, and must
    equal those that are there otherwise: so runs of different settings never mix. Every file is written whole or not at
    all. Raises UserError, which names the first setting that differs, and for a folder that holds something else or
    cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = _plain(settings)
        path = self.folder / SETTINGS
        if not path.is_file():
            self._begin(path)
        if path.is_file():
            there = _in_todays_form(_read(path), str(path))
            _refuse_difference(f"{self.folder} was begun with other settings", there, self.settings)
        else:
            write_whole(path, _text(self.settings))

    def _begin(self, path: Path) -> None:
        """Make the folder. Raises UserError where that cannot be done, or where it holds something else."""
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

    def get(self, job: Job) -> Outcome | None:
        """Return what is kept of `job`; None where there is nothing. Raises UserError for a file that cannot be read,
        and for a run of another recipe."""
        path = self.path(job.key)
        if not path.is_file():
            return None
        values = _read(path)
        if "diverged" in values:
            return Diverged(str(values["diverged"]))
        with warnings.catch_warnings():  # older names were said of the settings: not again of every run
            warnings.simplefilter("ignore", RenamedWarning)
            record = RunRecord.from_json(values, str(path))
        if _plain(dataclasses.asdict(record.recipe)) != _plain(dataclasses.asdict(job.recipe)):
            raise UserError(f"{path} is a run of another recipe than {job.arm} is now; allowed: another folder")
        return record

    def has(self, key: str) -> bool:
        """Return whether the outcome of the job `key` is kept."""
        return self.path(key).is_file()

    def put(self, job: Job, outcome: Outcome, run: Run | None, weights: bool) -> None:
        """Keep the outcome of `job`, in place of an earlier one, and with `weights` those of its run.

        Weights are written first: a run counts as kept once its record is there.
        """
        if run and weights:
            write_whole(self.weights(job.key), lambda path: save_weights(run.state, path))
        write_whole(self.path(job.key), _text(_plain(outcome.to_json())))

    def weights(self, key: str) -> Path:
        """Return the file of the weights that the run of the job `key` ended with."""
        return self.path(key).with_suffix(".safetensors")

    def claim(self, job: Job) -> AbstractContextManager[bool]:
        """Return a context that gives whether this process may train `job`; see `claimed`."""
        return claimed(self.path(job.key).with_suffix(".lock"))

    def path(self, key: str) -> Path:
        """Return the file of the run `key`: letters, digits and . _ + -, with slashes that make folders.
        Raises UserError for any other key."""
        if not _KEY.fullmatch(key) or f"{key}.json" == SETTINGS:
            raise UserError(f"the key of a run is {key!r}; allowed: letters, digits and . _ + -, as in a/seed-0")
        return self.folder / f"{key}.json"


def _refuse_difference(what: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError, which says `what` and the first value that differs."""
    old, new = dict(leaves(there)), dict(leaves(now))
    for name in {**old, **new}:
        if name not in old or name not in new or old[name] != new[name]:
            before, after = (_shown(values[name]) if name in values else "absent" for values in (old, new))
            raise UserError(
                f"{what}: {name} is {before} there and {after} now; allowed: the same settings, or another folder"
            )


class RunFolders:
    """The folders that runs are saved in, whole (see `Run.save`), one for each job.

    same: what a record that is there already must say (`RunRecord.to_json`), such as the dataset and the start.
    spares: folders to make for a run that cannot be saved in its own; the first that can be made is taken.

    A run that diverges leaves a file beside its folder, and a single one nothing. Raises UserError for a folder that
    holds another run.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        folders: Sequence[Path],
        same: Mapping[str, Any],
        phases: Phases,
        spares: Sequence[Path] = (),
    ) -> None:
        self._jobs = {job.key: job for job in jobs}
        self._folders = dict(zip(self._jobs, folders, strict=True))
        self._same, self._phases, self._spares = _plain(same), phases, spares

    def get(self, job: Job) -> Outcome | None:
        """Return the outcome that is kept of `job`, if there is one."""
        folder, asked = self._folders[job.key], self._asked(job)
        if (folder / RECORD).is_file():
            record = RunRecord.from_json(_read(folder / RECORD), str(folder / RECORD))
            _refuse_difference(f"{folder} holds another run", _part(record.to_json(), asked), asked)
            return record
        if len(self._folders) == 1 or not self._diverged(job.key).is_file():
            return None
        kept = _read(self._diverged(job.key))
        return Diverged(kept["diverged"]) if kept.get("run") == asked else None

    def has(self, key: str) -> bool:
        """Return whether the outcome of the job `key` is kept."""
        return (self._folders[key] / RECORD).is_file() or self.get(self._jobs[key]) is not None

    def put(self, job: Job, outcome: Outcome, run: Run | None, weights: bool) -> None:
        """Save the run of `job`, with its weights always."""
        if isinstance(outcome, Diverged):
            if len(self._folders) > 1:
                write_whole(self._diverged(job.key), _text({"run": self._asked(job), **outcome.to_json()}))
            return
        assert run is not None
        with self._phases("saving"):
            _save(run, self._folders[job.key], self._spares)

    def folder(self, key: str) -> Path:
        """Return the folder of the run of the job `key`."""
        return self._folders[key]

    def weights(self, key: str) -> Path:
        """Return the file of the weights of the job `key`."""
        return self._folders[key] / WEIGHTS

    def claim(self, job: Job) -> AbstractContextManager[bool]:
        """Return a context that gives whether this process may train `job`; of a single one it always may."""
        folder = self._folders[job.key]
        return claimed(folder.parent / f".{folder.name}.lock") if len(self._folders) > 1 else nullcontext(True)

    def _asked(self, job: Job) -> dict[str, Any]:
        return {"recipe": _plain(dataclasses.asdict(job.recipe)), "seed": job.seed, **self._same}

    def _diverged(self, key: str) -> Path:
        folder = self._folders[key]
        return folder.with_name(f"{folder.name}.diverged.json")


def _save(run: Run, folder: Path, spares: Sequence[Path]) -> None:
    """Save `run` in `folder` or, where that fails, in the first of `spares` that can be made; then raise UserError,
    which names it."""
    try:
        run.save(folder)
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
    raise UserError(f"{reason}; the run cannot be saved elsewhere either, and is lost")


def _part(there: Any, asked: Any) -> Any:
    """Return the values of a record whose names are in `asked`."""
    if isinstance(there, dict) and isinstance(asked, dict):
        return {name: _part(value, asked[name]) for name, value in there.items() if name in asked}
    return there


def _in_todays_form(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `settings` with what older ones called the fields of a recipe under today's names."""
    new = {}
    for name, value in settings.items():
        if name in _RECIPES and isinstance(value, dict):
            renamed = modernize(in_steps(value), f"{where}: {name}")
            new[name] = value if renamed == value else _plain(dataclasses.asdict(recipe_from_dict(renamed, where)))
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
    return _plain(dataclasses.asdict(config))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON gives back for `values`. Raises ValueError for NaN and infinities, which are not JSON."""
    return json.loads(json.dumps(values, allow_nan=False))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "the file")


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def describe_data(dataset: Dataset, device: str | torch.device) -> dict[str, Any]:
    """Return what of the data and the device decides the runs, ready for JSON. Raises UserError for a test split
    without labels, of which an experiment has nothing to say."""
    if (dataset.test.labels < 0).all():
        raise UserError(f"no test image of {dataset.name} has a label; allowed: an experiment on labeled ones")
    return {
        "dataset": dataset.name,
        "sha256": dataset.sha256,
        "train_size": len(dataset.train),
        "test_size": len(dataset.test),
        "holdout": dataset.holdout,
        "subset": dataset.subset,
        "device": resolve_device(device).type,
    }
