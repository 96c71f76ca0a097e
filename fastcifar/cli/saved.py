"""`Saved`: the network of a saved run and the images that a command asks for, as eval and predict take them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import Positional, arg

from fastcifar.catalogue import find, is_path, name_of
from fastcifar.cli.options import CommandOptions, Resident, read_fold
from fastcifar.errors import UserError, brief
from fastcifar.output import RECORD, run_files, user_path
from fastcifar.recipes.augmentation import MOST_SIDE
from fastcifar.recipes.declare import setting

if TYPE_CHECKING:
    import torch

    from fastcifar.data import Dataset, Split
    from fastcifar.record import DatasetFacts, RunRecord
    from fastcifar.training import Evaluation


@dataclass(frozen=True)
class SavedOptions(CommandOptions):
    """Options of commands that evaluate a saved run's network."""

    run_dir: Annotated[Positional[str], arg(metavar="RUN_DIR", help_behavior_hint="")] = ""
    """The folder of the run, which holds run.json and model.safetensors, or a run whose weights an experiment kept, as
    in runs/half/warm/seed-0."""
    weights: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: the run's)")] = None
    """Other weights for the run's network: those of one of its epochs, another run's folder, or a .safetensors, .pt,
    .pth or .ckpt file."""
    member: Annotated[int | None, arg(metavar="M", help_behavior_hint="(default: all, the mean of their logits)")] = (
        setting(None, at_least=0)
    )
    """Of networks that were trained at once (ensemble.members): member M alone, from 0."""
    on: Annotated[str | None, arg(metavar="NAME|PATH", help_behavior_hint="(default: the run's)")] = None
    """The test images of another data set with the same classes; of CIFAR-10-C, each corruption at each severity."""
    resize: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as they are)")] = setting(
        None, at_least=1, at_most=MOST_SIDE
    )
    """With --on: bring its images to N by N pixels, the side of the run's."""
    tta: Annotated[Literal["none", "flip", "flip-crop"] | None, arg(help_behavior_hint="(default: the run's)")] = None
    """Test-time augmentation: none, or the mean logits of each image and its mirror image, or of these and shifted
    ones. With --on and --corrupt the default is none, as of published results."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds the images; without one, a published set is looked for in the user's cache, then downloaded. Of
    a run on a path of your own: where its images are now."""
    resident: Resident = "auto"
    """Where the images lie: on the device, in host memory or, those of an HDF5 file, on disk, from where batches are
    read; auto: the first that has room for them and a quarter more."""
    mirror: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(default: $FASTCIFAR_MIRROR)")] = None
    """Address to download from first: of an archive, or of a folder with one; http, https or file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to evaluate on; auto: a GPU if there is one."""

    @property
    def is_shifted(self) -> bool:
        """Whether the default is no test-time augmentation, as of published results on shifted images."""
        return self.on is not None

    def _check(self) -> None:
        self._require("resize", self.resize is None or self.on is not None, "with --on, whose images it changes")
        has_place = self.on is not None and is_path(self.on)  # which says itself where it is
        if has_place and self.data_dir is not None:
            raise UserError(f"--data-dir is {self.data_dir}; allowed: without --on PATH, which is read there")


def run_folder(word: str, where: str) -> Path:
    """Return the folder of a run, or of one that an experiment kept its name there; `where` the word is, for the error.
    Raises UserError where there is no run."""
    folder = user_path(word, where)
    record_file, _ = run_files(folder)
    if not os.path.isfile(record_file):
        if within := sorted(folder.glob(f"*/{RECORD}")):
            raise UserError(f"{folder} holds several runs; allowed: one of them, as in {within[0].parent}")
        allowed = "a folder that fastcifar train wrote, or a run that an experiment kept, as in DIR/warm/seed-0"
        raise UserError(f"{folder} holds no run: {record_file.name} is missing; allowed: {allowed}")
    return folder


Asked = TypeVar("Asked", bound=SavedOptions)


