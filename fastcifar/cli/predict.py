"""`fastcifar predict RUN_DIR`: what a saved network takes images for, as a file to submit and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import Switch, flag_of
from fastcifar.cli.saved import Saved, SavedOptions, run_folder
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import refuse_unwritable, write_whole
from fastcifar.recipes import DEFAULT_RECIPE, label
from fastcifar.recipes.declare import setting
from fastcifar.report.figures import refuse_without_matplotlib
from fastcifar.report.grid import save_grid, spread
from fastcifar.screen import share

if TYPE_CHECKING:
    import torch

    from fastcifar.data import Split


@dataclass(frozen=True)
class Options(SavedOptions):
    """Write what a saved run's network takes images for: the run's test images or those of --on, with labels or
    without, also a folder of images alone. Files that are there are replaced."""

    tta: Annotated[Literal["none", "flip", "flip-crop"] | None, arg(help_behavior_hint="(default: the run's)")] = None
    """Test-time augmentation: none, or the mean logits of each image and its mirror image, or of these and shifted
    ones."""
    csv: Annotated[Path | None, arg(metavar="FILE.csv", help_behavior_hint="")] = None
    """Write a line for each image: its number (Id) and its predicted class (Category)."""
    grid: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Draw 20 of the images, evenly spread over all, with their true and predicted classes."""
    names: Switch = False
    """Names of classes in --csv, not numbers from 0."""
    probabilities: Switch = False
    """The probability of each class as further columns of --csv."""
    first_id: Annotated[int, arg(metavar="N")] = setting(0, at_least=0)
    """The Id of the first image."""

    @property
    def is_shifted(self) -> bool:
        return False

    def _check(self) -> None:
        super()._check()
        for name, ending in (("csv", ".csv"), ("grid", ".png")):
            path: Path | None = getattr(self, name)
            if path is not None:
                self._require(name, path.suffix == ending, f"a file whose name ends in {ending}")
                refuse_unwritable(path, flag_of(name))
        for name in ("names", "probabilities", "first_id"):
            if getattr(self, name) and self.csv is None:
                raise UserError(f"{flag_of(name)} says what --csv holds; allowed: with --csv FILE.csv")


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar predict")
    if not options.run_dir:
        example = f"fastcifar predict runs/{DEFAULT_RECIPE}-20250101-120000-0 --csv submission.csv"
        raise UserError(f"predict needs the folder of a saved run, as in: {example}")
    if options.csv is None and options.grid is None:
        raise UserError("predict has nothing to write; allowed: --csv FILE.csv, --grid FILE.png, or both")
    if options.grid is not None:
        refuse_without_matplotlib()
    saved = Saved(options, run_folder(options.run_dir, "RUN_DIR"))
    dataset = saved.dataset()
    if options.names:
        for name in dataset.classes:
            _refuse_no_text(name)
    evaluation = saved.score(dataset.test)
    predicted = evaluation.logits.argmax(1)
    if options.csv is not None:
        write_whole(options.csv, submission(options, evaluation.logits, dataset.classes))
    if options.grid is not None:
        _draw(options.grid, dataset.test, predicted, dataset.classes)
    what = f"{len(predicted):,} {dataset.tested} images of {shown(dataset.title)}"
    right = "no labels" if evaluation.accuracy is None else f"{share(evaluation.accuracy)} right"
    files = " and ".join(str(path) for path in (options.csv, options.grid) if path is not None)
    print(f"{label(saved.recipe)}  {what} (tta {saved.tta}), {right}; written to {shown(files)}")
    return 0


def _refuse_no_text(name: str) -> None:
    """Raise UserError for a class called by bytes that are no text, as a folder's name may be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"--names: class {name!r} is no UTF-8; allowed: classes whose names are") from None


def submission(options: Options, logits: torch.Tensor, classes: Sequence[str]) -> str:
    """Return the lines of --csv for logits `[N, classes]`."""
    words = list(classes) if options.names else [str(number) for number in range(len(classes))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Id", "Category", *(words if options.probabilities else [])])
    shares = logits.softmax(1).tolist() if options.probabilities else [[]] * len(logits)
    for number, (taken, row) in enumerate(zip(logits.argmax(1).tolist(), shares, strict=True)):
        writer.writerow([options.first_id + number, words[taken], *(f"{each:.6g}" for each in row)])
    return text.getvalue()


def _draw(file: Path, split: Split, predicted: torch.Tensor, classes: Sequence[str]) -> None:
    import torch

    places = spread(len(predicted))
    few = split.subset(torch.tensor(places, device=split.device)).loaded(torch.device("cpu"))
    save_grid(file, few.images.numpy(), few.labels.tolist(), predicted[places].tolist(), classes)
