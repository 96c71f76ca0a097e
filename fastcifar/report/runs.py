"""The runs that are kept below folders, those that belong together as one `Runs`. Reading them needs no torch."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcifar.errors import Notice, RenamedWarning, UserError
from fastcifar.escape import shown
from fastcifar.output import RECORD, RUNS, UNFINISHED, read_json, read_lines, run_folders, user_path
from fastcifar.recipes import label, recipe_from_dict
from fastcifar.recipes.text import leaves
from fastcifar.record import RunRecord
from fastcifar.report.statistics import Summary, TTest, share_interval, summarize, t_test
from fastcifar.report.tables import percent

METRICS = ("tta_accuracy", "accuracy", "val_accuracy")
"""The keys of run.json that a target can be set for."""
STOPWATCHES = ("train_seconds", "time_seconds", "process_seconds")
NUMBERS = ("loss", "tta_loss", "precision", "recall", "epochs", *STOPWATCHES)
"""Other numbers of a record that are summarized."""
_SHOWN = 4
"""The most groups of runs that a line shows."""
_LARGEST = 1e15
"""No loss and no time is larger; sums of such numbers have no overflow."""
_SEED_FILE = re.compile(r"seed-(\d{1,19})(\.diverged)?\.json", re.ASCII)
_SEED_FOLDER = re.compile(r"seed-(\d{1,19})", re.ASCII)
_DATASET = (
    *("name", "sha256", "mean", "std", "train_size", "test_size", "holdout"),
    *("val_size", "resized", "fold", "tests_val"),
)
"""What of a run's data set must be the same for it to belong to others: not the place where it was found."""


@dataclass(frozen=True)
class FailedRun:
    """A run that ended without a result."""

    seed: int
    reason: str


@dataclass(frozen=True)
class AtTarget:
    """How runs compare with a target that their mean accuracy is to reach."""

    target: float
    n: int
    reached: int
    """Runs at the target or above."""
    share: float
    interval: tuple[float, float]
    """95% interval of the share (Clopper and Pearson 1934)."""
    test: TTest | None
    """Of the hypothesis that the true mean is at most the target; None for one run, and for runs that are all equal."""


@dataclass(frozen=True)
class Runs:
    """Runs that differ in the seed alone."""

    name: str
    """Recipe, or arm of an experiment."""
    records: tuple[RunRecord, ...]
    """By seed."""
    failed: tuple[FailedRun, ...] = ()
    """Runs that are in no other number."""
    differs: Mapping[str, object] = field(default_factory=dict)
    """In what they differ from others of the same name, as in {"versions.torch": "2.13.0"}."""
    folders: tuple[Path, ...] = field(default=(), compare=False)
    """Where each run is kept, as commands take it: its folder, or NAME where an experiment keeps NAME.json. A run whose
    record alone was kept has none there. Empty for runs that are in no files."""

    def __repr__(self) -> str:
        accuracy = self.summary()
        found = [] if accuracy is None else [f"{METRICS[0].replace('_', ' ')} {percent(accuracy)}"]
        failed = [f"{len(self.failed)} failed"] if self.failed else []
        return f"Runs({', '.join([shown(self.name), f'n={len(self.records)}', *found, *failed])})"

    def values(self, key: str) -> list[float]:
        """Return a number of each run that has it, by its key in run.json."""
        values = (getattr(record, key) for record in self.records)
        return [value for value in values if value is not None]

    def summary(self, key: str = METRICS[0]) -> Summary | None:
        """Return mean, spread and interval of a number by its key in run.json; None where no run has it."""
        values = self.values(key)
        return summarize(values) if values else None

    def at_target(self, target: float, key: str = METRICS[0]) -> AtTarget | None:
        """Return how an accuracy compares with `target`, a fraction; None where no run has it."""
        values = self.values(key)
        if not values:
            return None
        reached, n = sum(value >= target for value in values), len(values)
        return AtTarget(target, n, reached, reached / n, share_interval(reached, n), t_test(values, target))