class Saved(Generic[Asked]):
    """A saved run's network, and the images that the options ask for."""

    def __init__(self, options: Asked, folder: Path) -> None:
        from fastcifar.optim import FlatModel
        from fastcifar.training import load_run, resolve_device, resolve_dtype

        self.options, self.folder = options, folder
        self.device: torch.device = resolve_device(options.device)
        self.recipe, model, self.record = load_run(folder, member=options.member, weights=options.weights)
        # The run's own type, so that rounding is the same too.
        dtype = resolve_dtype(self.recipe.dtype, self.device, self.record.dtype)
        self.model = FlatModel(model.to(self.device), dtype).model
        self.tta = options.tta or ("none" if options.is_shifted else self.recipe.evaluate.tta)

    @property
    def stored(self) -> float | None:
        """The accuracy that the run says of its own test images; None where it does not for these weights and this
        test-time augmentation."""
        accuracies = {"none": self.record.accuracy, self.recipe.evaluate.tta: self.record.tta_accuracy}
        return accuracies.get(self.tta) if self.is_own else None

    @property
    def is_own(self) -> bool:
        """Whether the network is all of the run's, with the run's weights."""
        return self.options.weights is None and self.options.member is None

    def own_images(self) -> str:
        """Return what the run tested on, in words."""
        data = self.record.dataset
        return f"{data.test_size:,} {data.tested} images of its own"

    def dataset(self) -> Dataset:
        """Return the images to evaluate on: the run's own or, without variants, those of --on."""
        if self.options.on is not None:
            return self.other(self.options.on)
        dataset = own_images(self.record, self.options.data_dir, self.options.mirror)
        return self._placed(dataset, self.record.dataset.resized)

    def _placed(self, dataset: Dataset, resize: int | None) -> Dataset:
        """Return the dataset to evaluate on, without training images, where --resident says."""
        import torch

        from fastcifar.data.residency import place_images

        train = dataset.train.subset(torch.arange(0))  # nothing of them is looked at
        return place_images(replace(dataset, train=train), self.options.resident, self.device, resize)

    def other(self, word: str, resize: int = 0) -> Dataset:
        """Return another data set, its images of the side in `resize` or --resize, of whose test images those of the
        run's classes are left. Raises UserError for one with other classes or of another side."""
        import torch

        from fastcifar.data import load_dataset
        from fastcifar.data.folder import holds_images_alone, load_unlabeled

        data, (entry, variant) = self.record.dataset, find(word)
        if entry.homes and (count := entry.variants.get(variant, entry.classes)) != len(data.classes):  # no download
            raise UserError(f"{word} has {count} classes, the run {len(data.classes)}; allowed: a set with the run's")
        resize = resize or self.options.resize or 0
        data_dir = None if is_path(word) and word != data.name else self.options.data_dir  # which is not a path's place
        if is_path(word) and holds_images_alone(folder := Path(name_of(word))):
            dataset = load_unlabeled(folder, data.classes, resize)
        else:
            dataset = load_dataset(word, data_dir, "cpu", 0, self.options.mirror, None, resize)
        if not len(dataset.train) and dataset.test.label_range[1] < 0 and dataset.val is None:
            dataset = replace(dataset, classes=data.classes)  # images alone say nothing of classes
        _refuse_another(dataset, data, resize, f"--resize {data.side}")
        if (classes := self.kept_classes) is None or dataset.test.label_range[1] < 0:
            return self._placed(dataset, resize)
        kept = dataset.test.subset(torch.isin(dataset.test.labels, torch.tensor(classes)))
        if not len(kept):
            raise UserError(f"{dataset.name} has no test images of the run's classes, {classes}; allowed: some")
        return self._placed(replace(dataset, test=kept, val=None), resize)

    @property
    def kept_classes(self) -> list[int] | None:
        """The labels that the run was restricted to; None: all."""
        return _kept_classes(self.record)

    def score(self, split: Split) -> Evaluation:
        from fastcifar.training import evaluate

        return evaluate(self.model, split, replace(self.recipe.evaluate, tta=self.tta))

    def facts(self, dataset: str, holdout: int, images: int) -> dict[str, Any]:
        """Return what each JSON object begins with."""
        options = self.options
        facts = {"run": str(self.folder), "weights": options.weights, "dataset": dataset, "holdout": holdout}
        return {**facts, "images": images, "tta": self.tta}


