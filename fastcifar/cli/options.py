"""Options that several commands share, their checks, and the data and the device that they name."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import arg

from fastcifar.catalogue import DEFAULT_DATASET, FORMS, find, is_path, name_of, no_training_images
from fastcifar.errors import UserError, brief
from fastcifar.escape import shown
from fastcifar.experiments.experiment import Experiment, hold_out
from fastcifar.launch import Rank
from fastcifar.recipes import DEFAULT_RECIPE, Recipe
from fastcifar.recipes.augmentation import MOST_SIDE
from fastcifar.recipes.declare import Checked, setting, type_hints
from fastcifar.track.packages import Tracked, refuse_missing

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from fastcifar.data import Dataset

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help_behavior_hint="")]
"""A flag without a value, off unless given."""
Resident = Literal["auto", "device", "host", "disk"]


def _optional(metavar: str, default: str = "all") -> object:
    """Return how the help shows a flag that has no value unless it is given one."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def flag_of(name: str) -> str:
    """Return the flag of an option or of a field by its dotted name; one that Python keeps for itself has a _ behind
    it."""
    return "--" + name.rstrip("_").replace("_", "-")


def in_full(flag: str) -> str:
    """Return a flag that was given with hyphens, and in full where it is short for a field's."""
    flag = flag.replace("_", "-")
    return {"--loader": "--loading.loader", "-o": "--out"}.get(flag, flag)


def with_coarse(dataset: str) -> str:
    """Return what --coarse makes of the word in --dataset. Raises UserError for other sets than CIFAR-100."""
    if dataset not in ("cifar100", "cifar100:coarse"):
        raise UserError(f"--coarse is given with --dataset {brief(dataset)}; allowed: with cifar100")
    return "cifar100:coarse"


@dataclass(frozen=True)
class CommandOptions(Checked):
    """Options of every command that reads a recipe, a run or a data set."""

    plugin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, arg(metavar="MODULE", help_behavior_hint="")] = ()
    """A module to import first, which registers networks, optimizers, transforms, data sets or experiments of your own;
    may be given several times."""

    def _path(self, name: str) -> str:
        return flag_of(name)


@dataclass(frozen=True)
class RecipeOptions(CommandOptions):
    """Options of every command whose flags change a recipe; read by `parse_with_recipe`."""

    recipe: Annotated[str, arg(metavar="NAME|FILE.toml")] = DEFAULT_RECIPE
    """A named recipe (`fastcifar recipes` lists them) or a TOML file. Its name, or that in the file, tells the data set
    where --dataset does not."""
    network: str = ""
    """The network; where it is not the recipe's, with its own defaults."""
    optimizer: str = ""
    """The optimizer; where it is not the recipe's, with its own defaults."""
    settings: Annotated[Recipe, arg(name="")] = dataclasses.field(default_factory=Recipe)
    """The recipe with all of these; its fields are flags too, whose help stands last."""


@dataclass(frozen=True)
class FormOptions(RecipeOptions):
    """Options of commands that measure a recipe on images of a data set's form, without reading them if they can."""

    dataset: str = DEFAULT_DATASET
    """The data set, whose images and classes are counted; the path of your own is read."""
    coarse: Switch = False
    """Of CIFAR-100: count its 20 coarse classes."""
    data_dir: Annotated[Path | None, _optional("DIR", "as --dataset says")] = None
    """Of a path in --dataset, or a set of your own: where it is now."""
    resize: Annotated[int | None, _optional("N", "the data set's")] = setting(
        None, at_least=1, at_most=MOST_SIDE, unit="pixels"
    )
    """Side of the images, as train's --resize brings them to it; without one that of the data set, or one that the
    network takes."""

    def form(self) -> tuple[int, int, tuple[int, int]]:
        """Return the number of classes, the side, and how many training and test images there are."""
        word = with_coarse(self.dataset) if self.coarse else self.dataset
        entry, variant = find(word)
        if entry.images is not None:
            side = self.resize or self.settings.network.side_for(entry.side)
            return entry.variants.get(variant, entry.classes), side, entry.images

        from fastcifar.data import load_dataset

        dataset = load_dataset(word, self.data_dir, resize=self.resize or 0)
        side = self.resize or self.settings.network.side_for(dataset.train.side)
        return len(dataset.classes), side, (len(dataset.train), len(dataset.test))