@dataclass(frozen=True)
class KeptRuns:
    """What is kept below some folders."""

    groups: tuple[Runs, ...]
    unreadable: int = 0
    """Damaged files and lines, which are in no other number."""
    unfinished: int = 0
    """Runs that are still trained, or were broken off."""

    def __repr__(self) -> str:
        names = [f"{shown(runs.name)} n={len(runs.records)}" for runs in self.groups]
        more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
        left_out = {"unreadable": self.unreadable, "unfinished": self.unfinished}
        others = [f"{count} {what}" for what, count in left_out.items() if count]
        return f"KeptRuns({', '.join([*names[:_SHOWN], *more, *others])})"


def read_runs(*folders: str | Path) -> KeptRuns:
    """Return the runs that are kept below `folders`: what `fastcifar train` saved, of one run or several, and the runs
    of experiments.

    Runs that differ in more than the seed (recipe, data, start, device, version of torch) are kept apart. Of two runs
    of one seed the later counts. What is damaged is left out with a `Notice`. Raises UserError for what is no folder,
    and where there is no run.
    """
    roots = [user_path(folder, "the folder of runs") for folder in folders]
    reader = _Reader()
    for root in roots:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise UserError(f"{root} {what}; allowed: a folder of runs, as {RUNS} or {RECORD} lie in one")
        reader.read(root, is_one_of_several=len(roots) > 1)
    if not reader.kept:
        where = ", ".join(map(str, roots)) or "no folder"
        damaged = f" that can be read; {reader.unreadable} cannot" if reader.unreadable else ""
        unfinished = f"; {reader.unfinished} unfinished" if reader.unfinished else ""
        raise UserError(f"{where} holds no run{damaged}{unfinished}; allowed: a folder that fastcifar train wrote")
    return KeptRuns(_grouped(list(reader.kept.values())), reader.unreadable, reader.unfinished)


@dataclass(frozen=True)
class _Kept:
    """A run as it was found."""

    place: Path
    """The folder of the runs that it is one of."""
    name: str
    seed: int
    facts: Mapping[str, Any]
    """What must be the same for runs to belong together, by dotted names; of a failed run what is known of it."""
    record: RunRecord | None
    folder: Path
    reason: str = ""


