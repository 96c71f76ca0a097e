"""What the results in `bench/results/` say of each trick: the rows of its page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.campaign.campaign import read_records
from fastcifar.recipes import RECIPES, Recipe, change
from fastcifar.recipes.page import all_tricks
from fastcifar.recipes.text import to_text
from fastcifar.recipes.tricks import declared_tricks
from fastcifar.report.statistics import t_quantile

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Source:
    """An experiment that was kept, with all that its rows have in common."""

    group: str
    """"ablation", "screen", "warm start" or "ladder"."""
    folder: str
    """Of its results, from the checkout's root."""
    conditions: str
    """What was trained, on how many images, tested on which, with which seeds, on what hardware."""
    command: str
    """That measures it again, as Markdown."""


@dataclass(frozen=True)
class Row:
    """What a trick did to accuracy in one experiment."""

    trick: str
    source: Source
    name: str
    """What was compared with what, in a few words."""
    points: float
    """Accuracy with the trick less that without it, in percentage points."""
    interval: Interval
    """Its 95% interval; None of one run."""
    n: int
    more: str = ""
    """What else is known of it, such as log-loss."""

    @property
    def told(self) -> str:
        return f"{self.points:+.2f}" + (" ({:+.2f} to {:+.2f})".format(*self.interval) if self.interval else "")


def rows(results: Path) -> dict[str, list[Row]]:
    """Return `rows[trick]` of all tricks that have one, of the folder of results."""
    found: dict[str, list[Row]] = {}
    for row in (*_ablated(results), *_screened(results), *_warm(results), *_climbed(results)):
        found.setdefault(row.trick, []).append(row)
    return found


def _ablated(results: Path) -> Iterator[Row]:
    for folder, result in _kept(results / "ablations", "ablate"):
        recipe, n = result["recipe"], result["rows"][0]["n"]
        what = f"{recipe['name']}, {recipe['epochs']:g} epochs in batches of {recipe['batch_size']}"
        source = _source(
            "ablation", results, folder, f"{what}, {_data(result, range(result['seed'], result['seed'] + n))}"
        )
        for row in result["rows"][1:]:
            if row["accuracy"] is None:
                continue
            points, interval = _turned(row["accuracy"])
            loss = "" if row["loss"] is None else f"log-loss {-row['loss']['mean']:+.4f}"
            failed = f"{row['failed']} of {n} runs without it failed" if row["failed"] else ""
            more = ", ".join(filter(None, (loss, failed)))  # no times: what ran beside decided them
            yield Row(row["trick"], source, recipe["name"], points, interval, row["accuracy"]["n"], more)


def _screened(results: Path) -> Iterator[Row]:
    for path in sorted((results / "h100").glob("*/screen.jsonl")):
        lines = read_records(path)
        run = next(line for line in lines if line["what"] == "run")
        table = [line for line in lines if line["what"] == "effects"][-1]["table"]
        n = int(re.findall(r"(\d+) runs", table["title"])[0])
        data = run["dataset"]
        trained = f"{run['recipe']['name']}, {data['train_size']:,} training and {data['test_size']:,} held-out images"
        folder = path.parent.relative_to(results.parents[1]).as_posix()
        command = "`python -m bench.campaign campaign --out DIR --data-dir DIR --only screen`"
        command += f", at the commit {path.parent.name}, whose campaign has these changes"
        source = Source("screen", folder, f"{trained}, {run['dtype']} on {run['device']['name']}", command)
        for words, *cells in table["rows"]:
            told = dict(zip(table["columns"][1:], cells, strict=True))
            effect, half = map(float, told["accuracy, points"].split(" ± "))
            field, _, values = words.partition("=")
            for trick, sign in _toggled(field, *values.split("..")):
                more = f"as a change: log-loss {told['log-loss']}, FLOP {told['FLOP']}"
                yield Row(trick, source, words, sign * effect, (sign * effect - half, sign * effect + half), n, more)


def _toggled(field: str, before: str, after: str) -> Iterator[tuple[str, int]]:
    """Give the tricks that a change of a field switches on, with 1, or off, with -1."""
    for name, declared in {(each.name, each.declared) for each in all_tricks() if each.path == field}:
        of, off = (
            None if value is None or callable(value) else _plain(to_text(value))
            for value in (declared.of, declared.off)
        )
        for with_it, without, sign in ((after, before, 1), (before, after, -1)):
            if _plain(without) == off and _plain(with_it) == (of or _plain(with_it)) != off:
                yield name, sign


