"""`fastcifar eval RUN_DIR`: the saved network's accuracy, measured again, on other images or on corrupted ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.corruptions import Accuracies, Grid, archive_of, corrupt_of, read_severities, select
from fastcifar.cli.options import Switch
from fastcifar.cli.saved import Saved, SavedOptions, labeled_images, run_folder
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import refuse_unwritable, write_whole
from fastcifar.recipes import DEFAULT_RECIPE, label
from fastcifar.recipes.declare import setting
from fastcifar.record import json_text
from fastcifar.report.by_class import by_class_table
from fastcifar.report.statistics import wilson_interval
from fastcifar.screen import share

if TYPE_CHECKING:
    from fastcifar.by_class import ClassScores
    from fastcifar.data import Dataset, Split
    from fastcifar.training import Evaluation


@dataclass(frozen=True)
class Options(SavedOptions):
    """Evaluate the network of a saved run again, on the images that the run tested on, on those of another data set, or
    on corrupted ones."""

    corrupt: Annotated[str | None, arg(metavar="NAME,NAME|all", help_behavior_hint="(default: none)")] = None
    """Corrupt the images as CIFAR-10-C's are: by name (fog), by kind (noise, blur, weather, digital) or all that
    can be made here. With --on CIFAR-10-C: evaluate on these of its corruptions alone."""
    severity: Annotated[str | None, arg(metavar="S", help_behavior_hint="(default: 1-5)")] = None
    """How strong corruptions are, from 1 to 5, as in 3, 1-5 or 1,3,5."""
    seed: Annotated[int, arg(metavar="N")] = setting(0, at_least=0)
    """Names the random choices of --corrupt."""
    predictions: Annotated[Path | None, arg(metavar="FILE.npz", help_behavior_hint="")] = None
    """Write the logits of all test images and their labels, -1 where there is none, as predictions.npz of a run."""
    by_class: Switch = False
    """Show precision and recall of each class too, and with --json the confusion matrix; of more than 20 classes, those
    with the lowest recall."""
    json: Switch = False
    """Print a JSON object and nothing else to standard output."""

    @property
    def is_shifted(self) -> bool:
        return self.on is not None or self.corrupt is not None

    def _check(self) -> None:
        super()._check()
        self._require("by_class", not (self.by_class and self.corrupt), "without --corrupt")
        is_npz = self.predictions is None or self.predictions.suffix == ".npz"
        self._require("predictions", is_npz, "a file whose name ends in .npz")


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar eval")
    if not options.run_dir:
        raise UserError(
            f"eval needs the folder of a saved run, as in: fastcifar eval runs/{DEFAULT_RECIPE}-20250101-120000-0"
        )
    grid, is_archive = asked(options)
    saved = Saved(options, run_folder(options.run_dir, "RUN_DIR"))
    if not grid:
        return _evaluate(saved)
    return _evaluate_corrupted(saved, Accuracies(grid), is_archive)


def asked(options: Options) -> tuple[Grid, bool]:
    """Return the corruptions that the options ask for, and True if they are those of an archive. Raises UserError for
    options that do not go together."""
    archive = archive_of(options.on)
    grid = select(archive, options.corrupt, read_severities(options.severity or "1-5"))
    for name in ("severity", "seed"):
        if getattr(options, name) and not grid:
            allowed = corrupt_of(options.on, options.severity) or "with --corrupt"
            raise UserError(f"--{name} says how images are corrupted; allowed: {allowed}")
    if archive and options.seed:
        raise UserError(f"--seed is given with --on {options.on}, which is corrupted already; allowed: without it")
    if grid and options.predictions is not None:
        raise UserError("--predictions is given for many corruptions; allowed: without --corrupt, and on one data set")
    if options.predictions is not None:
        refuse_unwritable(options.predictions, "--predictions")
    return grid, bool(archive)


def _evaluate(saved: Saved[Options]) -> int:
    """Evaluate on one set of images, and say it."""
    options, dataset = saved.options, saved.dataset()
    evaluation = saved.score(dataset.test)
    val = None if dataset.val is None else saved.score(dataset.val)
    if options.predictions is not None:
        _save(evaluation, dataset.test, options.predictions)
    same = options.on is None and dataset.sha256 == saved.record.dataset.sha256
    run_accuracy = None if options.on is None else saved.stored
    accuracy = evaluation.accuracy
    difference = None if accuracy is None or run_accuracy is None else accuracy - run_accuracy
    labeled = int(dataset.test.labeled.sum())
    interval = None if accuracy is None else wilson_interval(round(accuracy * labeled), labeled)
    by_class = _by_class(evaluation, dataset.test, val, dataset.val) if options.by_class else None
    stored = saved.stored if same else None
    if options.json:
        result = {
            **saved.facts(dataset.name, dataset.holdout, len(dataset.test)),
            "same_images": same,
            "accuracy": accuracy,
            "stored_accuracy": stored,
            "loss": evaluation.loss,
            "interval": interval,
            "val_accuracy": None if val is None else val.accuracy,
            "run_accuracy": run_accuracy,
            "difference": difference,
        }
        if by_class is not None:
            means = {"precision": by_class.mean_precision, "recall": by_class.mean_recall}
            result |= {**means, "by_class": asdict(by_class)}
        print(json_text(result))
        return 0
    run_said = "" if stored is None else f"; the run said {stored:.2%}"
    if options.on is None and not same:
        run_said = "; other images than the run's, of another sha256"
    print(f"{label(saved.recipe)}  {share(accuracy)} (tta {saved.tta}) on {_described(dataset)}{run_said}")
    if accuracy is None:
        path = options.predictions
        print(
            "no accuracy: they have no labels; " + (f"predictions in {path}" if path else "--predictions saves logits")
        )
    if dataset.val is not None and val is not None and val.accuracy is not None:
        stored = saved.record.val_accuracy if same and saved.tta == "none" and saved.is_own else None
        run_said = "" if stored is None else f"; the run said {stored:.2%}"
        print(f"{share(val.accuracy)} on {len(dataset.val):,} validation images{run_said}")
    if options.on is not None and interval is not None:
        compared = "" if difference is None else f": {100 * difference:+.2f} points"
        print(f"95% interval {interval[0]:.2%} to {interval[1]:.2%}")
        print(f"the run said {share(run_accuracy)} on {saved.own_images()}{compared}")
    if by_class is not None:
        by_class_table(by_class, dataset.classes).show()
    return 0


def _by_class(
    evaluation: Evaluation, test: Split, val_evaluation: Evaluation | None, val: Split | None
) -> ClassScores | None:
    """Return the scores by class of the test images or, where none has a label, of the validation images; None where
    none has one either."""
    from fastcifar.training.run import scores_by_class

    found = scores_by_class(evaluation.logits, test.labels)
    if found is None and val_evaluation is not None and val is not None:
        return scores_by_class(val_evaluation.logits, val.labels)
    return found


def _evaluate_corrupted(saved: Saved[Options], accuracies: Accuracies, is_archive: bool) -> int:
    """Evaluate on each corruption at each severity, and say the table."""
    from fastcifar.corruptions.apply import corrupt
    from fastcifar.data import Split

    options = saved.options
    say = (lambda text: None) if options.json else partial(print, flush=True)
    if is_archive:
        name = next(iter(accuracies.grid))
        word = f"{options.on}:{name}-{accuracies.grid[name][0]}"
        first, _ = labeled_images(saved.other(word))  # refused before a line
        facts, images = saved.facts(str(options.on), 0, len(first)), None
        clean = saved.stored
        said = f"{saved.own_images()}, as the run said"
    else:
        dataset = saved.dataset()
        images, which = labeled_images(dataset)
        images = images.loaded(saved.device)  # all at once: each has random choices of its own
        clean = saved.score(images).accuracy
        facts = saved.facts(dataset.name, dataset.holdout, len(images))
        said = f"{len(images):,} {which} images of {shown(dataset.title)}"
    say(f"{label(saved.recipe)}  {share(clean)} (tta {saved.tta}) on {said}\n")

    def accuracy(name: str, level: int) -> float:
        if images is None:
            split, _ = labeled_images(saved.other(f"{options.on}:{name}-{level}"))
        else:
            split = Split(corrupt(images.images, name, level, options.seed), images.labels)
        found = saved.score(split).accuracy
        assert found is not None  # some image has a label
        return found

    accuracies.measure(accuracy, say)
    for line in accuracies.remarks(is_archive):
        say(line)
    if options.json:
        seed = None if is_archive else options.seed
        print(json.dumps({**facts, "seed": seed, "accuracy": clean, **accuracies.to_json()}, indent=2))
    return 0


def _described(dataset: Dataset) -> str:
    return f"{len(dataset.test):,} {dataset.tested} images of {shown(dataset.title)}"


def _save(evaluation: Evaluation, split: Split, path: Path) -> None:
    """Write the logits and the labels, as a run's folder has them."""
    import numpy as np

    logits, plain_logits = evaluation.logits.numpy(), evaluation.plain_logits.numpy()
    labels = split.labels.cpu().numpy()
    write_whole(path, lambda part: np.savez(part, plain_logits=plain_logits, tta_logits=logits, labels=labels))