class _Reader:
    """What is found below folders, each run once."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Path, int | None], _Kept] = {}
        self._seen: set[Path] = set()
        self._asked: set[tuple[Path, int | None]] = set()
        self.unreadable = 0

    @property
    def unfinished(self) -> int:
        """How many runs were asked for and have no outcome."""
        return len(self._asked - self.kept.keys())

    def read(self, root: Path, is_one_of_several: bool) -> None:
        """Read all runs below `root`."""
        for folder, folders, files in run_folders(root, lambda error: self._damaged(str(error))):
            place = folder.resolve()
            if place in self._seen:
                continue
            self._seen.add(place)
            if RUNS in files:
                self._read_lines(folder / RUNS, place)
            if RECORD in files:
                self._read_record(folder / RECORD, place)
            elif UNFINISHED in files:
                is_single = RUNS not in files and not any(map(_SEED_FOLDER.fullmatch, folders))
                self._asked |= {(place, seed) for seed in _asked_seeds(folder / UNFINISHED, is_single)}
            for file in sorted(files):
                if (match := _SEED_FILE.fullmatch(file)) and (place, int(match[1])) not in self.kept:
                    inside = folder.relative_to(root).as_posix() if folder != root else place.name
                    arm = str(folder) if is_one_of_several else inside
                    self._keep(folder / file, place, int(match[1]), "" if match[2] else arm)

    def _read_record(self, path: Path, place: Path) -> None:
        """Read run.json of a single run, whatever its folder is called, or of one of several, whose line counts if
        there is one."""
        match, seed = _SEED_FOLDER.fullmatch(place.name), None
        if match and any((place.parent / file).is_file() for file in (RUNS, UNFINISHED)):
            place, seed = place.parent, int(match[1])
        there = self.kept.get((place, seed))
        if there is None or there.record is None:
            self._keep(path, place, seed)

    def _read_lines(self, path: Path, place: Path) -> None:
        try:
            _refuse_pipes(path)
            lines = read_lines(path)
            self.unreadable += sum(bool(line.strip()) for line in path.read_bytes().splitlines()) - len(lines)
        except (OSError, UserError) as error:
            self._damaged(str(error))
            return
        for values in lines:
            seed = values.get("seed")
            if type(seed) is not int or not 0 <= seed < 2**64:
                self._damaged(f"{path}: seed is {str(seed)[:60]}; allowed: a whole number")
            else:
                self._put(values, place, seed, "", path.with_name(f"seed-{seed}"), f"{path}, seed {seed}")

    def _keep(self, path: Path, place: Path, seed: int | None, arm: str = "") -> None:
        """Read a file of one run."""
        try:
            _refuse_pipes(path)
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise UserError("it is not an object")
        except (OSError, ValueError, RecursionError) as error:  # UserError is a ValueError
            self._damaged(f"cannot read {path}: {error}")
            return
        folder = path.parent if path.name == RECORD else path.with_suffix("")
        self._put(values, place, seed, arm, folder, str(path))

    def _put(self, values: dict[str, Any], place: Path, seed: int | None, arm: str, folder: Path, where: str) -> None:
        """Keep an outcome: the record of a run, or the reason why it failed; not that it was left out."""
        if "not trained" in values:
            return
        reason = values.get("diverged", values.get("failed"))
        try:
            _refuse_not_finite(values, where)
            with warnings.catch_warnings():  # older names of fields are read as today's: nothing to do about them
                warnings.simplefilter("ignore", RenamedWarning)
                if isinstance(reason, str) and seed is not None:
                    name, facts = _asked(values.get("run"), where)
                    kept = _Kept(place, arm or name or place.name, seed, facts, None, folder, reason)
                else:
                    record = _checked(RunRecord.from_json(values, where), where)
                    if seed is not None and not arm and record.seed != seed:
                        raise UserError(f"{where}: seed is {record.seed}; allowed: {seed}, as its folder says")
                    name, facts = arm or label(record.recipe), _facts(record, bool(arm))
                    kept = _Kept(place, name, record.seed, facts, record, folder)
        except (UserError, RecursionError) as error:
            self._damaged(str(error))
            return
        self.kept[place, seed] = kept

    def _damaged(self, what: str) -> None:
        self.unreadable += 1
        warnings.warn(f"{what}; it is left out", Notice, stacklevel=2)


def _refuse_not_finite(values: dict[str, Any], where: str) -> None:
    """Raise UserError for NaN and infinities, which fastcifar writes as null: what they were is not known."""
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        raise UserError(f"{where}: it holds NaN or infinity; allowed: finite numbers and null") from None


def _checked(record: RunRecord, where: str) -> RunRecord:
    """Return `record`. Raises UserError for numbers that no run has."""
    for key in (*METRICS, *NUMBERS):
        value, most = getattr(record, key), 1.0 if key in METRICS else _LARGEST
        if value is not None and not 0 <= value <= most:
            raise UserError(f"{where}: {key} is {value!r}; allowed: 0 to {most:g}")
    return record


def _facts(record: RunRecord, is_arm: bool) -> dict[str, object]:
    """Return what runs must have in common; those of an arm may each begin with weights of their own seed."""
    parts = {name: getattr(record, name) for name in ("subset", "init", "network", "dtype", "keep")}
    parts |= {name: dataclasses.asdict(getattr(record, name)) for name in ("recipe", "dataset", "device")}
    parts["versions"] = {"torch": record.versions.torch}
    return _flat(parts, ("source", "sha256", "seed") if is_arm else ("source",))


def _asked(asked: object, where: str) -> tuple[str, dict[str, object]]:
    """Return the name of a failed run's recipe, and what is known of what it was asked to do."""
    parts = asked if isinstance(asked, dict) else {}
    parts = {name: parts[name] for name in ("recipe", "dataset", "subset", "init", "device") if name in parts}
    if not isinstance(parts.get("recipe"), dict):
        return "", {}
    recipe = recipe_from_dict(parts["recipe"], where)
    return label(recipe), _flat({**parts, "recipe": dataclasses.asdict(recipe)}, ("source",))


