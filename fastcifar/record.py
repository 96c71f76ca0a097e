"""`RunRecord`: the record of a finished training in run.json. Standard library and recipes only: reading one never
needs torch.

A record is one flat JSON object with a key for each field. Reading checks each value against its field's type and
refuses a damaged file by the name of the field.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from fastcifar.by_class import ClassScores
from fastcifar.errors import UserError, brief
from fastcifar.output import RECORD, refuse_deep, short_name
from fastcifar.recipes import Recipe, label, recipe_from_dict
from fastcifar.recipes.legacy import in_steps, modernize

if TYPE_CHECKING:
    from fastcifar.data import Dataset

VERSION = 3
"""The version of the format. 1: dictionaries without a version, and without the fields that are None by default. 2:
before a recipe's network and optimizer had kinds."""

_ROOT = Path(__file__).resolve().parents[1]
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list"}
_NUMBERS = re.compile(r"\[\n\s*((?:-?\d+,\n\s*)*-?\d+)\n\s*\]")
"""A list of whole numbers in JSON with a line each; in a text there is no line end."""
_SHOWN = 60
"""Characters of a wrong value that an error shows."""


@dataclass(frozen=True)
class EpochRow:
    """The results of one epoch, or, as epoch 0, of the network before training. Values not measured are None."""

    epoch: int
    train_loss: float | None
    """Mean over the images trained on, in nats, label smoothing included."""
    train_accuracy: float | None
    """The fraction of right answers while training."""
    test_accuracy: float | None
    """A fraction, without test-time augmentation."""
    seconds: float
    """Reading of the training stopwatch at the end of the epoch."""
    test_loss: float | None = None
    """Mean log-loss in nats, without test-time augmentation."""
    learning_rate: float | None = None
    """The rate of the last step."""
    images: int | None = None
    """Training images seen since the training began."""
    val_loss: float | None = None
    val_accuracy: float | None = None

    @property
    def validation(self) -> tuple[float | None, float | None]:
        """Accuracy and loss on the validation split or, where no image of one has a label, on the test split."""
        if self.val_loss is None:
            return self.test_accuracy, self.test_loss
        return self.val_accuracy, self.val_loss


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
    side: int = 32
    """Of the images, in pixels."""
    resized: int = 0
    """The side that `resize` brought them to; 0: their own."""
    tests_val: bool = False
    """The test split is the validation split, as no image of the test split has a label."""
    fold: str = ""
    """Which part of the training images those of the test split are, as in "1/5"; empty: none by `fold`."""

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetFacts:
        """Return the facts of `dataset`."""
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
            side=dataset.train.image_shape[0],
            resized=dataset.resized,
            fold=dataset.folded,
            tests_val=dataset.tests_val,
        )

    @property
    def title(self) -> str:
        """The name in a line for readers: of a path, what stands last."""
        return short_name(self.name)

    @property
    def tested(self) -> str:
        """What the images of the test split are: "test", "held-out" or "validation"."""
        return "validation" if self.tests_val else "held-out" if self.holdout or self.fold else "test"


@dataclass(frozen=True)
class DeviceFacts:
    """The hardware that a run was trained on."""

    type: str
    """cpu or cuda."""
    name: str
    threads: int | None = None
    """Threads that torch computes with on a CPU."""


@dataclass(frozen=True)
class Versions:
    """Versions of Python and of a run's packages; None: absent, or not recorded at the time."""

    python: str
    torch: str | None = None
    numpy: str | None = None
    triton: str | None = None
    fastcifar: str | None = None

    @classmethod
    def here(cls) -> Versions:
        """Return the versions in this process."""
        packages = [field.name for field in dataclasses.fields(cls) if field.name != "python"]
        return cls(platform.python_version(), *map(_version, packages))


