"""`fastcifar agreement RUN...`: how far runs agree, and what is gained by taking them together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.errors import UserError
from fastcifar.escape import in_markdown, shown
from fastcifar.output import holds_earlier, reserved, user_path, write_whole
from fastcifar.report.figures import Figure, Line, refuse_without_matplotlib, remove_figures
from fastcifar.report.tables import Table, nats, percent, points

if TYPE_CHECKING:
    from fastcifar.report import Summary
    from fastcifar.report.agreement import Agreement, OverPairs
    from fastcifar.report.calibration import Calibration
    from fastcifar.training.predictions import Predictions

RESULT = "result.json"
FIGURES = ("reliability", "ensemble-accuracy", "ensemble-loss", "right")
"""The names of all files of figures, without what says their format."""
_KIND = "agreement"
"""Says in the result which command it is of."""
_SHOWN = 10
"""The hardest images that a table shows; result.json has all."""
_MARKED = 100
"""The most runs for which each number of them has a mark in a figure."""
_FILES = 5
"""The most files that a line names."""
_SAID = 3
"""The most answers that it shows of one."""


@dataclass(frozen=True)
class Options(CommandOptions):
    """Say how far runs agree on the test images: churn, which images are hard, how good and how well calibrated
    ensembles of the runs are.

    What each number is, and where it is from: docs/agreement.md.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")] = ()
    """Two runs or more: folders of fastcifar train, of one run or several, or files of eval --predictions."""
    plain: Switch = False
    """Take the predictions without test-time augmentation."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Write result.json, with all numbers, and table.md to this folder, in place of what an earlier call wrote."""
    plot: Switch = False
    """With --out: draw figures there, of the reliability, the ensembles and how many runs get an image right."""
    json: Switch = False
    """Print a JSON object, with all numbers, and nothing else to standard output."""

    def _check(self) -> None:
        if self.plot and self.out is None:
            raise UserError("--plot is given without --out; allowed: with --out DIR, where the figures go")


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar agreement")
    if not options.runs:
        raise UserError("agreement needs the folders of two runs or more, as in: fastcifar agreement runs/five")
    if options.plot:
        refuse_without_matplotlib()
    out = None if options.out is None else user_path(options.out, "--out")
    with contextlib.nullcontext() if out is None else reserved(out, shared=True):
        return _say(options, out)


def _say(options: Options, out: Path | None) -> int:
    from fastcifar.report.agreement import agreement
    from fastcifar.training.predictions import notice_equal, read_predictions

    holds_ours = out is not None and holds_earlier(out, _KIND, RESULT, lambda earlier: earlier.get("kind") == _KIND)
    read = read_predictions(options.runs, tta=not options.plain)
    if len(read.names) == 1:
        raise UserError(f"{' '.join(read.names)} is the only run; allowed: two runs or more")
    notice_equal(read)
    found = agreement(read.logits, read.labels)
    text = Texts(read, found, options.plain)
    tables, lines = text.tables(), text.lines()
    data = json.dumps({"kind": _KIND, "tta": text.tta, **found.to_json(read.names)}, indent=2, allow_nan=False)
    if out is not None:
        figures = text.figures() if options.plot else {}
        if holds_ours:
            remove_figures(out, [name for name in FIGURES if name not in figures])
        write_whole(out / RESULT, data + "\n")
        body = "\n".join([*(in_markdown(line) + "\n" for line in lines), *(table.markdown() for table in tables)])
        write_whole(out / "table.md", f"# {in_markdown(text.title)}\n\n{body}")
        for name, figure in figures.items():
            figure.save(out / name)
    if options.json:
        print(data)
        return 0
    print(shown(text.title))
    for table in tables:
        table.show()
    print("\n".join([*lines, *([f"{RESULT} and table.md are in {shown(out)}"] if out else [])]))
    return 0


