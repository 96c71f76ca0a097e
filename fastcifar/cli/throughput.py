"""`fastcifar throughput`: images per second and memory of a recipe's training step, by batch size."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from fastcifar.cli.arguments import parse_with_recipe
from fastcifar.cli.options import FormOptions, Switch, start_device
from fastcifar.errors import UserError, brief
from fastcifar.escape import shown
from fastcifar.machine import GIB, UNITS, size_words
from fastcifar.output import reserved, write_all
from fastcifar.recipes import label
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, Table
from fastcifar.report.figures import refuse_without_matplotlib
from fastcifar.screen import Screen

if TYPE_CHECKING:
    from fastcifar.costs.throughput import Size, Throughput

PROG = "fastcifar throughput"
_MEMORY = "(default: a GPU's; on a CPU half of what is free)"


@dataclass(frozen=True)
class Options(FormOptions):
    """Measure a recipe's training step at batch sizes 1, 2, 4, ... until one does not fit into memory.

    For each: images per second, the median of five groups of steps, and the memory that it takes at most. Images are
    random: no data is read but that of a path in --dataset. Running out of memory is the end of the curve, and no
    failure.
    """

    from_: Annotated[int, arg(name="from", metavar="N")] = setting(1, at_least=1, unit="images")
    """The first batch size; each next one is twice as large."""
    to: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: what fits)")] = setting(
        None, at_least=1, unit="images"
    )
    """The largest batch size to try."""
    largest: Switch = False
    """Find the largest batch size that fits, to within 1%, by bisection."""
    memory: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint=_MEMORY)] = None
    """Memory that a size may take, as in 4GiB; what would take more counts as too large."""
    steps: Annotated[int, arg(metavar="N")] = setting(20, at_least=2, at_most=100_000)
    """Steps of each of the five groups, fewer where they would take over 2 seconds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to measure; auto: a GPU if there is one."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: torch's)")] = setting(
        None, at_least=1, at_most=1024
    )
    """CPU threads."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """A new folder for result.json and table.md."""
    plot: Switch = False
    """Draw images per second and memory by batch size there (needs the extra plot)."""
    json: Switch = False
    """Print the result as JSON and nothing else to standard output."""

    def _check(self) -> None:
        super()._check()
        self._require("to", self.to is None or self.to >= self.from_, f"--from, {self.from_}, or more")
        self._require("plot", not self.plot or self.out is not None, "with --out DIR, where figures are saved")
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int | None:
        """The bytes in --memory. Raises UserError for another text."""
        if self.memory is None:
            return None
        read = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,9}})?) ?({'|'.join(UNITS)})", self.memory)
        size = int(float(read[1]) * UNITS[read[2]]) if read else 0
        if not size:
            allowed = "a number above 0 and its unit: B, KiB, MiB, GiB or TiB, as in 4GiB"
            raise UserError(f"--memory is {brief(self.memory)}; allowed: {allowed}")
        return size


def main(args: Sequence[str]) -> int:
    options = parse_with_recipe(args, Options, PROG, shorten=None)
    if options.plot:
        refuse_without_matplotlib()
    classes, side, _ = options.form()
    options.settings.refuse_side(side)
    screen = Screen(options.json, bar=False)
    place: AbstractContextManager[Any] = reserved(options.out) if options.out else contextlib.nullcontext()
    with place:
        device = start_device(options.device, options.threads)

        from fastcifar.costs.throughput import Throughput

        how = {"memory": options.memory_bytes, "steps": options.steps}
        found = Throughput(options.settings, device, classes=classes, side=side, **how)
        room = f", up to {size_words(found.memory)}" if found.memory else ""
        screen.say(f"{_title(found)}{room}")
        for size in found.measure(options.from_, options.to):
            batch, rate, *_, memory = _cells(size)
            screen.say(f"batch size {batch:>9}  {rate:>11} images/s  {memory:>11}")
        largest = found.largest() if options.largest else None
        result = {**found.describe(), "largest": largest}
        table, remarks = _table(found), _remarks(found, largest)
        if options.out:
            text = table.markdown() + "".join(f"\n{shown(line)}\n" for line in remarks)
            files = {"table.md": text, "result.json": json.dumps(result, indent=2) + "\n"}
            write_all(options.out, files)
            for name, figure in _figures(found).items() if options.plot and found.sizes else ():
                figure.save(options.out / name)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    table.show()
    print("\n".join(map(shown, remarks)))
    return 0


def _title(found: Throughput) -> str:
    """Return what is measured, and on what."""
    threads = f" ({found.facts.threads} threads)" if found.facts.threads else ""
    return f"{label(found.recipe)}, {found.side} x {found.side} pixels, {found.facts.name}{threads}"


def _table(found: Throughput) -> Table:
    columns = ("batch size", "images/s", "least to most", "n", "ms a step", "memory")
    types = "/".join(dict.fromkeys(size.dtype for size in found.sizes))
    return Table(f"Training steps: {_title(found)}, {types}", columns, tuple(map(_cells, found.sizes)))


def _cells(size: Size) -> tuple[str, ...]:
    rates, n = sorted(size.rates), f"{len(size.rates)} x {size.steps}"
    spread, step = f"{rates[0]:,.0f} to {rates[-1]:,.0f}", 1000 * size.batch_size / size.rate
    memory = f"{size.memory / UNITS['MiB']:,.0f} MiB"
    return f"{size.batch_size:,}", f"{size.rate:,.0f}", spread, n, f"{step:,.2f}", memory


def _remarks(found: Throughput, largest: tuple[int, int] | None) -> list[str]:
    """Return what else a reader of the table must know."""
    lines = [f"images/s: the median of n groups of steps, n x steps; memory: {found.memory_is}, at most"]
    reasons = dict.fromkeys(size.not_captured for size in found.sizes)
    if found.device.type == "cuda":
        lines += [f"not replayed from a CUDA graph: {reason}" for reason in reasons if reason]
    if found.left_out:
        sizes, reason = ", ".join(map(str, found.left_out)), next(iter(found.left_out.values()))
        lines.append(f"left out: {sizes} ({reason})")
    if found.sizes:
        best = max(found.sizes, key=lambda size: size.rate)
        lines.append(f"fastest: {best.rate:,.0f} images/s at batch size {best.batch_size:,}")
    if found.ended:
        lines.append(f"ended: {found.ended}")
    if largest:
        fits, fits_not = largest
        lines.append(f"largest batch size that fits: {fits:,} ({fits_not:,} does not)")
    return lines


def _figures(found: Throughput) -> dict[str, Figure]:
    """Return images per second and memory by batch size."""
    x, n = [size.batch_size for size in found.sizes], max((len(size.seconds) for size in found.sizes), default=0)
    ends = [(min(size.rates), max(size.rates)) for size in found.sizes]
    rates = Line(x, [size.rate for size in found.sizes], 0, "median, least to most", intervals=ends)
    memory = Line(x, [size.memory / GIB for size in found.sizes], 1, found.memory_is)
    how = {"log": True, "title": f"{_title(found)}, n={n} groups of steps"}
    return {
        "throughput": Figure("batch size", "images per second", (rates,), **how),
        "memory": Figure("batch size", "memory at most (GiB)", (memory,), **how),
    }
