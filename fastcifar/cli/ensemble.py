"""`fastcifar ensemble RUN RUN...`: saved runs, of any recipes, taken together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fastcifar.cli import evaluate
from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.errors import UserError
from fastcifar.output import RECORD, run_files, user_path
from fastcifar.report.tables import Table

if TYPE_CHECKING:
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
    options = parse(args, Options(), "fastcifar ensemble RUN RUN...")
    from fastcifar.report.combined import HEADS, MEANS, combine, member_rows

    read = _read(options)
    if len(read.names) == 1:
        raise UserError(f"{read.names[0]} is the only network; allowed: two or more")
    if not (read.labels >= 0).any():
        raise UserError("no test image has a label, so no accuracies; allowed: runs on images with labels")
    found = {mean_of: combine(read.logits, read.labels, mean_of) for mean_of in MEANS}
    if options.json:
        scores = {mean_of: dataclasses.asdict(each) for mean_of, each in found.items()}
        data = {"kind": "ensemble", "plain": options.plain, "runs": read.names, "images": len(read.labels), **scores}
        print(json.dumps(data, indent=2, allow_nan=False))
        return 0
    rows = member_rows(read.names, read.logits, read.labels)
    which = "without test-time augmentation" if options.plain else "with each recipe's test-time augmentation"
    Table(f"{len(rows)} members, {which}", ("member", "accuracy", "log-loss"), rows).show()
    rows = tuple((f"mean {mean_of}", *each.cells) for mean_of, each in found.items())
    Table(f"Together, on {len(read.labels):,} images (± 95% interval over images)", ("by", *HEADS), rows).show()
    return 0


def _read(options: Options) -> Predictions:
    """Return the predictions of all runs, evaluated where none are kept."""
    from fastcifar.training.predictions import read_predictions

    with tempfile.TemporaryDirectory() as temporary:
        paths, named = [], {}
        for number, path in enumerate(options.runs):
            place = user_path(path, "RUN")
            paths.append(place)
            if run := _to_evaluate(place):
                paths[-1] = Path(temporary) / str(number)
                named[str(paths[-1])] = str(path)
                _evaluate(options, run, paths[-1])
        read = read_predictions(paths, tta=not options.plain)
        names = [(*name.rpartition("#"),) if "#" in name else (name, "", "") for name in read.names]
        return dataclasses.replace(read, names=tuple("".join((named.get(run, run), *rest)) for run, *rest in names))


def _to_evaluate(path: Path) -> tuple[Path, Path | None] | None:
    """Return the run and, where they are not its own, the weights that `path` names and no predictions are kept of;
    None for anything else."""
    from fastcifar.training.predictions import has_predictions

    if has_predictions(path):
        return None
    record, weights = run_files(path)
    if record.is_file():
        return (path, None) if weights.is_file() else None
    above = [path.parent, path.parent.parent] if path.is_file() else []
    run = next((folder for folder in above if (folder / RECORD).is_file()), None)
    return run and (run, path)


def _evaluate(options: Options, run: tuple[Path, Path | None], out: Path) -> None:
    """Evaluate a run, and each network that answers on its own in it, and write record and predictions to `out`."""
    import numpy as np

    from fastcifar.training.run import MEMBER, PREDICTIONS

    folder, weights = run
    asked = evaluate.Options(
        run_dir=str(folder),
        weights=None if weights is None else os.fspath(weights),
        data_dir=options.data_dir,
        device=options.device,
    )
    saved = evaluate.Saved(asked, evaluate.run_folder(asked.run_dir, "RUN"))
    test = saved.dataset().test
    arrays: dict[str, Any] = {"labels": test.labels.cpu().numpy()}
    members, config = [], saved.recipe.ensemble
    if config.members > 1 and config.joint != "shared" and weights is None:
        each = (dataclasses.replace(asked, member=member) for member in range(config.members))
        members = [evaluate.Saved(one, saved.folder).score(test) for one in each]
    whole = saved.score(test)
    for name, attribute in (("plain_logits", "plain_logits"), ("tta_logits", "logits")):
        arrays[name] = getattr(whole, attribute).numpy()
        if members:
            arrays[f"{MEMBER}{name}"] = np.stack([getattr(found, attribute).numpy() for found in members])
    out.mkdir()
    shutil.copyfile(run_files(saved.folder)[0], out / RECORD)
    np.savez(out / PREDICTIONS, **arrays)
