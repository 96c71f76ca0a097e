"""`fastcifar report DIR...`: one page about all runs that are kept below folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastcifar.catalogue import find
from fastcifar.cli.arguments import parse
from fastcifar.cli.data_list import sets_here
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import open_at_once, reserved, user_path, write_whole
from fastcifar.report.runs import KeptRuns, read_runs
from fastcifar.report.summary import row_names

if TYPE_CHECKING:
    import numpy as np

    from fastcifar.record import RunRecord
    from fastcifar.report.answers import Answers, GroupAnswers


_BEGINNING = 2**12
"""Bytes of a file that say whether it is a page of ours."""


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
    """The file to write; one that is there is replaced, report.html in DIR only if it is such a page."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds the images; without one they are looked for in the user's cache. Nothing is downloaded."""
    no_images: Switch = False
    """Leave the test images themselves out."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar report")
    if not options.folders:
        raise UserError("report needs a folder of runs, as in: fastcifar report runs")
    if options.out is not None:
        _refuse_place(options.out)
    kept = read_runs(*options.folders)
    from fastcifar.report.page import page, refuse_without_packages

    refuse_without_packages()
    out = _own_page(options.folders[0]) if options.out is None else user_path(options.out, "--out")
    with reserved(out.parent, shared=True):
        write_whole(out, page(kept, *_answers(options, kept), options.folders))
    runs = sum(len(group.records) for group in kept.groups)
    print(f"{runs:,} run{'s' * (runs != 1)}, {out.stat().st_size / 1e6:.1f} MB: {shown(out)}")
    return 0


def _refuse_place(given: Path) -> None:
    """Raise UserError for a file that is no place for a page."""
    out = user_path(given, "--out")
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise UserError(f"--out is {given}; allowed: a file whose name ends in .html")
    if file := next((each for each in out.parents if each.exists() and not each.is_dir()), None):
        raise UserError(f"--out is {given}, and {file} is a file; allowed: a file in a folder, old or new")


def _own_page(given: Path) -> Path:
    """Return report.html in a folder. Raises UserError where there is one that is no page of ours."""
    from fastcifar.report.page import MARK

    out = user_path(given, "the folder of runs") / "report.html"
    try:
        with open_at_once(out) as file:
            is_ours = MARK.encode() in file.read(_BEGINNING)
    except FileNotFoundError:
        is_ours = True
    except OSError:  # a folder, or what may not be read
        is_ours = False
    if not is_ours:
        raise UserError(f"{out} is there, and no page of fastcifar report; allowed: -o FILE.html, which is replaced")
    return out


def _answers(options: Options, kept: KeptRuns) -> tuple[list[Answers], list[str]]:
    """Return what the runs say of the images that they were tested on, each set of images once, and a note on runs of
    which there are no predictions."""
    from fastcifar.report.answers import Answers, GroupAnswers
    from fastcifar.training.predictions import predictions_file, read_run, test_images_of

    named = [pair for pair in zip(row_names(kept.groups), kept.groups, strict=True) if pair[1].records]
    found: dict[tuple[str, bytes], tuple[RunRecord, np.ndarray, dict[str, GroupAnswers]]] = {}
    damaged, none = [], 0
    for color, (name, runs) in enumerate(named):
        for record, folder in zip(runs.records, runs.folders, strict=True):
            if not os.path.exists(predictions_file(folder)):  # unlike Path's, False where it may not be asked
                none += 1
                continue
            try:
                logits, labels = read_run(folder, record)
            except UserError as error:
                damaged.append(str(error))
                continue
            key = json.dumps(test_images_of(record)), labels.tobytes()
            *_, groups = found.setdefault(key, (record, labels, {}))
            one = GroupAnswers.of(name, color, logits, labels)
            groups[name] = groups[name] + one if name in groups else one
    answers = []
    for record, labels, groups in found.values():
        what = f"{len(labels):,} {record.dataset.tested} images of {record.dataset.title}"
        each = Answers(what, record.dataset.classes, labels, tuple(groups.values()))
        answers.append(_with_images(options, record, each))
    why = [f"{none:,} kept no predictions"] if none else []
    why += [f"those of {len(damaged):,} cannot be read ({damaged[0]})"] if damaged else []
    every = sum(len(runs.records) for _, runs in named)
    of = f"Images and calibration are of {every - none - len(damaged):,} of {every:,} runs"
    return answers, [f"{of}: {', '.join(why)}"] if why else []


def _with_images(options: Options, record: RunRecord, answers: Answers) -> Answers:
    """Return `answers` with the images that the page shows, or with why there are none."""
    from fastcifar.report.page import IMAGES

    if options.no_images:
        return replace(answers, missing="--no-images leaves them out")
    places = {each.image for each in (*answers.hardest(IMAGES), *answers.most_confused(IMAGES))}
    if not places:  # no image has a label
        return answers
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
