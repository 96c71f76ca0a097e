"""`fastcifar show augmentations`, `show filters` and `show images`: pictures of what a network sees."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse, parse_with_recipe, quick_train_size
from fastcifar.cli.options import CommandOptions, ImageOptions, TrainingOptions
from fastcifar.cli.saved import run_folder
from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.escape import shown
from fastcifar.output import reserved, short_name, user_path
from fastcifar.recipes import DEFAULT_RECIPE, label
from fastcifar.recipes.declare import setting
from fastcifar.report.figures import refuse_without_matplotlib
from fastcifar.report.grid import spread
from fastcifar.report.mosaic import FORMATS, Mosaic
from fastcifar.screen import fitted

if TYPE_CHECKING:
    from torch import nn

    from fastcifar.data import Dataset, Split

_FILE = arg(aliases=("-o",), metavar="FILE.png|.svg")
_FIRST_EPOCHS = 6
_ACROSS, _CHANNELS = 16, 8
"""Filters in a row, and channels of a filter."""
_MOST_IMAGES = 10_000
"""Images in a picture of classes."""
_ASPECT = 1.4
"""A picture of many classes is about so many times wider than tall."""


@dataclass(frozen=True)
class AugmentationOptions(TrainingOptions):
    """Draw what a recipe's network sees of a few training images: a row for each, and a column for each epoch.

    Crops, flips, cutouts, transforms and mixed images are those of `fastcifar train` with the same flags and seed, at
    each epoch's size. Of epochs that choose images by their losses, which a training alone would tell, they are as if
    the images were among the chosen ones.
    """

    out: Annotated[Path, _FILE] = Path("augmentations.png")
    """The picture; one that is there is replaced."""
    images: Annotated[int, arg(metavar="N")] = setting(6, at_least=1, at_most=1000)
    """Images to draw, of each class in turn."""
    at_epochs: Annotated[
        tuple[int, ...], arg(metavar="E [E ...]", help_behavior_hint=f"(default: the first {_FIRST_EPOCHS})")
    ] = setting((), at_least=1)
    """The epochs to draw, from 1."""
    own: ClassVar[tuple[str, ...]] = ("out",)
    hidden: ClassVar[tuple[str, ...]] = (
        *("device", "threads", "parallel", "runs", "track", "quiet", "json", "synthetic_fallback"),
    )

    def _check(self) -> None:
        super()._check()
        _check_out(self)

    def epochs(self) -> tuple[int, ...]:
        """Return the numbers of the epochs to draw, from 1. Raises UserError for one that there is not."""
        last = math.ceil(self.settings.epochs)
        if any(number > last for number in self.at_epochs):
            raise UserError(f"--at-epochs is {' '.join(map(str, self.at_epochs))}; allowed: 1 to {last}")
        return tuple(sorted({*self.at_epochs})) or tuple(range(1, min(_FIRST_EPOCHS, last) + 1))


@dataclass(frozen=True)
class FilterOptions(CommandOptions):
    """Draw the filters of a convolution of a saved run's network: of one on red, green and blue each filter as a small
    image, of whitening the patches that it looks for; of a deeper one the part of each filter on the input channels
    that it weighs most."""

    run: Annotated[Positional[str], arg(metavar="RUN", help_behavior_hint="")] = ""
    """The folder of the run, or a run whose weights an experiment kept, as in runs/half/warm/seed-0."""
    out: Annotated[Path, _FILE] = Path("filters.png")
    """The picture; one that is there is replaced."""
    layer: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the first convolution)")] = None
    """The convolution, by its name in the network; `fastcifar models show RUN` lists them."""
    filters: Annotated[int, arg(metavar="N")] = setting(64, at_least=1, at_most=4096)
    """Filters to draw at most, those with the largest weights."""
    weights: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: the run's)")] = None
    """Other weights for the run's network, such as those of one of its epochs."""
    member: Annotated[int | None, arg(metavar="M", help_behavior_hint="(default: that of --layer)")] = setting(
        None, at_least=0
    )
    """Of networks that were trained at once (ensemble.members): those of member M, from 0. The first convolution of all
    is member 0's."""

    def _check(self) -> None:
        super()._check()
        _check_out(self)