@dataclass(frozen=True)
class DataOptions(CommandOptions):
    """The data set, and where it is."""

    dataset: str = DEFAULT_DATASET
    """The data set: a name, or the path of your own, a folder of images by class or a file of arrays."""
    data_dir: Annotated[Path | None, _optional("DIR", "$FASTCIFAR_DATA")] = None
    """Folder that holds it, or a folder of its name that does; without one, it is looked for in the user's cache, then
    downloaded. Of a path in --dataset: where it is now."""
    mirror: Annotated[str | None, _optional("URL", "$FASTCIFAR_MIRROR")] = None
    """Address to download from first: of an archive, or of a folder with one; http, https or file."""
    coarse: Switch = False
    """With cifar100: its 20 coarse classes, as --dataset cifar100:coarse."""
    resident: Resident = "auto"
    """Where the images lie: on the device, in host memory or, those of an HDF5 file, on disk, from where batches are
    read ahead of time; auto: the first that has room for them and a quarter more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coarse:
            object.__setattr__(self, "dataset", with_coarse(self.dataset))
            object.__setattr__(self, "coarse", False)  # two spellings of the same options


@dataclass(frozen=True)
class ImageOptions(DataOptions):
    """The data set, and the side of its images."""

    resize: Annotated[int | None, _optional("N", "as they are")] = setting(None, at_least=1, at_most=MOST_SIDE)
    """Bring the images to N by N pixels (bilinear, antialiased); of images that are not square the shorter side, and
    the middle is kept. Mean and standard deviation stay the data set's. Without it images of a known set that are too
    small for alexnet, below 63, are brought to 70."""

    def whole(self, name: str = "") -> Dataset:
        """Return the whole data set, or another of this name, on the CPU, its images of the side in --resize."""
        dataset = self.as_read(name)
        return dataset if self.resize is None else dataset.resize(self.resize)

    def as_read(self, name: str = "") -> Dataset:
        """Return what `whole` does with images of their own side, but for image files of unequal ones."""
        from fastcifar.data import load_dataset

        how = ("cpu", 0, self.mirror, self.resident, self.resize or 0)
        return load_dataset(name or self.dataset, self.data_dir, *how)


@dataclass(frozen=True)
class TrainingOptions(RecipeOptions, ImageOptions):
    """Options of every command that trains."""

    synthetic_fallback: Switch = False
    """If the data set cannot be downloaded, say so and train on the synthetic set."""
    holdout: Annotated[int | Literal["third"], arg(metavar="N|third")] = setting(0, at_least=0, unit="images")
    """Test on N training images, or on a third of them, which are then not trained on, in place of the test set, which
    is for confirming; 0: the test set."""
    fold: Annotated[str | None, _optional("K/N", "none")] = None
    """Test on part K of N parts of the training images, as in 1/5, and train on the others: the parts of a
    cross-validation, always the same images, about equally many of each class."""
    train_size: Annotated[int | None, _optional("N")] = setting(None, at_least=1, unit="images")
    """Train on N training images only: always the same, and those of a smaller N among those of a larger."""
    train_fraction: Annotated[float | None, _optional("F", "1")] = setting(None, above=0, at_most=1)
    """Train on this share, above 0 up to 1, of the training images (of --train-size and --classes, where given)."""
    balanced: Switch = False
    """Take as nearly as possible the same number of each class for --train-size and --train-fraction."""
    subset_seed: Annotated[int, arg(metavar="N")] = setting(0, at_least=0, below=2**32)
    """Names the choice of images for --train-size and --train-fraction."""
    classes: Annotated[str | None, _optional("L,L,...")] = None
    """Train and test on images with these labels alone, as in 0,1,2; the network keeps an output for every class."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to train on; auto: a GPU if there is one."""
    threads: Annotated[int | None, _optional("N", "torch's")] = setting(None, at_least=1, at_most=1024)
    """CPU threads: of the runs of --parallel together, of each rank of torchrun."""
    parallel: Annotated[int | Literal["auto"], arg(metavar="K|auto")] = setting(1, at_least=1, at_most=1024)
    """Train K runs at once on the device, each in a process of its own; they share the images, and --threads are split
    among them. auto: on a CPU as many seeds as there are threads, on a GPU one run after the other."""
    seed: Annotated[int, arg(metavar="N")] = setting(0, at_least=0)
    """Names the random choices of a run (weights, order, crops, flips); with several runs, of the first."""
    runs: Annotated[int, arg(metavar="N")] = setting(1, at_least=1, at_most=100_000)
    """Train N times, with seeds S, S+1, ...; the same command in the same --out goes on where it was stopped, and
    several processes share the runs."""
    out: Annotated[Path | None, _optional("DIR", "named after the recipe, in runs")] = None
    """Folder for the runs and the results."""
    track: Annotated[tuple[Tracked, ...], arg(help_behavior_hint="")] = ()
    """Send each epoch's metrics and the configuration to trackers: files in the folder track, or Weights & Biases,
    whose project is $WANDB_PROJECT or fastcifar, and which WANDB_MODE=offline keeps in files too."""
    quick: Switch = False
    """The same path made small, to try it: a narrower network, fewer epochs, fewer training images."""
    quiet: Switch = False
    """Print the result only."""
    json: Switch = False
    """Print the result as JSON and nothing else to standard output."""

    @property
    def labels(self) -> list[int] | None:
        """The labels in --classes; None where it is not given."""
        if self.classes is None:
            return None
        words = self.classes.split(",")
        if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
            raise UserError(
                f"--classes is {brief(self.classes)}; allowed: labels with a comma between them, as in 0,1,2"
            )
        labels = [int(word) for word in words]
        if len({*labels}) < max(2, len(labels)):
            raise UserError(f"--classes is {brief(self.classes)}; allowed: two labels or more, each once")
        return labels

    def resized_for(self, *recipes: Recipe) -> Self:
        """Return the options with the --resize of networks for which the images of a known data set are too small."""
        entry, _ = find(self.dataset)
        if self.resize is not None or entry.images is None:
            return self
        sides = {recipe.network.side_for(entry.side) for recipe in recipes} - {entry.side}
        return dataclasses.replace(self, resize=sides.pop()) if len(sides) == 1 else self

    def check(self, *recipes: Recipe) -> None:
        """Refuse what does not go together, before torch is imported."""
        refuse_missing(self.track)
        entry, _ = find(self.dataset)
        if entry.test_only:
            raise no_training_images(self.dataset)
        if self.fold is not None:
            read_fold(self.fold, "--fold")
            self._require("holdout", not self.holdout, "with --fold none, as a fold is held out")
        side = self.resize or (entry.side if entry.homes else 0)  # of other sets the data say it
        for recipe in recipes if side else ():
            recipe.refuse_side(side)
        self._check_processes(*recipes)
        largest = max((recipe.batch_size for recipe in recipes if recipe.drop_last), default=1)
        if self.train_size is not None:  # without drop_last fewer images are a batch too
            self._require("train_size", self.train_size >= largest, f"batch_size, {largest}, or more images")
        _ = self.labels
        takes_images = hasattr(getattr(self, "experiment", None), "subset_seed")  # an experiment, of its own accord
        if self.train_size is None and self.train_fraction is None:
            subset_seed = self.subset_seed and not takes_images
            for flag, given in (("--balanced", self.balanced), ("--subset-seed", subset_seed)):
                if given:
                    allowed = "with --train-size or --train-fraction"
                    raise UserError(f"{flag} says which images a subset takes; allowed: {allowed}")

    def _check_processes(self, *recipes: Recipe) -> None:
        for loading in (recipe.loading for recipe in recipes):
            alone = self.parallel != 1 and loading.loader == "host" and loading.workers > 0
            self._require("parallel", not alone, f"1 with --loading.workers {loading.workers}, or 0 workers")
        if (ranks := Rank.here().count) > 1 and self.parallel != 1:
            allowed = "one of them: more ranks by --nproc-per-node, or --parallel without torchrun"
            raise UserError(f"--parallel is {self.parallel} in each of torchrun's {ranks} ranks; allowed: {allowed}")

    def start_device(self) -> torch.device:
        """Return the device in --device, with --threads; torch is imported and set here. Of torchrun's ranks each takes
        a GPU of its own, while there are as many, and its share of the cores."""
        rank = Rank.here()
        device = start_device(self.device, self.threads or rank.threads)
        if device.type == "cuda":  # it starts while the data is read
            import torch

            if rank.count > 1:
                device = torch.device("cuda", rank.local % torch.cuda.device_count())
                torch.cuda.set_device(device)
            Thread(target=torch.zeros, args=(1,), kwargs={"device": device}, daemon=True).start()
        return device

    def load(self, device: torch.device) -> Dataset:
        """Return the images to train with on `device`: those of --holdout or --fold in place of the test set, and what
        --classes, --train-size and --train-fraction leave, of the side in --resize, where --resident says. --quick asks
        for no more than there are."""
        from fastcifar.data import DownloadError, load_dataset
        from fastcifar.data.residency import place_images

        try:
            dataset = load_dataset(self.dataset, self.data_dir, "cpu", 0, self.mirror, None, self.resize or 0)
        except DownloadError as error:
            if not self.synthetic_fallback:
                raise
            print(f"fastcifar: {shown(error)}; training on synthetic data instead", file=sys.stderr)
            dataset = load_dataset("synthetic", None, "cpu")
        if self.fold is not None:
            dataset = dataset.fold(*read_fold(self.fold, "--fold"))
        dataset = self._subset(hold_out(dataset, self.holdout))
        return place_images(dataset, self.resident, device, self.resize)  # only what is trained and tested on

    def _subset(self, dataset: Dataset) -> Dataset:
        labels = dataset.train.labels.tolist()
        available = len(labels) if self.labels is None else sum(label in self.labels for label in labels)
        size = self.train_size
        if size is None or (self.quick and size > available):
            size = available
        if self.train_fraction is not None:
            size = round(size * self.train_fraction)
        if size == available and self.labels is None:
            return dataset
        return dataset.take(size, self.subset_seed, self.balanced, self.labels)