class Texts:
    """What was found, as tables, lines and figures."""

    def __init__(self, read: Predictions, found: Agreement, plain: bool) -> None:
        self.found = found
        pairs = zip(read.names, read.records, strict=True)
        self.without_record = [name for name, record in pairs if record is None]
        records = [record for record in read.records if record is not None and not self.without_record]
        self.dataset = records[0].dataset if records else None
        on = f"{found.images:,} images"
        if self.dataset is not None:
            on = f"{found.images:,} {self.dataset.tested} images of {self.dataset.title}"
        have_tta = {not plain and record.recipe.evaluate.tta != "none" for record in records}
        self.tta = have_tta.pop() if len(have_tta) == 1 else None  # None: not known, or not the same for all
        said = {True: ", with test-time augmentation", False: ", without test-time augmentation", None: ""}
        self.title = f"{found.runs:,} runs on {on}{said[self.tta]}"

    def lines(self) -> list[str]:
        """Return which files are believed to be of the same images, and the counts of images or why there are none."""
        found, counts, files = self.found, self.found.by_all, self.without_record
        others = len(files) - _FILES
        more = [f"{others:,} other{'s' * (others > 1)}"] if others > 0 else []
        lines = [f"labels alone are compared for {', '.join(map(shown, files[:_FILES] + more))}"] if files else []
        if not found.labeled:
            return [*lines, "no image has a label: churn is all that can be said"]
        shares = ", ".join(f"{name} {count:,} ({count / found.labeled:.2%})" for name, count in counts.items())
        few = "" if found.labeled == found.images else f"; {found.labeled:,} images have a label, churn is over all"
        return [*lines, f"images that all, some or none of the runs get right: {shares}{few}"]

    def tables(self) -> list[Table]:
        """Return the tables to show."""
        found = self.found
        pairs = {
            "churn: their answers differ": found.churn,
            "dominance: the less accurate is right and the more accurate one wrong": found.dominance,
            "the same, if they erred independently": found.independent_dominance,
        }
        rows = tuple((name, *_pairs(each)) for name, each in pairs.items() if each is not None)
        count = found.runs * (found.runs - 1) // 2
        heads = ("share of images on which", "mean", "least", "largest")
        tables = [Table(f"Two runs ({count:,} pair{'s' * (count > 1)})", heads, rows)]
        if found.labeled:
            tables += [*self._ensembles(), self._calibration()]
            tables += [self._hardest()] if found.hard else []
        return tables

    def _ensembles(self) -> list[Table]:
        heads = ("members", "subsets", "accuracy", "gain, points", "log-loss", "gain, nats")
        tables = []
        for mean_of, ensembles in self.found.ensembles.items():
            rows = []
            for each in ensembles:
                subsets = f"{'all ' * each.is_exact}{each.subsets:,}"
                scores = percent(each.accuracy), points(each.accuracy_gain)
                rows.append((f"{each.members:,}", subsets, *scores, nats(each.loss), nats(each.loss_gain, "+")))
            title = f"Ensembles by mean {mean_of}; gain over a single run; ± 95% interval over images"
            tables.append(Table(title, heads, tuple(rows)))
        return tables

    def _calibration(self) -> Table:
        named = {"a run (mean)": self.found.mean_calibration}
        named |= {f"all, by mean {mean_of}": each for mean_of, each in self.found.of_ensembles.items()}
        heads = ("predictions", "accuracy", "ECE", "log-loss", "temperature", "ECE with it", "log-loss with it")
        title = "Calibration: 15 bins; each half of the images with the temperature of the other half"
        return Table(title, heads, tuple((name, *_calibrated(each)) for name, each in named.items()))

    def _hardest(self) -> Table:
        rows = []
        for each in self.found.hard[:_SHOWN]:
            said = [f"{self._class(name)} {count:,}" for name, count in each.predicted.items()]
            others = len(said) - _SAID
            more = [f"{others} other{'s' * (others > 1)}"] if others > 0 else []
            rows.append((f"{each.image}", self._class(each.label), f"{each.right:,}", ", ".join(said[:_SAID] + more)))
        title = f"The hardest of {len(self.found.hard):,} images that not all runs get right"
        return Table(title, ("image", "label", "runs right", "answers, with their runs"), tuple(rows))

    def _class(self, number: int) -> str:
        return str(number) if self.dataset is None else self.dataset.classes[number]

    def figures(self) -> dict[str, Figure]:
        """Return the figures to draw, by the names of their files; none where no image has a label."""
        found = self.found
        if found.right is None:
            return {}
        figures = {"reliability": self._reliability()}
        for name, scale, axis in (("accuracy", 100, "accuracy (%)"), ("loss", 1, "log-loss (nats)")):
            lines = []
            for color, (mean_of, scores) in enumerate(found.ensembles.items()):
                values: list[Summary] = [getattr(each, name) for each in scores]
                bounds = [each.interval and (scale * each.interval[0], scale * each.interval[1]) for each in values]
                means = [scale * each.mean for each in values]
                lines.append(Line([each.members for each in scores], means, color, f"mean {mean_of}", intervals=bounds))
            title = f"{self.title}; 95% intervals over images"
            figures[f"ensemble-{name}"] = Figure("members", axis, tuple(lines), title=title)
        shares = [100 * count / found.labeled if count else None for count in found.right.tolist()]
        counts = ", ".join(f"{name} {count:,}" for name, count in found.by_all.items())
        line = Line(range(found.runs + 1), shares, 0, f"images: {counts}", marks=found.runs <= _MARKED)
        axes = "runs that get an image right", "share of images (%)"
        figures["right"] = Figure(*axes, (line,), log_y=True, title=self.title)
        return figures

    def _reliability(self) -> Figure:
        from fastcifar.report.calibration import reliability_figure

        named = {
            "single runs": self.found.mean_calibration,
            "ensemble of all": self.found.of_ensembles["probabilities"],
        }
        return reliability_figure(named, self.title)


def _pairs(found: OverPairs) -> tuple[str, str, str]:
    return f"{found.mean:.2%}", f"{found.least:.2%}", f"{found.largest:.2%}"


def _calibrated(found: Calibration) -> tuple[str, ...]:
    scaled = ("-", "-", "-")
    if found.temperature is not None and found.scaled_ece is not None:
        scaled = f"{found.temperature:.3f}", f"{found.scaled_ece:.2%}", f"{found.scaled_loss:.4f}"
    return f"{found.accuracy:.2%}", f"{found.ece:.2%}", f"{found.loss:.4f}", *scaled