def _asked_seeds(path: Path, is_single: bool) -> set[int | None]:
    """Return the seeds of several runs that unfinished.json asks for; None stands for a single run, and where the file
    is damaged for as much as is known."""
    try:
        seeds = read_json(path).get("seeds")
    except UserError:
        seeds = None
    if isinstance(seeds, list) and len(seeds) > 1 and all(type(seed) is int for seed in seeds):
        return set(seeds)
    return {None} if is_single else set()


def _flat(parts: dict[str, Any], not_of_start: tuple[str, ...]) -> dict[str, object]:
    """Return `parts` by dotted names, of data set, device and start only what counts."""
    kept = {"dataset": _DATASET.__contains__, "device": "type".__eq__, "init": lambda key: key not in not_of_start}
    for name, is_kept in kept.items():
        if isinstance(parts.get(name), dict):
            parts[name] = {key: value for key, value in parts[name].items() if is_kept(key)}
    return dict(leaves(json.loads(json.dumps(parts), parse_constant=lambda _: None)))


def _refuse_pipes(path: Path) -> None:
    """Raise UserError for what reading may never end."""
    if not path.is_file():
        raise UserError(f"{path} is no file")


def _grouped(found: list[_Kept]) -> tuple[Runs, ...]:
    """Return the runs that belong together, in the order in which they were found."""
    groups: dict[str, list[_Kept]] = {}
    for each in found:
        if each.record:
            groups.setdefault(json.dumps([each.name, each.facts], sort_keys=True), []).append(each)
    failed: dict[str, list[_Kept]] = {key: [] for key in groups}
    for each in (each for each in found if not each.record):
        same = [key for key, group in groups.items() if _fits(each, group[0])]
        near = [key for key in same if any(other.place == each.place for other in groups[key])]
        alone = json.dumps([each.name, each.facts], sort_keys=True)
        failed.setdefault((near or same or [alone])[0], []).append(each)
    first = {key: (groups.get(key) or failed[key])[0] for key in failed}
    made = []
    for key, failures in failed.items():
        name, facts = first[key].name, first[key].facts
        pairs = _once(name, [(each.record, each.folder) for each in groups.get(key, ()) if each.record])
        records, folders = tuple(record for record, _ in pairs), tuple(folder for _, folder in pairs)
        seeds = {record.seed for record in records}
        left = {each.seed: FailedRun(each.seed, each.reason) for each in failures if each.seed not in seeds}
        alike = [other for other in first.values() if other.name == name]
        differs = {fact: value for fact, value in facts.items() if any(_differs(other, fact, value) for other in alike)}
        made.append(Runs(name, records, tuple(left[seed] for seed in sorted(left)), differs, folders))
    return tuple(made)


def _differs(run: _Kept, fact: str, value: object) -> bool:
    """Return whether a fact is another of `run`; of one that failed not all are known."""
    return run.facts[fact] != value if fact in run.facts else run.record is not None


def may_be_alike(asked: object, record: RunRecord, where: str) -> bool:
    """Return whether nothing that is known of what a failed run was asked to do, but for its seed, differs from
    `record`. Raises UserError, which begins with `where`, for a recipe that cannot be read."""
    return _agree(_asked(asked, where)[1], _facts(record, is_arm=False))


def _fits(failed: _Kept, run: _Kept) -> bool:
    """Return whether a failed run may be one of those that `run` belongs to: nothing that is known of it differs."""
    is_same = failed.name == run.name and _agree(failed.facts, run.facts)  # arms may differ in their starts alone
    return is_same if failed.facts else failed.place == run.place


def _agree(known: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return all(facts.get(name, value) == value for name, value in known.items())


def _once(name: str, kept: list[tuple[RunRecord, Path]]) -> list[tuple[RunRecord, Path]]:
    """Return one record for each seed, the one that was started last, and where its run is kept: the same seed again
    says nothing new."""
    by_seed = {pair[0].seed: pair for pair in sorted(kept, key=lambda pair: pair[0].started)}
    if again := len(kept) - len(by_seed):
        left = f"{again} run{'s are' if again > 1 else ' is'} left out, of seeds that were trained again"
        warnings.warn(f"{name}: {left}; the later run of a seed counts", Notice, stacklevel=2)
    return [by_seed[seed] for seed in sorted(by_seed)]