def start_device(name: str, threads: int | None) -> torch.device:
    """Return the device of this name; torch is imported, and set to so many CPU threads, here."""
    import torch

    from fastcifar.kernels import keep_freed_memory
    from fastcifar.training import resolve_device

    if threads:
        torch.set_num_threads(threads)
    device = resolve_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def refuse_absent(options: CommandOptions) -> None:
    """Raise UserError where --dataset names no data set, or a path where there is nothing and --data-dir says no other
    place."""
    name = getattr(options, "dataset", None)
    if name is None:
        return
    find(name)
    if getattr(options, "data_dir", None) is None and is_path(name) and not os.path.exists(name_of(name)):
        raise UserError(f"--dataset is {brief(name)}, which does not exist; allowed: {FORMS}")


def read_fold(text: str, name: str) -> tuple[int, int]:
    """Return the numbers in "1/5". Raises UserError, which begins with `name`, for another text."""
    numbers = text.split("/")
    if len(numbers) == 2 and all(each.isascii() and each.isdigit() and len(each) < 10 for each in numbers):
        number, folds = map(int, numbers)
        if 1 <= number <= folds >= 2:
            return number, folds
    raise UserError(f"{name} is {brief(text)}; allowed: a part and how many there are, as in 1/5 to 5/5")


def describe_images(dataset: Dataset) -> str:
    """Return how many images there are, in words, and the side that they were brought to."""
    parts = {"training": dataset.train, "validation": dataset.val, dataset.tested: dataset.test}
    *first, last = (f"{len(split):,} {name}" for name, split in parts.items() if split is not None)
    sizes = f"{', '.join(first)} and {last} images"
    side = f" brought to {dataset.resized} pixels" if dataset.resized else ""
    return f"{shown(dataset.title)}: {sizes}{side}"


SHARED = {each.name for each in dataclasses.fields(TrainingOptions)} - {"recipe"}
"""Options that an experiment may have as fields too, such as --seed; then the field's default is the option's."""


def own_fields(experiment: type[Experiment[Any]]) -> dict[str, Any]:
    """Return the fields of an experiment that are flags of its own, with their types."""
    hints = type_hints(experiment)
    names = [each.name for each in dataclasses.fields(experiment) if each.name not in SHARED]
    return {name: hints[name] for name in names if hints[name] is not Recipe}


def option_fields(options: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are flags of a command: of an experiment's options no --recipe where its
    recipes are words of their own, and none that changes a recipe where it has no such field."""
    experiment = getattr(options, "experiment", None)
    hidden: set[str] = set(getattr(options, "hidden", ()))
    if experiment is not None and not hasattr(experiment, "recipe"):
        hidden |= {"recipe"} if experiment.recipe_fields() else {"recipe", "network", "optimizer", "settings"}
    return [each for each in dataclasses.fields(options) if each.name not in hidden]
