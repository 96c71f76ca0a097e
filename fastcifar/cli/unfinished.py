"""unfinished.json: what a `fastcifar train` that is not finished yet was asked to do, whole, so that it can go on in
another process, from another folder. Needs no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fastcifar.cli.arguments import import_plugins
from fastcifar.cli.options import flag_of
from fastcifar.cli.train import Options
from fastcifar.errors import OutOfMemory, ProcessesDied, UserError
from fastcifar.interval import read_interval
from fastcifar.locks import WAIT_SECONDS, claimed
from fastcifar.output import CHECKPOINTS, PARTIAL, RECORD, UNFINISHED, check_out, user_path, write_whole
from fastcifar.recipes import recipe_from_dict
from fastcifar.recipes.declare import plain, type_hints
from fastcifar.start import ColdStart, check_entry

VERSION = 1
"""The version of the file's format."""
_ALLOWED = "the file as fastcifar wrote it"
_ELSEWHERE = {"recipe", "network", "optimizer", "settings", "seed", "runs"}
"""Options that other entries say: the recipe, whole, and the seeds."""
_NOT_KEPT = {"out", "resume", "profile", "quiet", "json", "weights"}
"""Options on where this process writes, and what it shows."""


@dataclass(frozen=True)
class Asked:
    """What was asked of a training.

    options: with the recipe, paths that are absolute, and the device and the threads that are in use.
    init: the start, as its `describe` says it.
    seeds: of one run or of several, those of other commands on the same folder too.
    """

    options: Options
    init: dict[str, Any]
    seeds: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        fields = (each.name for each in dataclasses.fields(self.options))
        options = {name: getattr(self.options, name) for name in fields if name not in _ELSEWHERE | _NOT_KEPT}
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        return {
            "version": VERSION,
            "seeds": self.seeds,
            "recipe": dataclasses.asdict(self.options.settings),
            "init": self.init,
            "options": options,
        }

    def write(self, out: Path) -> None:
        """Write the file into `out`; with the seeds that other processes were asked to train there too. Raises
        UserError where that cannot be done, where they were asked for something else, and for several runs in the
        folder of a single one."""
        with _locked(out, len(self.seeds)):
            seeds = set(self.seeds)
            there = Asked.read(out) if len(seeds) > 1 and (out / UNFINISHED).is_file() else None
            if len(seeds) > 1 and ((out / RECORD).is_file() or (there and len(there.seeds) == 1)):
                check_out(out)  # which refuses a single run's
            if there:
                self._refuse_another(there, out)
                seeds |= set(there.seeds)
            values = {**self.to_json(), "seeds": sorted(seeds)}
            write_whole(out / UNFINISHED, json.dumps(values, indent=2) + "\n")

    def _refuse_another(self, there: Asked, out: Path) -> None:
        from fastcifar.experiments.store import json_values, refuse_difference

        kept = [json_values(asked.to_json()) for asked in (there, self)]
        for values in kept:
            same = {"dataset", "holdout", "fold", "resize", "train_size", "train_fraction", "subset_seed"}
            same |= {"balanced", "classes", "keep"}
            values["options"] = {name: value for name, value in values["options"].items() if name in same}
            del values["seeds"]
            values["init"].pop("source", None)  # its sha256 says what it is
        refuse_difference(f"{out} holds unfinished runs of another kind", *kept)

    @classmethod
    def read(cls, out: Path) -> Asked:
        """Return what the file in `out` says. The plug-ins in it are imported. Raises UserError for one that is
        damaged."""
        path = out / UNFINISHED
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.get("version") != VERSION:
                version = values.get("version") if isinstance(values, dict) else None
                raise UserError(f"version is {version!r}; allowed: {VERSION}, what this fastcifar can read")
            return cls._of(values, str(path))
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
            if isinstance(error, UserError):
                raise UserError(f"{path}: {reason}") from None
            kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            raise UserError(f"cannot read {path}: {kind}{reason}; allowed: {_ALLOWED}") from None

    @classmethod
    def _of(cls, values: dict[str, Any], where: str) -> Asked:
        seeds, given, hints = values["seeds"], dict(values["options"]), type_hints(Options)
        if not seeds or not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
            raise UserError(f"seeds is {seeds!r}; allowed: seeds, as in [0, 1, 2]")
        seeds = tuple(sorted(set(seeds)))
        known = {each.name for each in dataclasses.fields(Options)} - _ELSEWHERE - _NOT_KEPT
        if unknown := set(given) - known:
            raise UserError(f"options has {min(unknown)!r}; allowed: {_ALLOWED}")
        given = {name: plain(value) for name, value in given.items()}
        for name, value in given.items():
            if isinstance(value, str) and Path in (hints[name], *get_args(hints[name])):
                given[name] = user_path(value, flag_of(name))
        import_plugins([word for module in given["plugin"] for word in ("--plugin", module)])
        recipe = recipe_from_dict(values["recipe"], "recipe")
        options = Options(**given, recipe=recipe.name, settings=recipe, seed=seeds[0], runs=len(seeds))
        options.check(recipe)
        init = values["init"]
        if options.warm_start is None:
            if init != ColdStart().describe():
                raise UserError(f"init is {init!r}; allowed: {_ALLOWED}")
        else:
            check_entry(init)
        return cls(options, init, seeds)


