"""The predictions of saved runs on the same test images; nothing that a file says is believed."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.data.archives import npz_header, npz_keys, read_npz
from fastcifar.errors import Notice, RenamedWarning, Unequipped, UserError, brief
from fastcifar.machine import free_memory
from fastcifar.output import RECORD, UNFINISHED, read_json, run_files, run_folders, user_path
from fastcifar.record import RunRecord
from fastcifar.training.run import MEMBER, PREDICTIONS

LARGEST = np.float64(1e15)  # of this type, as float16 has no number of this size to compare with
"""No logit is larger in size; sums of such numbers have no overflow."""
_SAME = ("sha256", "test_size", "holdout", "fold", "tests_val")
"""What of a run's data set says which its test images are, and in which order."""
_ALLOWED = "a folder that fastcifar train wrote, or an .npz of fastcifar eval RUN_DIR --predictions FILE.npz"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What runs predict for the same test images."""

    names: tuple[str, ...]
    """The run's folder, or the file of predictions; with the number of a member where it has several."""
    logits: np.ndarray
    """float32 `[runs, N, classes]`, finite."""
    labels: np.ndarray
    """int64 `[N]`; -1 where an image has none."""
    records: tuple[RunRecord | None, ...]
    """None for a file of predictions."""


def read_predictions(paths: Sequence[str | Path], tta: bool = True) -> Predictions:
    """Return the predictions of saved runs, each run once, and of networks that were trained at once in a run those of
    each one.

    paths: folders of one run or, in folders below, several; runs that an experiment kept, as in "kept/warm/seed-0";
        files of `fastcifar eval --predictions`, or predictions.npz of a run, of which nothing but the labels is
        compared with those of others.
    tta: with the recipes' test-time augmentation, or without any.

    Raises UserError for what is neither, a damaged file, a record that is not of the predictions beside it, and runs
    whose test images, labels or classes differ; of a file that claims more memory than there is, Unequipped.
    """
    found = find_predictions(paths)
    if not found:
        raise UserError(f"there is no run; allowed: {_ALLOWED}")
    names, records = tuple(name for name, _ in found.values()), tuple(record for _, record in found.values())
    refuse_other_images(names, records)
    files = list(found)
    keys = [_key(file, tta) for file in files]
    members, shapes = zip(*map(_shape, files, keys), strict=True)
    shape = shapes[0]
    for name, record, other in zip(names, records, shapes, strict=True):
        if record is not None:
            _refuse_another(name, record, other)
        if other != shape:
            said = f"{names[0]} has logits of {_sizes(shape)}, {name} of {_sizes(other)}"
            raise UserError(f"{said}; allowed: runs with the same test images and classes")
    count = sum(members)
    need, free = 2 * count * math.prod(shape) * 4, free_memory()  # once more for what is computed from them
    if free is not None and need > free:
        said = f"predictions of {count:,} runs take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise Unequipped(f"{said}; allowed: fewer runs")
    logits, labels = np.empty((count, *shape), np.float32), np.empty(0, np.int64)
    first = 0
    for file, name, key, inside in zip(files, names, keys, members, strict=True):
        logits[first : first + inside], here = _read(file, key)
        labels, first = labels if first else here, first + inside
        if not np.array_equal(labels, here):
            image = int(np.flatnonzero(labels != here)[0])
            said = f"image {image} has label {labels[image]} in {names[0]} and {here[image]} in {name}"
            raise UserError(f"{said}; allowed: runs with the same test images, in the same order")
    each = list(zip(names, records, keys, members, strict=True))
    numbered = ((name, key.startswith(MEMBER), number) for name, _, key, inside in each for number in range(inside))
    names = tuple(f"{name}#{number}" if is_member else name for name, is_member, number in numbered)
    return Predictions(names, logits, labels, tuple(record for _, record, _, inside in each for _ in range(inside)))


def find_predictions(paths: Sequence[str | Path]) -> dict[Path, tuple[str, RunRecord | None]]:
    """Return the files of predictions that `paths` name, each once, with the run's name and record, as
    `read_predictions` takes and refuses them. No predictions are read."""
    found: dict[Path, tuple[str, RunRecord | None]] = {}
    for path in paths:
        for file, name, record in _find(user_path(path, "the run")):
            found.setdefault(file, (name, record))
    return found


