"""What finished trainings came to, in lines for the screen."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastcifar.errors import Notice, UserError
from fastcifar.escape import shown
from fastcifar.experiments import Diverged, Failed
from fastcifar.experiments.result import failure_word
from fastcifar.output import DIAGNOSE, FIGURES
from fastcifar.recipes import label
from fastcifar.record import json_text
from fastcifar.report.plots import draw_runs
from fastcifar.report.runs import Runs, read_runs
from fastcifar.report.statistics import summarize
from fastcifar.report.summary import SUMMARIZED, summary_lines
from fastcifar.report.tables import percent
from fastcifar.screen import Screen, fitted, share

if TYPE_CHECKING:
    from pathlib import Path

    from fastcifar.experiments import Outcome
    from fastcifar.experiments.runner import Progress
    from fastcifar.recipes import Recipe
    from fastcifar.report import Summary
    from fastcifar.training import RunRecord
    from fastcifar.training.profile import StepTrace

_LONGEST = 20
"""Characters of an arm's name in the bar of the runs."""


def stopwatches(record: RunRecord) -> str:
    """Return the three stopwatches, a line each, with what they time; and how long steps waited for images that did not
    lie, or were not changed, on the device, and how many hidden units began again, where the recipe lets any."""
    lines = (
        f"train   {record.train_seconds:8.1f} s  first touch of the images to the last step, without evaluation\n"
        f"time    {record.time_seconds:8.1f} s  train, and the final evaluation\n"
        f"process {record.process_seconds:8.1f} s  start of the process (or end of the run before) to the accuracy"
    )
    if record.waited_seconds is not None:
        part = record.waited_seconds / record.train_seconds
        place = {"host": "host memory"}.get(record.resident, record.resident)
        place = "a DataLoader" if record.recipe.loading.loader == "host" else place
        waited = f"of train ({part:.1%}): steps waited for their images from {place}"
        lines += f"\nimages  {record.waited_seconds:8.1f} s  {waited}"
    if record.units_replaced is not None:
        lines += f"\nunits   {record.units_replaced:8,}    that began again"
    return lines


def phases_table(record: RunRecord) -> str:
    """Return where process_seconds went, a line for each phase, and their sum."""
    total = record.process_seconds
    lines = [f"{name:<22}{seconds:8.2f} s {seconds / total:6.1%}" for name, seconds in record.phases.items()]
    first = record.first_step_seconds
    ended = "" if first is None else f"; its first step ended after {first:.2f} s"
    return "\n".join([*lines, f"{'process':<22}{total:8.2f} s{ended}"])


def trace_lines(trace: StepTrace, path: Path) -> str:
    """Return which steps were traced, their parts, and where the trace is."""
    if trace.steps is None:
        return "no trace: the training is too short for one"
    first, last = trace.steps
    parts = "".join(f"  {name} {seconds * 1e3:.1f} ms" for name, seconds in trace.parts().items())
    return f"steps {first} to {last} are traced in {path}" + (f"; mean of each:{parts}" if parts else "")


def result_line(record: RunRecord, remarks: Sequence[str] = ()) -> str:
    """Return a run in one line, which ends in the `remarks` on what it ran."""
    watches = {"train": record.train_seconds, "time": record.time_seconds, "process": record.process_seconds}
    times = "  ".join(f"{watch} {seconds:.1f} s" for watch, seconds in watches.items())
    scores = record.accuracy, record.tta_accuracy, record.val_accuracy
    best = [f"best epoch {record.best_epoch}"] if record.best_epoch else []
    return "  ".join([_accuracies(record.recipe, *scores), times, *best, *remarks])


def summaries(records: Sequence[RunRecord]) -> dict[str, Summary]:
    """Return `summaries[key]`, keys as in run.json; without accuracies where the test images have no labels."""
    found = {key: Runs("", tuple(records)).summary(key) for key in SUMMARIZED}
    return {key: summary for key, summary in found.items() if summary is not None}


def summary_table(records: Sequence[RunRecord]) -> str:
    """Return mean, standard deviation, n, 95% interval, least and largest of accuracies and times, a line each."""
    return "\n".join(summary_lines(Runs("", tuple(records))))