def done(out: Path, seeds: Collection[int]) -> None:
    """Remove the file from `out` unless it asks for other seeds than these, which are trained."""
    with contextlib.suppress(UserError), _locked(out, len(seeds)):  # a full disk takes no lock either
        if set(Asked.read(out).seeds) <= set(seeds):
            (out / UNFINISHED).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(out: Path, runs: int) -> Iterator[None]:
    """Keep other processes from the file while the block runs. The folder of a single run has none."""
    if runs == 1:
        yield
        return
    with claimed(out / f"{PARTIAL}{UNFINISHED}.lock", wait=WAIT_SECONDS) as is_ours:
        if not is_ours:
            raise UserError(f"another process has kept {out / UNFINISHED} locked for {WAIT_SECONDS} s; allowed: again")
        yield


@contextlib.contextmanager
def begun(asked: Asked, out: Path, goes_on: bool, finished: Callable[[], int]) -> Iterator[None]:
    """Train inside, with the file in `out`. Where that is broken off, the file stays if there is something to go on
    from, and the error says how.

    goes_on: the file is there, of an earlier process.
    finished: returns how many of several runs are finished.
    """
    several = len(asked.seeds) > 1
    folders = [out / f"seed-{seed}" for seed in asked.seeds] if several else [out]
    was_there, before = goes_on or (out / UNFINISHED).is_file(), _states(folders)
    try:
        if not goes_on:
            asked.write(out)
        yield
    except BaseException as error:
        count = finished() if several else 0
        states = _states(folders)
        stays = bool(was_there or states or count)
        if not stays:
            done(out, asked.seeds)
        said = [str(error) or "interrupted"]
        if count:
            said.append(f"{count} finished run{'s are' if count > 1 else ' is'} kept in {out}")
        goes = isinstance(error, KeyboardInterrupt | ProcessesDied) or (states and isinstance(error, OutOfMemory))
        goes = goes or (states != before and isinstance(error, UserError))  # else it is refused again
        if stays and goes:
            said.append(f"{shlex.join(['fastcifar', 'train', '--resume', str(out)])} goes on")
        elif isinstance(error, KeyboardInterrupt) and read_interval(asked.options.checkpoint_every).never:
            said.append("nothing is kept, as --checkpoint-every is never")
        if len(said) > 1:
            error.args = ("; ".join(said), *error.args[1:])
        raise


def _states(folders: Collection[Path]) -> dict[Path, int]:
    """Return the times at which the states in the folders of runs were written, by their paths."""
    found: dict[Path, int] = {}
    for path in (path for folder in folders for path in folder.glob(f"{CHECKPOINTS}/*")):
        with contextlib.suppress(FileNotFoundError):  # another process trains there
            found[path] = path.stat().st_mtime_ns
    return found