def read_file(file: Path, tta: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits `[members, N, classes]`, of networks that were trained at once those of each, and the labels in
    one file of predictions. Raises UserError for any other file."""
    try:
        key = _key(file, tta)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; allowed: {_ALLOWED}") from None
    members, shape = _shape(file, key)
    logits, labels = _read(file, key)
    return logits.reshape(members, *shape), labels


def predictions_file(run: Path) -> Path:
    """Return the file of a run's predictions; `run` is its folder, or NAME of one that an experiment kept. It may be
    absent."""
    record, weights = run_files(run)
    return run / PREDICTIONS if record.name == RECORD else weights.with_suffix(".npz")


def read_run(run: Path, record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits `[N, classes]` that a run's accuracy is of, with test-time augmentation and of networks that
    were trained at once their mean, and the labels `[N]`. Raises UserError for a damaged file and for one that is not
    of the run of `record`."""
    file, key = predictions_file(run), "tta_logits"
    _, shape = _shape(file, key)
    _refuse_another(str(run), record, shape)
    return _read(file, key)


def has_predictions(path: Path) -> bool:
    """Return whether `path` is a file of predictions, a run that kept some, or a folder with such runs below it."""
    if not path.is_dir():
        return (path.is_file() and path.suffix == ".npz") or _kept(path) is not None
    with warnings.catch_warnings(), contextlib.suppress(UserError):
        warnings.simplefilter("ignore", Notice)
        return next(_find(path), None) is not None
    return False


def _key(file: Path, tta: bool) -> str:
    """Return the name of the logits in a file: of the members, where it has any."""
    key = "tta_logits" if tta else "plain_logits"
    return f"{MEMBER}{key}" if f"{MEMBER}{key}" in npz_keys(file) else key


def _find(path: Path) -> Iterator[tuple[Path, str, RunRecord | None]]:
    """Give the file, the name and the record of each run: of a file, or of the folders below one."""
    if path.is_file() and path.suffix == ".npz":
        yield path.resolve(), str(path), None
        return
    if not path.is_dir() and (kept := _kept(path)):
        yield kept
        return
    if not path.is_dir():
        what = "is no file of predictions" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; allowed: {_ALLOWED}")
    runs = []
    for folder, _, files in run_folders(path):
        by_experiment = {(folder / file).with_suffix("") for file in files if file.endswith(".npz")}
        runs += (run for run in by_experiment if f"{run.name}.json" in files)
        if RECORD in files and PREDICTIONS in files:
            runs.append(folder)
        elif RECORD in files or UNFINISHED in files:
            what = f"has no {PREDICTIONS}" if RECORD in files else "holds what is not finished"
            warnings.warn(f"{folder} {what}, which is left out", Notice, stacklevel=2)
    if not runs:
        raise UserError(f"{path} holds no predictions of a run; allowed: {_ALLOWED}")
    for run in sorted(runs, key=lambda run: (run.parent, len(run.name), run.name)):  # seed-2 before seed-10
        yield _kept(run) or ((run / PREDICTIONS).resolve(), str(run), read_record(run / RECORD))


def notice_equal(read: Predictions) -> None:
    """Give a `Notice` where networks have equal logits: copies of one agree with it, and add nothing to an ensemble."""
    first: dict[bytes, str] = {}
    equal = []
    for name, logits in zip(read.names, read.logits, strict=True):
        if (other := first.setdefault(hashlib.sha256(logits.tobytes()).digest(), name)) != name:
            equal.append(f"{name} has the logits of {other}")
    if equal:
        more = f", and {len(equal) - 1} more are such copies" * (len(equal) > 1)
        warnings.warn(f"{equal[0]}{more}; each counts as a network", Notice, stacklevel=2)


def _kept(path: Path) -> tuple[Path, str, RunRecord | None] | None:
    """Return file, name and record of a run that an experiment kept with its predictions; None where there is none."""
    record, predictions = run_files(path)[0], predictions_file(path)
    if record.name == RECORD or not (record.is_file() and predictions.is_file()):
        return None
    return predictions.resolve(), str(record.with_suffix("")), read_record(record)


def read_record(file: Path) -> RunRecord:
    """Return the record in a file. Raises UserError for any other."""
    with warnings.catch_warnings():  # older names of fields are read as today's: nothing to do about them
        warnings.simplefilter("ignore", RenamedWarning)
        return RunRecord.from_json(read_json(file, "the record"), str(file))


def refuse_other_images(names: Sequence[str], records: Sequence[RunRecord | None]) -> None:
    """Raise UserError for runs that say that they were tested on different images, or that classes have other names."""
    kept = [(name, test_images_of(record)) for name, record in zip(names, records, strict=True) if record is not None]
    for name, facts in kept[1:]:
        first, there = kept[0]
        for key in facts:
            if facts[key] != there.get(key):
                said = f"{key} is {brief(there.get(key), 70)} in {first} and {brief(facts[key], 70)} in {name}"
                allowed = f"runs with the same test images, or their {PREDICTIONS}, whose labels alone are compared"
                raise UserError(f"other test images or classes: {said}; allowed: {allowed}")


def test_images_of(record: RunRecord) -> dict[str, object]:
    """Return what a record says of its test images and classes: the same for runs that were tested on the same."""
    data, subset = record.dataset, record.subset or {}
    facts = {name: getattr(data, name) for name in _SAME}
    classes = {f"class {number}": name for number, name in enumerate(data.classes)}
    return {**facts, "the number of classes": len(classes), "subset.classes": subset.get("classes"), **classes}


def _shape(file: Path, key: str) -> tuple[int, tuple[int, int]]:
    """Return members, images and classes of a file of predictions by its headers. Raises UserError for other arrays."""
    try:
        shape, dtype = npz_header(file, key)
        labels, integers = npz_header(file, "labels")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    axes = ["members"] * key.startswith(MEMBER) + ["N", "classes"]
    if len(shape) != len(axes) or dtype.kind != "f" or min(shape) < 1 or shape[-1] < 2:
        allowed = f"floats [{', '.join(axes)}], of two classes or more"
        raise UserError(f"{file}: {key} is {dtype} {list(shape)}; allowed: {allowed}")
    if labels != shape[-2:-1] or integers.kind not in "iu":
        raise UserError(f"{file}: labels is {integers} {list(labels)}; allowed: whole numbers [{shape[-2]}]")
    return (shape[0] if len(shape) == 3 else 1), (shape[-2], shape[-1])


def _read(file: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits, of several members `[members, N, classes]`, and the labels of a file. Raises UserError for
    values that cannot be any."""
    shape, dtype = npz_header(file, key)
    logits = read_npz(file, key, dtype.str[1:], shape, "as its header says")
    labels = read_npz(file, "labels", "iu", shape[-2:-1], "whole numbers")
    if not (np.abs(logits) <= LARGEST).all():
        raise UserError(f"{file}: {key} holds NaN, infinity or what is beyond {LARGEST:g}; allowed: finite numbers")
    if labels.min() < -1 or labels.max() >= shape[-1]:
        wrong = next(label for label in labels.tolist() if not -1 <= label < shape[-1])
        raise UserError(f"{file}: a label is {wrong}; allowed: 0 to {shape[-1] - 1}, or -1 where an image has none")
    return logits, labels.astype(np.int64)


def _refuse_another(name: str, record: RunRecord, shape: tuple[int, int]) -> None:
    """Raise UserError unless logits of images and classes `shape` may be those of the run that `record` is of."""
    wanted = record.dataset.test_size, len(record.dataset.classes)
    if wanted != shape:
        said = f"{name}: {PREDICTIONS} has logits of {_sizes(shape)}, and {RECORD} says {_sizes(wanted)}"
        raise UserError(f"{said}; allowed: both of the same run")


def _sizes(shape: tuple[int, int]) -> str:
    return f"{shape[0]:,} images and {shape[1]} classes"
