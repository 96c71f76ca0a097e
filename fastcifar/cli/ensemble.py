"""`fastcifar ensemble RUN RUN...`: saved runs, of any recipes, taken together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fastcifar.cli import evaluate
from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.errors import Notice, UserError
from fastcifar.output import RECORD, made, run_files, temporary_folder, user_path, write_all
from fastcifar.report.tables import Table

if TYPE_CHECKING:
    from fastcifar.record import RunRecord
    from fastcifar.training.predictions import Predictions


@dataclass(frozen=True)
class Options(CommandOptions):
    """Take saved runs together, of any recipes with the same test images and classes: what the ensemble gains in
    accuracy and log-loss over the mean of its members, by the mean of their probabilities and of their logits.

    Predictions that a run kept are used; where there are none its network is evaluated, as fastcifar eval does.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")] = ()
    """Two networks or more: folders of runs, or of several; weights in a run's folder, such as those of an epoch; runs
    that an experiment kept, as in runs/half/warm/seed-0; files of eval --predictions. Of networks that were trained at
    once in a run each is one."""
    plain: Switch = False
    """Take the predictions without test-time augmentation."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds the images, where a network is evaluated."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to evaluate on; auto: a GPU if there is one."""
    json: Switch = False
    """Print a JSON object and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    prog = "fastcifar ensemble RUN RUN..."
    options = parse(args, Options(), prog, usage=prog)
    from fastcifar.report.agreement import churn
    from fastcifar.report.combined import HEADS, combine, member_rows
    from fastcifar.report.ensembles import MEANS
    from fastcifar.training.predictions import notice_equal

    read = _read(options)
    if len(read.names) == 1:
        raise UserError(_only(read.names[0]))
    if not (read.labels >= 0).any():
        raise UserError("no test image has a label, so no accuracies; allowed: runs on images with labels")
    notice_equal(read)
    differ = churn(read.logits.argmax(2), read.logits.shape[2])
    found = {mean_of: combine(read.logits, read.labels, mean_of) for mean_of in MEANS}
    if options.json:
        scores = {mean_of: dataclasses.asdict(each) for mean_of, each in found.items()}
        data = {"kind": "ensemble", "plain": options.plain, "runs": read.names, "images": len(read.labels)}
        print(json.dumps({**data, **scores, "churn": dataclasses.asdict(differ)}, indent=2, allow_nan=False))
        return 0
    rows = member_rows(read.names, read.logits, read.labels)
    augmented = [record is None or record.recipe.evaluate.tta != "none" for record in read.records]
    which = "with each recipe's" if any(augmented) and not options.plain else "without"
    Table(f"{len(rows)} members, {which} test-time augmentation", ("member", "accuracy", "log-loss"), rows).show()
    rows = tuple((f"mean {mean_of}", *each.cells, f"{differ.mean:.2%}") for mean_of, each in found.items())
    Table(
        f"Together, on {len(read.labels):,} images (± 95% interval over images)", ("by", *HEADS, "members differ"), rows
    ).show()
    return 0


def _only(name: str) -> str:
    return f"{name} is the only network; allowed: two or more"


@dataclass(frozen=True)
class _Run:
    """A run without predictions, or other weights of a run, to be evaluated."""

    word: Path
    folder: Path
    weights: Path
    record: RunRecord

    @property
    def members(self) -> int:
        """Networks that answer on their own."""
        config = self.record.recipe.ensemble
        return 1 if config.joint == "shared" else config.members


def _read(options: Options) -> Predictions:
    """Return the predictions of all runs, evaluated where none are kept; what their records refuse is refused before
    the first evaluation."""
    from fastcifar.training.predictions import read_predictions

    found = _resolve([user_path(path, "RUN") for path in options.runs])
    with temporary_folder() as temporary:
        paths, named = [], {}
        for number, each in enumerate(found):
            paths.append(each if isinstance(each, Path) else temporary / str(number))
            if isinstance(each, _Run):
                _evaluate(options, each, paths[-1])
                named[str(paths[-1])] = str(each.word)
        read = read_predictions(paths, tta=not options.plain)
    return dataclasses.replace(read, names=tuple(_renamed(name, named) for name in read.names))


def _renamed(name: str, named: Mapping[str, str]) -> str:
    """Return the name of a network whose run is `named`, with the number of a member where it has one."""
    run, _, member = name.rpartition("#")
    return named.get(name) or (f"{named[run]}#{member}" if run in named else name)


def _resolve(paths: Sequence[Path]) -> list[Path | _Run]:
    """Return what `paths` name, a run or weights to be evaluated once. Raises UserError where there is nothing, for
    other test images or classes, and for a single network."""
    from fastcifar.training.predictions import find_predictions, refuse_other_images

    found: dict[Path, Path | _Run] = {}
    known: dict[Path, tuple[str, RunRecord | None]] = {}
    for path in paths:
        each = _find(path)
        if isinstance(each, _Run):
            key = each.weights.resolve()
            known.setdefault(key, (str(path), each.record))
        else:
            key = each.resolve()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Notice)  # which read_predictions gives
                known = {**known, **find_predictions([each])}
        found.setdefault(key, each)
    names, records = zip(*known.values(), strict=True)
    refuse_other_images(names, records)
    if len(known) == 1 and all(isinstance(each, _Run) and each.members == 1 for each in found.values()):
        raise UserError(_only(names[0]))
    return list(found.values())


def _find(path: Path) -> Path | _Run:
    """Return the run, or the weights of one, that `path` names and no predictions are kept of; of anything else the
    path, and the run's for its own weights."""
    from fastcifar.training.predictions import has_predictions, read_record
    from fastcifar.training.run import PREDICTIONS

    if has_predictions(path):
        return path
    record, weights = run_files(path)
    if record.is_file():
        return _Run(path, path, weights, read_record(record)) if weights.is_file() else path
    above = [path.parent, path.parent.parent] if path.is_file() else []
    run = next((folder for folder in above if (folder / RECORD).is_file()), None)
    if run is None:
        return path
    record, weights = run_files(run)
    is_own = path.resolve() == weights.resolve()
    return run if is_own and (run / PREDICTIONS).is_file() else _Run(path, run, path, read_record(record))


def _evaluate(options: Options, run: _Run, out: Path) -> None:
    """Evaluate a run, and each network that answers on its own in it, and write record and predictions to `out`."""
    import numpy as np

    from fastcifar.training.run import MEMBER, PREDICTIONS

    record, own = run_files(run.folder)
    asked = evaluate.Options(
        run_dir=str(run.folder),
        weights=None if run.weights == own else os.fspath(run.weights),
        data_dir=options.data_dir,
        device=options.device,
    )
    saved = evaluate.Saved(asked, run.folder)
    test = saved.dataset().test
    arrays: dict[str, Any] = {"labels": test.labels.cpu().numpy()}
    members = []
    if run.members > 1:
        each = (dataclasses.replace(asked, member=member) for member in range(run.members))
        members = [evaluate.Saved(one, run.folder).score(test) for one in each]
    whole = saved.score(test)
    for name, attribute in (("plain_logits", "plain_logits"), ("tta_logits", "logits")):
        arrays[name] = getattr(whole, attribute).numpy()
        if members:
            arrays[f"{MEMBER}{name}"] = np.stack([getattr(found, attribute).numpy() for found in members])
    with made(out):
        write_all(out, {RECORD: partial(shutil.copyfile, record), PREDICTIONS: lambda path: np.savez(path, **arrays)})