def summary_line(records: Sequence[RunRecord], remarks: Sequence[str] = ()) -> str:
    """Return many runs of one recipe in one line: the means, and the spread of the accuracy with test-time
    augmentation."""
    recipe, summary = records[0].recipe, summaries(records)
    scores = (summary.get(key) for key in ("accuracy", "tta_accuracy", "val_accuracy"))
    means = _accuracies(recipe, *(None if each is None else each.mean for each in scores))
    headline = summary.get("tta_accuracy", summary.get("val_accuracy"))
    if headline is None:
        return "  ".join([means, f"n={len(records)}", *remarks])
    spread = "n=1, no interval"
    if headline.interval:
        is_val = "tta_accuracy" not in summary
        which = "val " if is_val else "" if recipe.evaluate.tta == "none" else "tta "
        low, high = headline.interval
        spread = f"n={headline.n}  {which}std dev {headline.std:.2%}  95% interval {low:.2%} to {high:.2%}"
    return "  ".join([means, spread, *remarks])


def _accuracies(recipe: Recipe, accuracy: float | None, tta_accuracy: float | None, val_accuracy: float | None) -> str:
    tta = "" if recipe.evaluate.tta == "none" else f" (tta {share(tta_accuracy)})"
    found = [f"{share(accuracy)}{tta}" if accuracy is not None else "no test labels"]
    found += [f"val {share(val_accuracy)}"] if val_accuracy is not None else []
    return "  ".join([label(recipe), *(found if accuracy is not None else reversed(found))])


class Gathered:
    """The accuracies of runs as they finish, by arm, shown on a screen with their running mean; `arms`: each has its
    name there."""

    def __init__(self, show: Screen, arms: bool) -> None:
        self._show, self._arms = show, arms
        self._accuracies: dict[str, list[float]] = {}

    def note(self, progress: Progress) -> str:
        """Move the bar of the runs, and return what those of the last one's arm say so far, if they are several and no
        bar says it."""
        arm, outcome = progress.key.rpartition("/")[0], progress.outcome
        values = self._accuracies.setdefault(arm, [])
        if outcome and not isinstance(outcome, Failed):
            values += [] if outcome.final_accuracy is None else [outcome.final_accuracy]
        is_hidden = self._show.silent and not self._show.draws
        if is_hidden or (progress.kept and progress.done < progress.total):  # of thousands a mean takes its time
            return ""
        of = f"{shown(arm, _LONGEST)} " if self._arms else ""
        summary = summarize(values) if values else None
        said = "" if summary is None else f"{of}mean {percent(summary)}"
        self._show.runs(progress.done, progress.total, said, values, progress.seconds_left)
        if summary is None or summary.interval is None or self._show.shows_bars:
            return ""
        low, high = summary.interval
        return f"{of}mean {summary.mean:.2%}, 95% interval {low:.2%} to {high:.2%}, n={summary.n}"


def drawn_diagnoses(folder: Path, kinds: Sequence[str]) -> str:
    """Draw the figures of the diagnoses in a run's folder, and return a line that says where the files are."""
    from fastcifar.diagnose import diagnosis_file, read_diagnosis

    files = [file for kind in dict.fromkeys(kinds) if (file := diagnosis_file(folder, kind)).is_file()]
    where = f"{' and '.join(file.name for file in files) or 'no diagnosis'} in {folder / DIAGNOSE}"
    try:
        count = sum(len(read_diagnosis(file).draw(file.parent)) for file in files)
    except UserError as error:
        return f"{where}; no figures: {error}"
    return f"{where}, and {count} files of figures" if count else where


def drawn_runs(out: Path) -> str:
    """Draw the figures of the runs in `out`, and return a line that says where they are. What keeps them from being
    drawn is a `Notice`: the runs are saved."""
    try:
        draw_runs(read_runs(out).groups, out / FIGURES)
    except UserError as error:
        warnings.warn(f"no figures: {error}; fastcifar plot {out} draws them", Notice, stacklevel=2)
        return "no figures"
    return f"figures in {out / FIGURES}"


def conclude(
    outcomes: Sequence[Outcome], out: Path, remarks: Sequence[str], several: bool, as_json: bool, show: Screen
) -> None:
    """Print what the run in `out` came to, or all of `several` there."""
    records = [outcome for outcome in outcomes if not isinstance(outcome, Failed)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if as_json:
        runs = [record.to_json() for record in records]
        summary = {key: dataclasses.asdict(value) for key, value in summaries(records).items()}
        counts = {"failed": len(failed), "diverged": sum(isinstance(each, Diverged) for each in failed)}
        print(json_text({"runs": runs, "summary": summary, **counts} if several else runs[0]))
        return
    if failed:
        remarks = [*remarks, f"{len(failed)} of {len(outcomes)} {failure_word(failed)}"]
    show.say()
    if several:
        show.say(summary_table(records))
        show.say(f"saved in {out}")
        print(fitted(summary_line(records, remarks)))
    else:
        show.say(stopwatches(records[0]))
        show.say(f"{records[0].images_per_second:,.0f} images/s; n=1, no interval; saved in {out}")
        print(fitted(result_line(records[0], remarks)))
