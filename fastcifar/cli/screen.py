"""A training on the screen: lines on standard output, a progress bar on standard error where that is a terminal."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fastcifar.errors import Notice, UserError
from fastcifar.escape import shown, shown_lines
from fastcifar.experiments import Diverged, Failed
from fastcifar.experiments.result import failure_word
from fastcifar.output import DIAGNOSE, FIGURES
from fastcifar.recipes import label
from fastcifar.record import json_text
from fastcifar.report.plots import draw_runs
from fastcifar.report.runs import Runs, read_runs
from fastcifar.report.summary import SUMMARIZED, summary_lines

if TYPE_CHECKING:
    from pathlib import Path

    from fastcifar.data import Dataset
    from fastcifar.experiments import Outcome
    from fastcifar.models import Network
    from fastcifar.recipes import Recipe
    from fastcifar.report import Summary
    from fastcifar.training import EpochRow, RunRecord, Trainer
    from fastcifar.training.profile import StepTrace


_TESTED = {"test acc": "test_accuracy"}
"""The heads of columns of accuracies, and their names in an epoch's row."""


class Screen:
    """The lines of a training as they come, unless `silent`, below which a bar shows the steps if `bar`.

    The bar is drawn from the training's own thread, at most four times a second: half a millisecond each, where a
    thread of its own would compete with the training for a core.
    """

    def __init__(self, silent: bool, bar: bool) -> None:
        self.silent = silent
        self._columns: str | None = None
        self._tested = tuple(_TESTED.values())
        self.wants_bar = bar and sys.stderr.isatty()
        self._bar = None
        self._drawn = 0.0

    def say(self, text: str = "") -> None:
        """Print lines (above the bar), at once even where the output is a file; what is no text in them is escaped."""
        if self.silent:
            return
        if self._bar:
            self._bar.stop()  # clears it: standard output may be the same terminal
        print(shown_lines(text), flush=True)
        if self._bar:
            self._bar.start()

    def begin(self, total_steps: int, tested: Mapping[str, str] = _TESTED) -> None:
        """Show an empty bar, and the columns' heads above the first epoch: those of `tested` with the names of the
        accuracies in a row."""
        heads = "".join(f"  {head:>9}" for head in tested)
        self._columns = f"{'epoch':>5}  {'train loss':>10}  {'train acc':>9}{heads}  {'seconds':>9}"
        self._tested = tuple(tested.values())
        if self.wants_bar:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("steps, remaining"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
            )
            self._bar.add_task("", total=total_steps)
            self._bar.start()

    def step(self, step: int, total_steps: int) -> None:
        """Move the bar to `step`; a first step shows it."""
        if not self._bar and self.wants_bar:
            self.begin(total_steps)
        if self._bar:
            now = time.monotonic()
            redraw = now - self._drawn > 0.25
            self._drawn = now if redraw else self._drawn
            self._bar.update(self._bar.task_ids[0], completed=step, refresh=redraw)

    def epoch(self, row: EpochRow) -> None:
        """Say an epoch's row."""
        if self._columns:
            self.say(self._columns)
            self._columns = None
        tested = "".join(f"  {share(getattr(row, name)):>9}" for name in self._tested)
        self.say(f"{row.epoch:5}  {row.train_loss:10.4f}  {row.train_accuracy:9.2%}{tested}  {row.seconds:9.1f}")

    def end(self) -> None:
        """Clear the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def tested(dataset: Dataset) -> dict[str, str]:
    """Return the columns of the accuracies that an epoch is told by, those on images with labels."""
    found = {"held-out" if dataset.holdout else "test acc": "test_accuracy"}
    if dataset.val is not None and dataset.val.label_range[1] >= 0:
        found = (found if dataset.test.label_range[1] >= 0 else {}) | {"val acc": "val_accuracy"}
    return found


def header(trainer: Trainer, seeds: Sequence[int], at_once: int = 1) -> str:
    """Return two lines: the recipe on its data, and how and where it is computed, `at_once` runs at a time."""
    recipe, dataset = trainer.recipe, trainer.dataset
    train_size, test_size = len(dataset.train), len(dataset.test)
    name = "synthetic data, not CIFAR-10" if dataset.name == "synthetic" else shown(dataset.title)
    val = "" if dataset.val is None else f", {len(dataset.val):,} validation"
    tests = f"{dataset.tested} images" + " without labels" * (dataset.test.label_range[1] < 0)
    most = "up to " if recipe.select.keep < 1 or recipe.early_batches else ""
    epochs = f"{recipe.epochs:g} epoch{'s' * (recipe.epochs != 1)} of {most}{trainer.timeline.steps_per_epoch} steps"
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    which += f", {at_once} at once" * (at_once > 1)
    if recipe.freeze != "none":
        which += f", {_frozen(trainer.network, recipe.freeze)}"
    return (
        f"{label(recipe)} on {name}: {train_size:,} training{val}, {test_size:,} {tests}\n"
        f"{epochs} of {recipe.batch_size} images on {_place(trainer, at_once)}, {which}"
    )


def _frozen(network: Network, freeze: str) -> str:
    """Return which layers are frozen from the start: "frozen up to layer1.0.bn2", "frozen all but fc"."""
    from fastcifar.models.freezing import layers_of

    network = getattr(network, "networks", (network,))[0]  # of an ensemble's members each is frozen alike
    if freeze.isdigit():
        return f"frozen up to {[*layers_of(network)][int(freeze) - 1]}"
    return f"frozen all but {network.head}"


def _place(trainer: Trainer, at_once: int) -> str:
    """Return the device, the threads of a run and the compute type: "cpu (2 threads, bfloat16)"."""
    import torch

    dtype = str(trainer.dtype).removeprefix("torch.")
    if trainer.device.type != "cpu":
        return f"{torch.cuda.get_device_name(trainer.device)} ({dtype})"
    threads = max(1, torch.get_num_threads() // at_once)
    return f"cpu ({threads} thread{'s' * (threads > 1)}, {dtype})"


def duration(seconds: float) -> str:
    """Return a length of time to two figures: "40 s", "55 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def share(value: float | None) -> str:
    """Return a fraction in percent, "94.11%"; "-" for none."""
    return "-" if value is None else f"{value:.2%}"


def stopwatches(record: RunRecord) -> str:
    """Return the three stopwatches, a line each, with what they time; and how long steps waited for images that did not
    lie, or were not changed, on the device, and how many hidden units began again, where the recipe lets any."""
    lines = (
        f"train   {record.train_seconds:8.1f} s  first touch of the images to the last step, without evaluation\n"
        f"time    {record.time_seconds:8.1f} s  train, and the final evaluation\n"
        f"process {record.process_seconds:8.1f} s  start of the process (or end of the run before) to the accuracy"
    )
    if record.waited_seconds is not None:
        share = record.waited_seconds / record.train_seconds
        place = {"host": "host memory"}.get(record.resident, record.resident)
        place = "a DataLoader" if record.recipe.loading.loader == "host" else place
        waited = f"of train ({share:.1%}): steps waited for their images from {place}"
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
        print(summary_line(records, remarks))
    else:
        show.say(stopwatches(records[0]))
        show.say(f"{records[0].images_per_second:,.0f} images/s; n=1, no interval; saved in {out}")
        print(result_line(records[0], remarks))
