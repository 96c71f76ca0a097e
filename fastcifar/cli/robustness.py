"""`fastcifar robustness RUN...`: saved runs on shifted test images, against the baseline of effective robustness."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fastcifar.catalogue import find
from fastcifar.cli.arguments import parse
from fastcifar.cli.corruptions import archive_of, read_severities, select
from fastcifar.cli.evaluate import Options as EvalOptions
from fastcifar.cli.options import CommandOptions, Resident, Switch
from fastcifar.cli.saved import run_folder
from fastcifar.errors import UserError, brief
from fastcifar.escape import in_file_name, in_markdown, shown
from fastcifar.output import RESULTS, holds_earlier, read_file, read_json, reserved, write_all
from fastcifar.recipes.declare import setting
from fastcifar.record import Versions, own_commit
from fastcifar.report.figures import refuse_without_matplotlib, remove_figures
from fastcifar.report.robustness import (
    AccuracyPair,
    Baseline,
    effective_robustness,
    fit_baseline,
    plot_effective_robustness,
    published_baseline,
    published_sets,
)
from fastcifar.report.tables import Table
from fastcifar.screen import share

if TYPE_CHECKING:
    from fastcifar.cli.shifts import Networks, Shift

_ORIGINAL, _PUBLISHED = published_sets()
_COLUMNS = ("name", "original", "shifted", "images", "shifted_images", "on")
"""The columns of a file of pairs; the first three must be there."""
_GROUPS = ("runs", "ensembles", "given pairs")


@dataclass(frozen=True)
class Options(CommandOptions):
    """Compare the accuracy of saved runs on other test images with what their accuracy on the original ones predicts:
    effective robustness (Taori et al. 2020).

    The baseline for CIFAR-10.1 is a line on logit axes through the accuracies of 30 published networks. For other
    images it is fitted to the given runs and pairs, where there are five or more that differ enough.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN", help_behavior_hint="")] = ()
    """Folders of runs, or runs whose weights an experiment kept, all trained on the same data set; of each the weights
    are evaluated on all of the data set's test images, too if it held training images out."""
    weights: Annotated[tuple[str, ...], arg(metavar="PATH", help_behavior_hint="(default: none)")] = ()
    """Further weights for the network of the one RUN, as of its epochs: .safetensors, .pt, .pth or .ckpt files."""
    on: Annotated[tuple[str, ...], arg(metavar="NAME|PATH", help_behavior_hint=f"(default: {_PUBLISHED[0]})")] = ()
    """Sets of shifted images, one or several; of CIFAR-10-C the mean over its corruptions."""
    corrupt: Annotated[str | None, arg(metavar="NAME,NAME|all", help_behavior_hint="(default: none)")] = None
    """Corruptions, of which the mean is taken: of CIFAR-10-C where that is in --on, else made here of the original
    images. Names (fog), kinds (noise, blur, weather, digital) or all."""
    severity: Annotated[str | None, arg(metavar="S", help_behavior_hint="(default: 1-5)")] = None
    """How strong corruptions are, from 1 to 5, as in 3, 1-5 or 1,3,5."""
    seed: Annotated[int, arg(metavar="N")] = setting(0, at_least=0)
    """Names the random choices of corruptions that are made here."""
    pairs: Annotated[Path | None, arg(metavar="FILE.csv", help_behavior_hint="(default: none)")] = None
    """Further accuracies, fractions: a line with the columns' names, name, original, shifted and perhaps images and
    shifted_images (numbers of images, for intervals) and on (a set in --on, or corrupt), then a line for each."""
    ensemble: Switch = False
    """Also the ensemble of the runs: the mean of their probabilities."""
    tta: Literal["none", "flip", "flip-crop"] = "none"
    """Test-time augmentation, on all images: none, as of the published networks, or as eval has it."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds the data sets; without one, they are looked for in the user's cache, then downloaded."""
    resident: Resident = "auto"
    """Where the images lie: on the device, in host memory or, those of an HDF5 file, on disk."""
    mirror: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(default: $FASTCIFAR_MIRROR)")] = None
    """Address to download from first: of an archive, or of a folder with one; http, https or file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to evaluate on; auto: a GPU if there is one."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Write results.json and table.md there, in place of earlier ones."""
    plot: Switch = False
    """Draw a figure for each set of shifted images, in --out."""
    json: Switch = False
    """Print a JSON object and nothing else to standard output."""

    def _check(self) -> None:
        self._require("ensemble", not self.ensemble or len(self.runs) + len(self.weights) > 1, "with several runs")
        self._require("weights", not self.weights or len(self.runs) == 1, "with one RUN, whose network they are for")
        self._require("plot", not self.plot or self.out is not None, "with --out, where the figures go")


