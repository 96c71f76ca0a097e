"""`RunRecord`: what run.json says of a finished training. Standard library and recipes only: reading one never needs
torch.

A record is written as one flat JSON object, a field a key. A field is declared once, by its type: reading checks each
value against it, so that a damaged file is refused by the name of the field.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from fastcifar.errors import UserError
from fastcifar.output import RECORD
from fastcifar.recipes import Recipe, recipe_from_dict
from fastcifar.recipes.legacy import modernize

if TYPE_CHECKING:
    from fastcifar.data import Dataset

VERSION = 3
"""Of the form that records have. 1: dictionaries without a version, and without the fields that are None by default. 2:
before a recipe's network and optimizer were of kinds."""

_ROOT = Path(__file__).resolve().parents[2]
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list"}
_SHOWN = 60
"""Characters of a wrong value that an error shows."""


@dataclass(frozen=True)
class EpochRow:
    """One epoch, or, as epoch 0, the network before it was trained. What was not measured is None."""

    epoch: int
    train_loss: float | None
    """Mean over the images trained on, in nats, label smoothing included."""
    train_accuracy: float | None
    """A fraction of the images trained on, as they were answered while training."""
    test_accuracy: float | None
    """A fraction, without test-time augmentation."""
    seconds: float
    """The training stopwatch at the end of the epoch."""
    test_loss: float | None = None
    """Mean log-loss in nats, without test-time augmentation."""
    learning_rate: float | None = None
    """Of the last step."""
    images: int | None = None
    """Training images seen since the training began."""
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """The images of a run; see `Dataset`."""

    name: str
    train_size: int
    test_size: int
    sha256: str
    holdout: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    val_size: int = 0

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetFacts:
        """What a record says of `dataset`."""
        return cls(
            name=dataset.name,
            train_size=len(dataset.train),
            test_size=len(dataset.test),
            sha256=dataset.sha256,
            holdout=dataset.holdout,
            classes=tuple(dataset.classes),
            mean=tuple(dataset.mean),
            std=tuple(dataset.std),
            source=dataset.source,
            val_size=0 if dataset.val is None else len(dataset.val),
        )


@dataclass(frozen=True)
class DeviceFacts:
    """The hardware that a run was trained on."""

    type: str
    """cpu or cuda."""
    name: str
    threads: int | None = None
    """Of a CPU: how many torch computes with."""


@dataclass(frozen=True)
class Versions:
    """Versions of Python and of what a run was computed with; None: absent, or not written down at the time."""

    python: str
    torch: str | None = None
    numpy: str | None = None
    triton: str | None = None
    fastcifar: str | None = None

    @classmethod
    def here(cls) -> Versions:
        """Those of this process."""
        packages = [each.name for each in dataclasses.fields(cls) if each.name != "python"]
        return cls(platform.python_version(), *map(_version, packages))