def own_images(record: RunRecord, data_dir: Path | None, mirror: str | None) -> Dataset:
    """Return the data set whose test images are those that a run was tested on. Raises UserError where it is not known
    or not there, and for another one."""
    from fastcifar.data import load_dataset
    from fastcifar.data.dataset import BEFORE_HOLDOUT

    data = record.dataset
    try:
        find(data.name)
    except UserError:  # made by a program: nothing here can make it again
        said = f"the run's images, {brief(data.name)}, are no set that is known here: {data.source}"
        allowed = "--on PATH, a file with its images, as in --on mine.npz; --plugin MODULE, which registers the set"
        raise UserError(f"{said}; allowed: {allowed}") from None
    dataset = load_dataset(data.name, data_dir, "cpu", 0, mirror, None, data.resized)
    _refuse_another(dataset, data, data.resized, "the run's images, where --data-dir says they are now")
    choices = _choices(record)
    before = max((place for place, each in enumerate(choices, start=1) if each.get(BEFORE_HOLDOUT)), default=0)
    for each in choices[:before]:  # of what these left, images were held out
        dataset = dataset.take(**{name: each[name] for name in ("size", "seed", "balanced", "classes")})
    dataset = dataset.hold_out(data.holdout) if data.holdout and not data.fold else dataset
    dataset = dataset.labeled_test() if data.tests_val else dataset
    dataset = dataset.fold(*read_fold(data.fold, "the run's fold")) if data.fold else dataset
    classes = _kept_classes(record)
    return dataset if classes is None else dataset.take(classes=classes)


def _choices(record: RunRecord) -> list[dict[str, Any]]:
    """Return the choices of training images that a run's data set was made by, the first one first."""
    found, subset = [], record.subset
    while isinstance(subset, dict):
        found.append(subset)
        subset = subset.get("of")
    return found[::-1]


def _kept_classes(record: RunRecord) -> list[int] | None:
    """Return the labels that a run was restricted to; None: all."""
    kept = [{*classes} for each in _choices(record) if isinstance(classes := each.get("classes"), list)]
    return sorted(set.intersection(*kept)) if kept else None


def labeled_images(dataset: Dataset) -> tuple[Split, str]:
    """Return the test images, or where none has a label the validation images, and their name. Raises UserError where
    none has one either."""
    for split, name in ((dataset.test, dataset.tested), (dataset.val, "validation")):
        if split is not None and split.labeled.any():
            return split, name
    raise UserError(
        f"the test images of {dataset.name} have no labels, so no accuracies; allowed: a data set with some"
    )


def _refuse_another(dataset: Dataset, data: DatasetFacts, resize: int, sides: str) -> None:
    """Raise UserError for a data set that a run's network is not made for: with other classes than its images, `data`,
    or, after it is resized, where `resize` is not 0, of another side. `sides`: what is allowed then."""
    if dataset.classes != data.classes:
        raise UserError(f"{_differ(dataset, data.classes)}; allowed: a set with the run's")
    height, width = (resize, resize) if resize else dataset.test.image_shape[:2]
    if (height, width) != (data.side, data.side):
        said = f"the images of {dataset.name} are {height} x {width} pixels, the run's {data.side} x {data.side}"
        raise UserError(f"{said}; allowed: {sides}")


def _differ(dataset: Dataset, classes: Sequence[str]) -> str:
    """Say how the classes of a data set differ from a run's."""
    if len(dataset.classes) != len(classes):
        return f"{dataset.name} has {len(dataset.classes)} classes, the run {len(classes)}"
    pairs = zip(dataset.classes, classes, strict=True)
    label, here, there = next((label, *pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {label} of {dataset.name} is {here!r}, the run's {there!r}"