@dataclass(frozen=True)
class _Answer:
    """What is found for one set of shifted images."""

    shift: Shift
    points: list[AccuracyPair]
    baseline: Baseline | None
    why: str
    """Why there is no baseline."""
    tables: list[dict[str, Any]]
    """Of each point the accuracies by corruption."""

    def table(self) -> Table:
        """Return the table, in its title the baseline."""
        rows = []
        for point in self.points:
            cells = [share(point.original), share(point.shifted), "-", "-", "-"]
            if self.baseline is not None:
                found = effective_robustness(point, self.baseline)
                interval = "-" if found.interval is None else " to ".join(f"{100 * end:+.2f}" for end in found.interval)
                cells[2:] = [share(found.predicted), f"{100 * found.value:+.2f}", interval]
            rows.append((point.name, *cells))
        heads = ("model", "original", "shifted", "predicted", "effective robustness (points)", "95% interval")
        return Table(self.shift.title, heads, tuple(rows))

    def remarks(self) -> list[str]:
        """Return what the baseline is, and which networks it says little of."""
        line = self.baseline
        if line is None:
            return [f"accuracies alone: {self.why}"]
        slope = " to ".join(f"{end:.3f}" for end in line.slope_interval)
        said = f"logit(shifted) = {line.intercept:.3f} + {line.slope:.3f} logit(original), slope {slope}"
        lines = [f"baseline: {said}, fitted to {line.source}"]
        low, high = line.range
        outside = [point.name for point in self.points if not low <= point.original <= high]
        if outside:
            others = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
            lines.append(f"beyond the baseline's networks, {low:.2%} to {high:.2%}: {outside[0]}{others}")
        return lines

    def to_json(self, hashes: dict[str, str]) -> dict[str, Any]:
        shift, line = self.shift, self.baseline
        points = []
        for point, table in zip(self.points, self.tables, strict=True):
            found = None if line is None else effective_robustness(point, line)
            said = {**dataclasses.asdict(point), "interval": point.interval, "shifted_interval": point.shifted_interval}
            said |= {"predicted": found and found.predicted, "band": line and line.band(point.original)}
            said |= {"effective_robustness": found and found.value}
            points.append({**said, "effective_robustness_interval": found and found.interval, **table})
        fitted = None
        if line is not None:
            fitted = {name: getattr(line, name) for name in ("slope", "intercept", "slope_interval", "std", "source")}
            fitted["networks"] = [dataclasses.asdict(pair) for pair in line.pairs]
        data = {word: hashes[word] for *_, word in shift.cells if word in hashes}
        grid = {name: list(levels) for name, levels in shift.grid.items()}
        facts = {"on": shift.key, "corruptions": grid, "seed": None if shift.word else shift.seed, "sha256": data}
        return {**facts, "baseline": fitted, "no_baseline": self.why or None, "models": points}


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar robustness")
    if not options.runs and options.pairs is None:
        raise UserError("robustness needs saved runs or --pairs, as in: fastcifar robustness runs/a runs/b")
    if options.plot:
        refuse_without_matplotlib()
    asked = asked_of(options)
    keys = [key for key, *_ in asked]
    given = {key: [] for key in keys} if options.pairs is None else read_pairs(options.pairs, keys)
    runs = _runs(options)
    with nullcontext() if options.out is None else reserved(options.out, shared=True):
        if options.out is not None:
            holds_earlier(options.out, "robustness", RESULTS, lambda earlier: isinstance(earlier.get("shifts"), list))
        return _run(options, asked, given, runs)


