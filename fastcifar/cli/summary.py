"""`fastcifar summary DIR`: what all runs that are kept below a folder say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.errors import UserError
from fastcifar.recipes.declare import setting
from fastcifar.report.runs import read_runs
from fastcifar.report.summary import heading, summary_data, summary_lines, summary_tables
from fastcifar.screen import fitted


@dataclass(frozen=True)
class Options(CommandOptions):
    """Summarize the runs that are kept below folders: of `fastcifar train`, one or several, and of experiments.

    Says mean, standard deviation, 95% interval, least and largest, and how many runs failed. Runs are taken together
    that differ in the seed alone; others (recipe, data, start, device, version of torch) have a row of their own. With
    --target it also says which share of the runs reached it, and tests whether their mean is above it: the rule of the
    CIFAR-10 speedruns is --target 0.94.
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR", help_behavior_hint="")] = ()
    """Folders, each with the runs in all folders below it."""
    target: Annotated[float | None, arg(metavar="T", help_behavior_hint="(default: none)")] = setting(
        None, above=0, at_most=1
    )
    """An accuracy to compare with, a fraction."""
    metric: Literal["tta-accuracy", "accuracy", "val-accuracy", "precision", "recall"] = "tta-accuracy"
    """The accuracy that is compared: with the recipe's test-time augmentation, without, or on the validation split; or
    the mean of the classes' precision or recall, without."""
    json: Switch = False
    """Print a JSON object and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar summary")
    if not options.folders:
        raise UserError("summary needs a folder of runs, as in: fastcifar summary runs")
    kept, metric = read_runs(*options.folders), options.metric.replace("-", "_")
    if options.json:
        print(json.dumps(summary_data(kept, options.target, metric), indent=2))
        return 0
    lines = []
    if len(kept.groups) == 1:
        (runs,) = kept.groups
        lines += [heading(runs), *summary_lines(runs, options.target, metric)]
    else:
        for table in summary_tables(kept.groups, options.target, metric):
            table.show()
    for count, what in ((kept.unreadable, "unreadable"), (kept.unfinished, "unfinished")):
        if count:
            lines.append(f"{count} {what}, left out")
    print(fitted("\n".join(lines)))
    return 0