@dataclass(frozen=True)
class Scores:
    """Accuracy, a fraction, and mean log-loss in nats."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of a finished training. Older records may lack fields that have a default.

    Accuracies are fractions, losses mean log-losses in nats, both None where the images have no labels; `tta_*` are
    with the recipe's test-time augmentation.
    """

    version: int = VERSION
    recipe: Recipe
    dataset: DatasetFacts
    subset: dict[str, object] | None
    """The choice of training images; None: all."""
    seed: int
    init: dict[str, object]
    """The start, as `ColdStart.describe` and the like say it."""
    network: str | None = None
    """None: the recipe's; "own": one given to `train`."""
    device: DeviceFacts
    dtype: str
    """The compute type, such as bfloat16."""
    versions: Versions
    commit: str | None = None
    """The commit that fastcifar was imported from, with "+changes" where tracked files differed from it."""
    command: tuple[str, ...] | None = None
    """The command line of the process."""
    started: str
    """The time when the (first) process began, or the run before in it ended: UTC, as in 2025-01-31T12:00:00Z."""
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
    best_epoch: int | None = None
    """The epoch whose weights were kept as the best, and whose accuracies these are; None: the last."""
    by_class: ClassScores | None = None
    """On the test split without test-time augmentation, as `accuracy` is; None where no image has a label, and in older
    records."""
    train_split: Scores | None = None
    """On the run's own training images at the end, in evaluation mode and without augmentation; None: not measured."""
    train_seconds: float
    """From the first touch of the resident images to the last step, evaluation left out (DAWNBench's rule)."""
    time_seconds: float
    """train_seconds and the final evaluation with test-time augmentation (airbench's rule)."""
    process_seconds: float
    """To the final accuracy, from the call of `train` or `Trainer.run`; on the command line from the start of the
    process, or the end of the run before in it. Of a training that went on, the seconds of all its processes, each
    until the state that the next one went on from."""
    compiled: bool = False
    """True if the network went through torch.compile."""
    captured: bool | None = None
    """True if the steps were replayed from CUDA graphs."""
    not_captured: str | None = None
    """The reason where they were not."""
    first_step_seconds: float | None = None
    """From the beginning of process_seconds to the end of the first step; on CUDA until it was queued."""
    phases: dict[str, float] = field(default_factory=dict)
    """The parts of process_seconds."""
    resumed: tuple[int, ...] = ()
    """The steps at which the training went on in another process."""
    images_per_second: float
    resident: str = "device"
    """Where the training images lay: on the device, in host memory ("host") or in a file ("disk")."""
    waited_seconds: float | None = None
    """The part of train_seconds in which steps waited for their images; None where they were made of those on the
    device."""
    units_replaced: int | None = None
    """Hidden units that began again, by ReDo or continual backprop; None: the recipe replaces none, or an older record
    does not say."""
    weights_sha256: str | None = field(default=None, compare=False)
    """The sha256 of model.safetensors, by which a saved run is checked when it is read; None: not known."""

    def __repr__(self) -> str:
        accuracy = "no test labels" if self.tta_accuracy is None else f"{self.tta_accuracy:.2%}"
        return f"RunRecord({label(self.recipe)}, seed {self.seed}, {accuracy}, {self.train_seconds:.1f} s)"

    @property
    def final_accuracy(self) -> float | None:
        """The accuracy that the run is told by: on the test images, with test-time augmentation, or where these have no
        labels on the validation split."""
        return self.val_accuracy if self.tta_accuracy is None else self.tta_accuracy

    @property
    def losses(self) -> dict[str, dict[int, float]]:
        """`losses[split][epoch]`: mean losses in nats, without test-time augmentation, of the epochs that have one;
        "train", "test" and, where there is any, "val"."""
        return _by_split(self.history, "loss")

    @property
    def accuracies(self) -> dict[str, dict[int, float]]:
        """`accuracies[split][epoch]`: fractions, otherwise as `losses`."""
        return _by_split(self.history, "accuracy")

    @property
    def precision(self) -> float | None:
        """Macro mean of the classes' precision, a fraction; None without `by_class`."""
        return None if self.by_class is None else self.by_class.mean_precision

    @property
    def recall(self) -> float | None:
        """Macro mean of the classes' recall, a fraction; None without `by_class`."""
        return None if self.by_class is None else self.by_class.mean_recall

    @property
    def keep(self) -> str:
        """Which weights were kept: the "best" epoch's or the "last"."""
        return "last" if self.best_epoch is None else "best"

    def to_json(self) -> dict[str, Any]:
        """Return the record as in run.json: plain values, lists for tuples, None for NaN and infinities, which JSON
        lacks."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, values: object, where: str = RECORD) -> RunRecord:
        """Return the record in values read from JSON, of this version or an older one, as one of this version.

        Unknown keys are skipped. Raises UserError, which begins with `where`, for a newer version and where a field is
        missing or wrong.
        """
        try:
            if not isinstance(values, dict):
                raise UserError(f"it is {brief(values, _SHOWN)}; allowed: an object, the record of a run")
            refuse_deep(values)
            version = values.get("version", 1)
            if type(version) is not int or not 1 <= version <= VERSION:
                raise UserError(
                    f"version is {brief(version, _SHOWN)}; allowed: 1 to {VERSION}, what this fastcifar can read"
                )
            recipe = values.get("recipe")
            if isinstance(recipe, dict):  # here, so that its warning names the file
                values = {**values, "recipe": dict(modernize(in_steps(recipe), where))}
            return _read(cls, {**values, "version": VERSION})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def json_text(values: object) -> str:
    """Return `values` as JSON for readers: indented, with whole numbers of a list in one line, as confusion's rows."""
    text = json.dumps(values, indent=2)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in `folder`, with "+changes" where tracked files differ from it; None where
    it is no checkout."""
    if not (folder / ".git").exists():  # a folder inside another project's checkout, such as site-packages, is none
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def own_commit() -> str | None:
    """Return the commit of fastcifar itself; git is called once in a process."""
    return commit_of(_ROOT)


def _version(package: str) -> str | None:
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _by_split(history: Iterable[EpochRow], score: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for split in ("train", "test", "val"):
        values = {row.epoch: getattr(row, f"{split}_{score}") for row in history}
        found[split] = {epoch: value for epoch, value in values.items() if value is not None}
    return found if found["val"] else {split: found[split] for split in ("train", "test")}


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values), parse_constant=lambda _: None)


_hints = cache(get_type_hints)


def _read(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Return a dataclass from its fields in `values`."""
    found = {}
    for each in dataclasses.fields(cls):
        path = prefix + each.name
        if each.name in values:
            found[each.name] = _value(_hints(cls)[each.name], values[each.name], path)
        elif each.default is each.default_factory is dataclasses.MISSING:
            raise UserError(f"{path} is missing; allowed: the record of a run, as it was written")
    return cls(**found)


def _value(hint: Any, value: Any, path: str) -> Any:
    """Return `value` as the type `hint`: lists stand for tuples, objects for dataclasses, integers may for floats, and
    NaN and infinities for None, as `to_json` has them."""
    kind, kinds = get_origin(hint) or hint, get_args(hint)
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if NoneType in kinds:
        return None if value is None or (float in kinds and not is_finite) else _value(kinds[0], value, path)
    if kind is object:
        return _plain(value)
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
    if type(value) is kind and is_finite and (type(value) is not int or abs(value) < 2**63):
        return value
    raise UserError(f"{path} is {brief(value, _SHOWN)}; allowed: {_WORDS.get(kind, 'an object')}")