@dataclass(frozen=True)
class ImagesOptions(ImageOptions):
    """Draw a few images of each class of a data set, with the classes' names."""

    out: Annotated[Path, _FILE] = Path("images.png")
    """The picture; one that is there is replaced."""
    per_class: Annotated[int, arg(metavar="N")] = setting(8, at_least=1, at_most=1000)
    """Images of each class, evenly spread over all that it has."""
    split: Annotated[
        Literal["train", "val", "test"] | None,
        arg(help_behavior_hint="(default: train, or test where that has no images)"),
    ] = None
    """The images to draw from."""

    def _check(self) -> None:
        super()._check()
        _check_out(self)


def augmentations(args: Sequence[str]) -> int:
    """Run `fastcifar show augmentations`."""
    options = parse_with_recipe(
        args, AugmentationOptions, "fastcifar show augmentations", train_size=quick_train_size(args)
    )
    recipe = options.settings
    options = options.resized_for(recipe)
    options.check(recipe)
    options.epochs()
    return _draw(options.out, partial(_augmentations, options))


def filters(args: Sequence[str]) -> int:
    """Run `fastcifar show filters`."""
    options = parse(args, FilterOptions(), "fastcifar show filters")
    if not options.run:
        example = f"fastcifar show filters runs/{DEFAULT_RECIPE}-20250101-120000-0"
        raise UserError(f"show filters needs the folder of a saved run, as in: {example}")
    return _draw(options.out, partial(_filters, options, run_folder(options.run, "RUN")))


def images(args: Sequence[str]) -> int:
    """Run `fastcifar show images`."""
    options = parse(args, ImagesOptions(), "fastcifar show images")
    return _draw(options.out, partial(_images, options))


def _draw(out: Path, picture: Callable[[], Mosaic]) -> int:
    """Draw a picture in a file, which is sure to be written before the picture is made, and say what and where."""
    refuse_without_matplotlib()
    file = user_path(out, "--out")
    with reserved(file.parent, shared=True):
        mosaic = picture()
        mosaic.save(file)
    print(fitted(f"{shown(mosaic.title)}; drawn in {shown(file)}"))
    return 0


def _augmentations(options: AugmentationOptions) -> Mosaic:
    import torch

    from fastcifar.training import Trainer
    from fastcifar.training.seen import images_seen

    recipe, epochs = options.settings, options.epochs()
    dataset = options.load(torch.device("cpu"))
    dataset.require_training_images()
    loading = replace(recipe.loading, workers=0)  # what is drawn does not depend on them
    trainer = Trainer(replace(recipe, loading=loading), dataset, "cpu")
    labels = dataset.train.labels.tolist()
    places = _of_each_class(labels)[: options.images]
    seen = images_seen(trainer, options.seed, places, [number - 1 for number in epochs])
    title = f"{label(recipe)} on {dataset.title}, seed {options.seed}: what the network sees of {len(places)} images"
    chosen = [each.number + 1 for each in trainer.timeline.epochs if each.visits is not None]
    if chosen and chosen[0] <= max(epochs):
        title += f"; from epoch {chosen[0]} on those of highest loss are chosen: here as if these were"
    return Mosaic(
        title,
        rows=list(zip(*(seen[number - 1] for number in epochs), strict=True)),
        names=[f"{dataset.classes[labels[place]]}\nimage {place}" for place in places],
        heads=[f"epoch {number}\n{trainer.timeline.epochs[number - 1].stage.size} pixels" for number in epochs],
        absent="not\nvisited",
    )


def _filters(options: FilterOptions, folder: Path) -> Mosaic:
    from torch import nn

    from fastcifar.training import load_run

    recipe, model, record = load_run(folder, member=options.member, weights=options.weights)
    known = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not known:
        raise UserError(f"the network {recipe.network.kind} has no convolution; allowed: a run of one that has")
    name = next(iter(known)) if options.layer is None else options.layer
    if name not in known:
        raise UserError(f"--layer is {brief(name)}{did_you_mean(name, known)}; allowed: {', '.join(known)}")
    member = "" if options.member is None else f", member {options.member}"
    of = f"{label(recipe)} on {short_name(record.dataset.name)}, seed {record.seed}{member}: {name}"
    return _tiles(known[name], of, options.filters)