def _run(
    options: Options, asked: list[tuple[str, Any, str]], given: dict[str, list[AccuracyPair]], runs: dict[str, Any]
) -> int:
    from fastcifar.cli.saved import Saved
    from fastcifar.cli.shifts import Networks, Shift

    shifts = [Shift("" if key == "corrupt" else key, grid, title, options.seed) for key, grid, title in asked]
    networks = None
    if runs:
        loaded = {name: Saved(each, run_folder(each.run_dir, "RUN")) for name, each in runs.items()}
        networks = Networks(loaded, options.ensemble)
        for shift in shifts:
            networks.prepare(shift)
    originals = networks and networks.original()
    answers = []
    for shift in shifts:
        answers.append(_answer(networks, originals, shift, given[shift.key]))
        if not options.json:
            answers[-1].table().show()
            print("\n".join(map(shown, answers[-1].remarks())), flush=True)
    text = json.dumps(_facts(options, networks, answers), indent=2) + "\n"
    if options.json:
        print(text, end="")
    if options.out is not None:
        _write(options, answers, text)
    return 0


def _answer(
    networks: Networks | None, originals: tuple[list[float], int] | None, shift: Shift, given: list[AccuracyPair]
) -> _Answer:
    points, tables, is_published = [], [], shift.word in _PUBLISHED
    if networks is not None and originals is not None:
        is_published &= networks.data.name == _ORIGINAL and networks.first.kept_classes is None
        for name, original, found in zip(networks.names, originals[0], networks.measure(shift), strict=True):
            group = _GROUPS[name not in networks.saved]
            points.append(AccuracyPair(name, original, found.accuracy, originals[1], found.images, group))
            tables.append(found.table)
    points, tables = [*points, *given], [*tables, *({} for _ in given)]
    if is_published:
        return _Answer(shift, points, published_baseline(shift.word), "", tables)
    single = [point for point in points if point.group != "ensembles"]
    try:
        return _Answer(shift, points, fit_baseline(single, "the models of this table"), "", tables)
    except UserError as error:
        return _Answer(shift, points, None, str(error).partition("; allowed")[0], tables)


def asked_of(options: Options) -> list[tuple[str, Any, str]]:
    """Return the key, the corruptions and the title of each set of shifted images. Raises UserError for an unknown one,
    and for options that do not go together."""
    words = options.on or (() if options.corrupt else (_PUBLISHED[0],))
    severities = read_severities(options.severity or "1-5")
    how = f" ({options.corrupt})" if options.corrupt else ""
    how += f", severity {options.severity}" if options.severity else ""
    asked, is_used = [], False
    for word in dict.fromkeys(words):
        find(word)
        archive = archive_of(word)
        is_used |= bool(archive)
        grid = select(archive, options.corrupt, severities) if archive else {}
        asked.append((word, grid, word + how * bool(archive)))
    if options.corrupt and not is_used:
        asked.append(("corrupt", select({}, options.corrupt, severities), f"corrupted here{how}"))
    elif options.seed:
        raise UserError("--seed is given, and nothing is corrupted here; allowed: with --corrupt, without CIFAR-10-C")
    if options.severity and not (options.corrupt or is_used):
        raise UserError("--severity says how images are corrupted; allowed: with --corrupt, or with CIFAR-10-C in --on")
    return asked