def _plain(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return text.strip('"')


def _warm(results: Path) -> Iterator[Row]:
    known, usual = {each.name for each in all_tricks()}, ("plain", "half")
    for folder, result in _kept(results / "warm-start", "methods"):
        recipe, seeds = result["recipe"], result["seeds"]
        what = f"{recipe['name']}, {recipe['epochs']:g} epochs in batches of {recipe['batch_size']}"
        source = _source("warm start", results, folder, f"{what}, {_data(result, seeds)}")
        for part in result["parts"]:
            for arm in part["arms"]:
                name, cold = arm["arm"].removeprefix("cold-"), arm["arm"].startswith("cold-")
                effect = arm["above_cold" if cold else "above_warm"]
                if name in known and effect is not None:
                    words = f"{result['dataset']}, {'fresh weights' if cold else 'weights of half the images'}"
                    words += "".join(f", {each}" for each in (part["condition"], part["protocol"]) if each not in usual)
                    more = "" if arm["replaced"] is None else f"units that began again: {arm['replaced']['mean']:g}"
                    yield Row(
                        name, source, words, 100 * effect["mean"], _percent(effect["interval"]), effect["n"], more
                    )


def _climbed(results: Path) -> Iterator[Row]:
    for folder, result in _kept(results / "posts", "ladder"):
        width = ", at a quarter of the width" * result["narrow"]
        what = f"{result['scale']:g} of the posts' images and epochs{width}, {result['test_size']:,} held-out images"
        source = _source(
            "ladder", results, folder, f"{what}, seeds {result['seed']} to {result['seed'] + result['n'] - 1}"
        )
        by_name = {rung["rung"]: rung for rung in result["rungs"]}
        for rung in result["rungs"]:
            before = by_name.get(rung["before"])
            if before is None or before["accuracy"] is None or rung["accuracy"] is None:
                continue
            recipe, recipe_before = RECIPES[rung["rung"]], RECIPES[before["rung"]]
            if recipe.network.kind != recipe_before.network.kind:
                continue  # what is a trick's field in one has no field in the other
            points, interval = _difference(rung["accuracy"], before["accuracy"])
            for trick in _came_in(recipe, recipe_before):
                n, more = rung["accuracy"]["n"], f"the whole rung: {rung['changed']}"
                yield Row(trick, source, f"{rung['rung']} after {before['rung']}", points, interval, n, more)


def _came_in(recipe: Recipe, before: Recipe) -> list[str]:
    """Return the tricks that a recipe uses and the one before it does not."""
    fields, fields_before = ({(e.name, e.path, e.value) for e in declared_tricks(each)} for each in (recipe, before))
    changed = {name for name, _, _ in fields - fields_before}
    return sorted(name for name in changed if _uses(recipe, name) and not _uses(before, name))


def _uses(recipe: Recipe, name: str) -> bool:
    """Return whether a recipe uses a trick, as `tricks` has it; all of them take long to find."""
    off = [
        each.declared.changes(recipe, each.path)
        for each in declared_tricks(recipe)
        if each.name == name and each.applies
    ]
    return change(recipe, {field: value for changes in off for field, value in changes.items()}) != change(recipe, {})


def _kept(folder: Path, experiment: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the names of the folders in `folder` that an experiment left, and what it left."""
    for path in sorted(folder.glob("*/results.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["experiment"] == experiment:
            yield f"{folder.name}/{path.parent.name}", result


def _source(group: str, results: Path, folder: str, conditions: str) -> Source:
    """Return a source with the hardware and the command that README.md beside its folder has. Raises ValueError where
    that has none."""
    above, _, name = folder.partition("/")
    readme = (results / above / "README.md").read_text(encoding="utf-8")
    command = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", readme, re.MULTILINE)
    hardware = re.search(r"\bin (\w+\d+ on .*?)(?:\.\s|: )", readme, re.DOTALL)
    if command is None or hardware is None:
        raise ValueError(f"{above}/README.md does not say what {name} was measured with, and on what")
    told = f"{conditions}, {' '.join(hardware[1].split())}"
    return Source(group, f"bench/results/{folder}", told, command[1])


def _data(result: dict[str, Any], seeds: Sequence[int]) -> str:
    tested = f"{result['test_size']:,} {'held-out' if result['holdout'] else 'test'} images of {result['dataset']}"
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{result['train_size']:,} training and {tested}, {named}"


def _turned(effect: dict[str, Any]) -> tuple[float, Interval]:
    """Return in points what is gained with a trick, of what is gained without it."""
    interval = _percent(effect["interval"])
    return 0 - 100 * effect["mean"], interval and (-interval[1], -interval[0])


def _percent(interval: list[float] | None) -> Interval:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _difference(after: dict[str, Any], before: dict[str, Any]) -> tuple[float, Interval]:
    """Return the difference of two means in points, and its interval (Welch 1947, in whole degrees of freedom)."""
    points = 100 * (after["mean"] - before["mean"])
    shares = [(each["std"] or 0) ** 2 / each["n"] for each in (after, before)]
    if min(after["n"], before["n"]) < 2 or not any(shares):
        return points, None
    freedom = sum(shares) ** 2 / sum(s**2 / (e["n"] - 1) for s, e in zip(shares, (after, before), strict=True))
    half = 100 * t_quantile(0.975, int(freedom)) * math.sqrt(sum(shares))
    return points, (points - half, points + half)