def _images(options: ImagesOptions) -> Mosaic:
    import torch

    from fastcifar.data.resize import resized

    dataset = options.as_read()
    split, name = _split(dataset, options.split)
    if (count := len(dataset.classes) * options.per_class) > _MOST_IMAGES:
        said = f"--per-class is {options.per_class}, of {len(dataset.classes):,} classes"
        raise UserError(f"{said}: {count:,} images; allowed: up to {_MOST_IMAGES:,} in all")
    places = []
    for number in range(len(dataset.classes)):
        of_class = (split.labels == number).nonzero().flatten()
        places.append(of_class[torch.tensor(spread(len(of_class), options.per_class), dtype=torch.int64)])
    few, side = split.subset(torch.cat(places)).loaded(torch.device("cpu")).images, options.resize
    if side is not None and few.shape[1:3] != (side, side):
        few = resized(few, side)
    drawn = iter(few.numpy())
    rows = [[next(drawn) for _ in of_class] + [None] * (options.per_class - len(of_class)) for of_class in places]
    cell = 96 if len(rows) <= 20 else 64
    blocks = max(1, round(math.sqrt(_ASPECT * len(rows) / (options.per_class + 1.5))))
    brought = f", brought to {side} pixels" if dataset.resized or few.shape[1:3] != split.image_shape[:2] else ""
    title = f"{dataset.title}, {name}: {options.per_class} images of each of {len(rows)} classes{brought}"
    return Mosaic(title, rows, dataset.classes, cell=cell, blocks=blocks)


def _of_each_class(labels: Sequence[int]) -> list[int]:
    """Return all places, first those of the first image of each class, then of the second, and so on."""
    counts = Counter[int]()
    found = []
    for place, number in enumerate(labels):
        found.append((counts[number], number, place))
        counts[number] += 1
    return [place for *_, place in sorted(found)]


def _tiles(layer: nn.Conv2d, of: str, most: int) -> Mosaic:
    """Return the filters of a convolution as images: gray is 0."""
    import torch

    from fastcifar.models import PatchWhitening

    weight = layer.weight.detach().float().cpu()
    count, channels, height, width = weight.shape
    sizes = weight.flatten(1).norm(dim=1)
    kept = sizes.argsort(descending=True, stable=True)[:most].sort().values
    weight, what, column_of = weight[kept], f"{count} filters", torch.arange(channels).expand(len(kept), -1)
    if isinstance(layer, PatchWhitening):
        weight, what = weight / sizes[kept, None, None, None], f"the patches of {count} filters, each of length 1"
    if len(kept) < count:
        what = f"the {len(kept)} filters of {count} with the largest weights"
    if is_gray := channels != 3:
        column_of = weight.flatten(2).norm(dim=2).argsort(dim=1, descending=True, stable=True)[:, :_CHANNELS]
        weight = weight.gather(1, column_of[:, :, None, None].expand(-1, -1, height, width))
        what += f", each on the {column_of.shape[1]} input channels of {channels} that it weighs most"
    end = max(weight.abs().max().item(), 1e-30)
    pixels = (127.5 + 127.5 * weight / end).round().byte()
    title = f"{of}, {what}, {height} x {width} pixels; gray is 0, the scale from -{end:.3g} to {end:.3g}"
    if is_gray:
        rows = [list(row) for row in pixels[..., None].expand(-1, -1, -1, -1, 3).numpy()]
        notes = [[f"channel {each}" for each in row] for row in column_of.tolist()]
        blocks = max(1, round(math.sqrt(_ASPECT * len(kept) / (_CHANNELS + 1))))
        names = [f"filter {number}" for number in kept.tolist()]
        return Mosaic(title, rows, names, notes=notes, cell=48, blocks=blocks)
    lines = [range(at, min(at + _ACROSS, len(kept))) for at in range(0, len(kept), _ACROSS)]
    tiles, numbers = pixels.permute(0, 2, 3, 1).numpy(), kept.tolist()
    rows, notes = [[tiles[at] for at in line] for line in lines], [[str(numbers[at]) for at in line] for line in lines]
    return Mosaic(title, rows, notes=notes, cell=48)


def _split(dataset: Dataset, name: str | None) -> tuple[Split, str]:
    """Return the images to draw from, and what they are. Raises UserError where there are none with a label."""
    name = name or ("train" if len(dataset.train) else "test")
    split = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[name]
    if split is None or not len(split):
        raise UserError(f"--split is {name}, of which {dataset.title} has no images; allowed: another split")
    what = {"train": "training", "val": "validation", "test": "test"}[name]
    if not split.labeled.any():
        raise UserError(f"the {what} images of {dataset.title} have no labels; allowed: --split with some that have")
    return split, f"{what} images"


def _check_out(options: AugmentationOptions | FilterOptions | ImagesOptions) -> None:
    """Refuse what is no picture's name."""
    file = user_path(options.out, "--out")
    if file.is_dir() or file.suffix.lower() not in FORMATS:
        raise UserError(f"--out is {brief(str(file))}; allowed: a file whose name ends in {' or '.join(FORMATS)}")