@dataclass(frozen=True)
class Scores:
    """Accuracy, a fraction, and mean log-loss in nats."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is said of a finished training; a field with a default is one that older records may lack.

    Accuracies are fractions, losses mean log-losses in nats, both None where the images have no labels. What begins
    with `tta` is with the recipe's test-time augmentation.
    """

    version: int = VERSION
    recipe: Recipe
    dataset: DatasetFacts
    subset: dict[str, object] | None
    """Which training images were taken; None: all."""
    seed: int
    init: dict[str, object]
    """What the training began with, as `ColdStart.describe` and the like say it."""
    network: str | None = None
    """None: the recipe's; "own": one that was given to `train`."""
    device: DeviceFacts
    dtype: str
    """What was computed in, such as bfloat16."""
    versions: Versions
    commit: str | None = None
    """Of the checkout that fastcifar was imported from, with "+changes" where tracked files differed from it."""
    command: tuple[str, ...] | None = None
    """The command line of the process."""
    started: str
    """When the process began, or the run before it in the process ended: UTC, as in 2025-01-31T12:00:00Z."""
    epochs: float
    steps: int
    history: tuple[EpochRow, ...]
    accuracy: float | None
    loss: float | None = None
    tta_accuracy: float | None
    tta_loss: float | None
    val_accuracy: float | None = None
    """On the validation split, as `accuracy` is on the test split; None where there is no such split."""
    val_loss: float | None = None
    train_split: Scores | None = None
    """On the run's own training images at the end, in evaluation mode and without augmentation; None: not measured."""
    train_seconds: float
    """From the first touch of the resident images to the last step, evaluation left out (DAWNBench's rule)."""
    time_seconds: float
    """train_seconds and the final evaluation with test-time augmentation (airbench's rule)."""
    process_seconds: float
    """From the start of the process, or the end of the run before in it, to the final accuracy."""
    compiled: bool = False
    """Whether the network went through torch.compile."""
    captured: bool | None = None
    """Whether the steps were replayed from CUDA graphs."""
    not_captured: str | None = None
    """Why not."""
    first_step_seconds: float | None = None
    """From where process_seconds begins to the end of the first step; on CUDA until it was queued."""
    phases: dict[str, float] = field(default_factory=dict)
    """The parts of process_seconds."""
    images_per_second: float

    @property
    def losses(self) -> dict[str, dict[int, float]]:
        """`losses[split][epoch]`: mean losses in nats, without test-time augmentation, of the epochs that have one;
        "train", "test" and, where there is any, "val"."""
        return _by_split(self.history, "loss")

    @property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """`accuracies[split][epoch]`: fractions, otherwise as `losses`."""
        return _by_split(self.history, "accuracy")

    def to_json(self) -> dict[str, Any]:
        """The record as run.json holds it: an object of plain values, lists for tuples, None for NaN and infinities,
        which JSON has not."""
        return json.loads(json.dumps(dataclasses.asdict(self)), parse_constant=lambda _: None)

    @classmethod
    def from_json(cls, values: object, source: str = RECORD) -> RunRecord:
        """The record in what JSON gave, of this version or an older one, as one of this version.

        Keys that name no field are passed over. Raises UserError, which begins with `source`, for a newer version and
        where a field is missing or wrong.
        """
        try:
            if not isinstance(values, dict):
                raise UserError(f"it is {_shown(values)}; allowed: an object, the record of a run")
            version = values.get("version", 1)
            if type(version) is not int or not 1 <= version <= VERSION:
                raise UserError(f"version is {_shown(version)}; allowed: 1 to {VERSION}, what this fastcifar can read")
            recipe = values.get("recipe")
            if isinstance(recipe, dict):  # whose warning is to name the file
                values = {**values, "recipe": dict(modernize(recipe, source))}
            return _read(cls, {**values, "version": VERSION})
        except UserError as error:
            raise UserError(f"{source}: {error}") from None


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, with "+changes" where tracked files differ from it; None where it is
    no checkout."""
    if not (folder / ".git").exists():  # what lies deeper in somebody's checkout, such as site-packages, is not of it
        return None
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty=+changes",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def own_commit() -> str | None:
    """That of fastcifar itself, asked for once in a process."""
    return commit_of(_ROOT)


def _version(package: str) -> str | None:
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _by_split(history: Iterable[EpochRow], what: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for split in ("train", "test", "val"):
        values = {row.epoch: getattr(row, f"{split}_{what}") for row in history}
        found[split] = {epoch: value for epoch, value in values.items() if value is not None}
    return found if found["val"] else {split: found[split] for split in ("train", "test")}


_hints = cache(get_type_hints)


def _read(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    """A dataclass from its fields in `values`."""
    found = {}
    for each in dataclasses.fields(cls):
        path = prefix + each.name
        if each.name in values:
            found[each.name] = _value(_hints(cls)[each.name], values[each.name], path)
        elif each.default is each.default_factory is dataclasses.MISSING:
            raise UserError(f"{path} is missing; allowed: the record of a run, as it was written")
    return cls(**found)


def _value(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint`: lists stand for tuples, objects for dataclasses, integers may stand for floats."""
    kind, kinds = get_origin(hint) or hint, get_args(hint)
    if NoneType in kinds:
        return None if value is None else _value(kinds[0], value, path)
    if kind is object:
        return value
    if isinstance(value, dict):
        if hint is Recipe:
            return recipe_from_dict(value, path)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return _read(hint, value, f"{path}.")
        if kind is dict:
            return {key: _value(kinds[1], item, f"{path}.{key}") for key, item in value.items()}
    if kind is tuple and isinstance(value, list):
        return tuple(_value(kinds[0], item, f"{path}[{place}]") for place, item in enumerate(value))
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is kind:
        return value
    raise UserError(f"{path} is {_shown(value)}; allowed: {_WORDS.get(kind, 'an object')}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