def _runs(options: Options) -> dict[str, EvalOptions]:
    """Return the options of `eval` for each network, by its name. Raises UserError for what is no run."""
    how = {"tta": options.tta, "resident": options.resident, "mirror": options.mirror, "device": options.device}
    one = EvalOptions(data_dir=options.data_dir, **how)
    words = [*options.runs, *options.weights]
    places = [os.path.realpath(word) for word in words]
    if twice := [word for word, place in zip(words, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"{twice[0]} is given twice; allowed: each run and each file of weights once")
    runs = {word: dataclasses.replace(one, run_dir=word) for word in options.runs}
    for word in runs:
        run_folder(word, "RUN")
    return runs | {path: dataclasses.replace(one, run_dir=options.runs[0], weights=path) for path in options.weights}


def read_pairs(path: Path, keys: Sequence[str]) -> dict[str, list[AccuracyPair]]:
    """Return `pairs[key]` of a file of accuracies; `keys` name the sets of shifted images. Raises UserError, with the
    line, for another file."""
    try:
        lines = read_file(path, "the pairs").decode("utf-8-sig").splitlines()
        names, *rows = csv.reader(lines, strict=True) if lines else [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the pairs {path}: {error}; allowed: a CSV file in UTF-8") from None
    names = [name.strip() for name in names]
    if not {*_COLUMNS[:3]} <= {*names} <= {*_COLUMNS} or len({*names}) < len(names):
        said = f"has the columns {brief(names)}" if names else "is empty"
        raise UserError(f"{path} {said}; allowed: {', '.join(_COLUMNS[:3])}, and perhaps {', '.join(_COLUMNS[3:])}")
    found: dict[str, list[AccuracyPair]] = {key: [] for key in keys}
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        if len(row) != len(names):
            raise UserError(f"{where} has {len(row)} values; allowed: {len(names)}, one for each column")
        cells = {name: cell.strip() for name, cell in zip(names, row, strict=True)}
        key = cells.pop("on", keys[0] if len(keys) == 1 else "")
        if key not in found:
            raise UserError(f"{where}: on is {brief(key)}; allowed: {', '.join(keys)}")
        found[key].append(_pair(cells, where))
    return found


def _pair(cells: dict[str, str], where: str) -> AccuracyPair:
    values: dict[str, Any] = {"group": _GROUPS[2]}
    for name, cell in cells.items():
        read = {"name": str, "original": float, "shifted": float}.get(name, int)
        try:
            values[name] = None if read is int and not cell else read(cell)
        except ValueError:
            kind = "a whole number" if read is int else "a number"
            raise UserError(f"{where}: {name} is {brief(cell, 60)}; allowed: {kind}") from None
    try:
        return AccuracyPair(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _facts(options: Options, networks: Networks | None, answers: list[_Answer]) -> dict[str, Any]:
    """Return all that is found, and with which weights, images and versions, ready for JSON."""
    hashes = {} if networks is None else networks.hashes
    original = None
    if networks is not None:
        name = networks.data.name
        original = {"dataset": name, "sha256": hashes[name], "classes": networks.first.kept_classes}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": dataclasses.asdict(Versions.here()),
        "commit": own_commit(),
        "tta": options.tta,
        "device": None if networks is None else str(networks.first.device),
        "original": original,
        "runs": [] if networks is None else networks.facts(),
        "shifts": [answer.to_json(hashes) for answer in answers],
    }


def _write(options: Options, answers: list[_Answer], text: str) -> None:
    folder, files = options.out, {RESULTS: text}
    assert folder is not None
    for answer in answers:
        lines = "".join(f"\n{in_markdown(line)}\n" for line in answer.remarks())
        files["table.md"] = files.get("table.md", "") + f"{answer.table().markdown()}{lines}\n"
    earlier = read_json(folder / RESULTS)["shifts"] if (folder / RESULTS).exists() else []
    write_all(folder, files)
    names = (shift["on"] for shift in earlier if isinstance(shift, dict) and isinstance(shift.get("on"), str))
    remove_figures(folder, map(in_file_name, names))
    drawn = [answer for answer in answers if options.plot and answer.baseline is not None]
    for answer in drawn:
        axes = {"original": "the original test images", "shifted": answer.shift.title}
        if answer.shift.word in _PUBLISHED:
            axes["original"] = _ORIGINAL
        figure = plot_effective_robustness(answer.points, answer.baseline, **axes, title=f"n={len(answer.points)}")
        figure.save(folder / in_file_name(answer.shift.key))
    if not options.json:
        figures = f"; {len(drawn)} figure{'s' * (len(drawn) != 1)}" if options.plot else ""
        print(shown(f"results.json and table.md are in {folder}{figures}"))
