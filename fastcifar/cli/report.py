"""`fastcifar report DIR...`: one page about all runs that are kept below folders."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastcifar.catalogue import find
from fastcifar.cli.arguments import parse
from fastcifar.cli.data_list import sets_here
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.errors import Notice, UserError
from fastcifar.escape import shown
from fastcifar.output import reserved, user_path, write_whole
from fastcifar.report.runs import KeptRuns, Runs, read_runs
from fastcifar.report.summary import row_name

if TYPE_CHECKING:
    import numpy as np

    from fastcifar.record import RunRecord
    from fastcifar.report.answers import Answers, GroupAnswers


@dataclass(frozen=True)
class Options(CommandOptions):
    """Make one page of HTML about the runs that are kept below folders: of `fastcifar train`, one or several, and of
    experiments.

    It holds a table to sort, figures, how recipes differ, where time went, the confusion matrix, the hardest test
    images, calibration, and how to repeat the runs. It is one file that loads nothing: to open from disk, or to send.
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR", help_behavior_hint="")] = ()
    """Folders, each with the runs in all folders below it."""
    out: Annotated[
        Path | None, arg(aliases=["-o"], metavar="FILE.html", help_behavior_hint="(default: report.html in DIR)")
    ] = None
    """The file to write; one that is there is replaced."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds the images; without one they are looked for in the user's cache. Nothing is downloaded."""
    no_images: Switch = False
    """Leave the test images themselves out."""

    def _check(self) -> None:
        if self.out is not None and (self.out.suffix not in (".html", ".htm") or self.out.is_dir()):
            raise UserError(f"--out is {self.out}; allowed: a file whose name ends in .html")


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar report")
    if not options.folders:
        raise UserError("report needs a folder of runs, as in: fastcifar report runs")
    kept = read_runs(*options.folders)
    from fastcifar.report.page import page, refuse_without_packages

    refuse_without_packages()
    folder = user_path(options.folders[0], "the folder of runs")
    out = folder / "report.html" if options.out is None else user_path(options.out, "--out")
    with reserved(out.parent, shared=True):
        write_whole(out, page(kept, *_answers(options, kept), options.folders))
    runs = sum(len(group.records) for group in kept.groups)
    print(f"{runs:,} run{'s' * (runs != 1)}, {out.stat().st_size / 1e6:.1f} MB: {shown(out)}")
    return 0


def _answers(options: Options, kept: KeptRuns) -> tuple[list[Answers], list[str]]:
    """Return what the runs say of the images that they were tested on, each set of images once, and notes on
    predictions that are left out."""
    from fastcifar.report.answers import Answers, GroupAnswers
    from fastcifar.training.predictions import read_predictions, test_images_of

    found: dict[tuple[str, bytes], tuple[RunRecord, np.ndarray, list[GroupAnswers]]] = {}
    notes, count = [], 0
    for runs, files in _files(options.folders, kept.groups):
        record = runs.records[0]
        count += len(files)
        try:
            read = read_predictions(files) if files else None
        except UserError as error:
            notes.append(f"Predictions of {row_name(runs)} are left out: {error}")
            continue
        if read is not None:
            key = json.dumps(test_images_of(record)), read.labels.tobytes()
            *_, groups = found.setdefault(key, (record, read.labels, []))
            groups.append(GroupAnswers.of(row_name(runs), read.logits, read.labels))
    runs = sum(len(group.records) for group in kept.groups)
    if count < runs:
        of_some = f"Images and calibration are of the {count:,} of {runs:,} runs that kept their predictions"
        notes.append(of_some if count else "No run kept its predictions, which hard images and calibration need")
    answers = []
    for record, labels, groups in found.values():
        what = f"{len(labels):,} {record.dataset.tested} images of {record.dataset.title}"
        each = Answers(what, record.dataset.classes, labels, tuple(groups))
        answers.append(_with_images(options, record, each))
    return answers, notes


def _files(folders: Sequence[Path], groups: Sequence[Runs]) -> Iterator[tuple[Runs, list[Path]]]:
    """Give for each group of runs the files of the predictions that they kept."""
    from fastcifar.training.predictions import find_predictions

    known: dict[tuple[str, int], list[tuple[RunRecord, Path]]] = {}
    for folder in folders:
        with contextlib.suppress(UserError), warnings.catch_warnings():  # there may be none, which the page says
            warnings.simplefilter("ignore", Notice)
            for file, (_, record) in find_predictions([folder]).items():
                if record is not None:
                    known.setdefault((record.started, record.seed), []).append((record, file))
    for runs in groups:
        alike = [(record, known.get((record.started, record.seed), ())) for record in runs.records]
        files = [[file for other, file in pairs if other == record] for record, pairs in alike]
        if runs.records:
            yield runs, [each[0] for each in files if each]


def _with_images(options: Options, record: RunRecord, answers: Answers) -> Answers:
    """Return `answers` with the images that the page shows, or with why there are none."""
    from fastcifar.report.page import IMAGES

    if options.no_images:
        return replace(answers, missing="--no-images leaves them out")
    places = {each.image for each in (*answers.hardest(IMAGES), *answers.most_confused(IMAGES))}
    try:
        return replace(answers, images=_images(options, record, answers, sorted(places)))
    except UserError as error:
        return replace(answers, missing=str(error))


def _images(options: Options, record: RunRecord, answers: Answers, places: Sequence[int]) -> dict[int, np.ndarray]:
    """Return the test images at `places`. Raises UserError where they are not at hand."""
    import torch

    from fastcifar.cli.saved import own_images

    name = record.dataset.name
    try:
        entry, _ = find(name)
    except UserError:
        raise UserError(f"{name} is no set that is known here") from None
    is_named = options.data_dir is not None or os.environ.get("FASTCIFAR_DATA")
    if entry.homes and not is_named and name.partition(":")[0] not in sets_here(None):
        raise UserError(f"{name} is not here; --data-dir DIR says where it is")
    test = own_images(record, options.data_dir, None).test
    if test.labels.tolist() != answers.labels.tolist():
        raise UserError(f"{name} as it is here has other test images than the runs had")
    few = test.subset(torch.tensor(places, device=test.device)).loaded(torch.device("cpu"))
    return dict(zip(places, few.images.numpy(), strict=True))
