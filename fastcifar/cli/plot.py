"""`fastcifar plot`: figures of saved runs. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions
from fastcifar.errors import UserError, brief
from fastcifar.escape import shown
from fastcifar.output import FIGURES, reserved, user_path
from fastcifar.report.figures import FORMATS, refuse_without_matplotlib
from fastcifar.report.plots import draw_runs
from fastcifar.report.runs import read_runs
from fastcifar.screen import fitted


@dataclass(frozen=True)
class Options(CommandOptions):
    """Draw runs: accuracy, losses and learning rate by epoch and by second, the time to accuracies, and of 5 runs or
    more the histogram of their accuracies.

    Runs that differ in the seed alone are drawn together, as their mean and its 95% interval; others, and the runs of
    several folders, over one another, each kind in a color of its own.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN", help_behavior_hint="")] = ()
    """Folders of fastcifar train, of one run or several, or of experiments."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: RUN/figures; of several, plots)")] = (
        None
    )
    """The folder of the figures, as PNG, SVG and PDF; files of the same names are replaced, and others stay."""

    def _check(self) -> None:
        if self.out is not None and (out := user_path(self.out, "--out")).exists() and not out.is_dir():
            raise UserError(f"--out is {brief(str(self.out))}, a file; allowed: a folder, which may be a new one")


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar plot")
    if not options.runs:
        raise UserError("plot needs a folder of runs, as in: fastcifar plot runs/five")
    refuse_without_matplotlib()
    first, *others = options.runs
    usual = Path("plots") if others else user_path(first, "the folder of runs") / FIGURES
    out = usual if options.out is None else user_path(options.out, "--out")
    groups = read_runs(*options.runs).groups
    with reserved(out, shared=True):
        files = draw_runs(groups, out)
    stems = dict.fromkeys(file.stem for file in files)
    print(fitted(f"figures in {shown(out)}, each as {', '.join(FORMATS)}: {', '.join(stems)}"))
    return 0
