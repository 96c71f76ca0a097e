"""The page of all named recipes: what each is, what it reached here, and its fields."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.campaign.campaign import CHANGED, Line
from bench.campaign.table import grouped
from bench.headline import by_device, campaign_lines, reached
from fastcifar.escape import code_in_markdown, in_markdown
from fastcifar.recipes import RECIPES, SUMMARIES, Recipe
from fastcifar.recipes.named.ladder import LADDER
from fastcifar.recipes.text import leaves, to_text

FAMILIES = {
    "speedrun": ("The speedrun", ("speedrun",)),
    "warm_start": ("Warm starts", ("warmstart-",)),
    "course": ("A vision course", ("lenet", "alexnet", "resnet18")),
    "transfer": ("Transfer", ("finetune-", "extract-")),
    "wide": ("Wide networks", ("wide-",)),
}
"""By module of fastcifar.recipes.named: its title and how its recipes' names begin."""
_INTRODUCTION = f"""A recipe is a whole training method as a value: network, optimizer, schedule, augmentation.
`fastcifar recipes` lists those that have a name, `fastcifar recipes show NAME` prints one with the meaning of each
field, and `fastcifar train --recipe NAME` trains it. Any field is a flag, and a keyword of `fastcifar.train`. Below is
what was measured of each as it is, or was then (of `speedrun94` and `speedrun95` since {CHANGED["speedrun94"]}), and
the fields in which it differs from the defaults: DavidNet's, and those of the kinds of network and optimizer that it
names."""


def recipe_page(results: Sequence[dict], folder: Path) -> str:
    """Return the page, of the results of `folder`'s .jsonl files and of what its folders keep."""
    evidence = _Evidence(results, folder)
    lines = ["# Recipes and their evidence", "", _INTRODUCTION, "", f"## {Recipe.name}", ""]
    lines += [*_recipe(RECIPES[Recipe.name], evidence), ""]
    for module, (title, prefixes) in FAMILIES.items():
        doc = importlib.import_module(f"fastcifar.recipes.named.{module}").__doc__ or ""
        lines += [f"## {title}", "", doc.strip(), ""]
        for name in (name for name in RECIPES if name.startswith(prefixes)):
            lines += [f"### {name}", "", *_recipe(RECIPES[name], evidence), ""]
    return "\n".join([*lines, *_ladder(evidence)]) + "\n"


def _recipe(recipe: Recipe, evidence: _Evidence) -> Iterator[str]:
    train = "finetune --weights FILE" if recipe.name.startswith(FAMILIES["transfer"][1]) else "train"
    yield from (f"{in_markdown(SUMMARIES[recipe.name])}.", "", f"    fastcifar {train} --recipe {recipe.name}", "")
    yield from evidence.of(recipe.name) or ["Not measured."]
    fields = list(_differing(recipe))
    if fields:
        yield from ("", "```toml", *fields, "```")


def _differing(recipe: Recipe) -> Iterator[str]:
    """Give a line for each field that differs from the default, those of a section's kind from that kind's."""
    default = Recipe()
    for section in ("network", "optimizer"):
        if getattr(recipe, section).kind != getattr(default, section).kind:
            default = dataclasses.replace(default, **{section: type(getattr(recipe, section))()})
            yield f"{section}.kind = {to_text(getattr(recipe, section).kind)}"
    values, defaults = (dict(leaves(dataclasses.asdict(each))) for each in (recipe, default))
    for name, value in values.items():
        if name != "name" and not (name in defaults and value == defaults[name]):
            yield f"{name} = {to_text(value)}"


def _ladder(evidence: _Evidence) -> Iterator[str]:
    yield from (
        "## The ladder",
        "",
        (importlib.import_module("fastcifar.recipes.named.ladder").__doc__ or "").strip(),
        "",
    )
    yield from ("[The ladder](ladder.md) says how to climb it; the last column has what it gave here, made small.", "")
    yield from ("| recipe | what it changes | of | fields | measured |", "| --- | --- | --- | --- | --- |")
    for rung in LADDER:
        fields = "; ".join(
            code_in_markdown(f"{name}={to_text(_rounded(value))}") for name, value in rung.changes.items()
        )
        measured = "; ".join(evidence.climbed(rung.name)) or "-"
        yield f"| {rung.name} | {in_markdown(rung.changed)} | {rung.before or '-'} | {fields} | {measured} |"


def _rounded(value: Any) -> Any:
    """Return a field's value with its numbers in six digits."""
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_rounded, value))
    return float(f"{value:g}") if isinstance(value, float) else value


class _Evidence:
    """What was measured of recipes, by name."""

    def __init__(self, results: Sequence[dict], folder: Path) -> None:
        self.results = results
        self.trainings = grouped(campaign_lines(folder / "h100", "trainings"), "recipe")
        kept = [
            (path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*/*/results.json"))
        ]
        self.kept = [(path.parent.relative_to(folder).as_posix(), result) for path, result in kept]

    def of(self, name: str) -> list[str]:
        """Return the lines of a list for each hardware that measured the recipe as it is, and one on experiments."""
        found: dict[str, list[str]] = {}
        if runs := self.trainings.get(name):
            found |= {device: [_trained(of_device)] for device, of_device in by_device(runs).items()}
        for result in self.results:
            if told := _told(result, name):
                found.setdefault(result["hardware"], []).append(told)
        lines = []
        for hardware, of_hardware in found.items():
            lines += [f"On {in_markdown(hardware)}:", "", *(f"- {told}" for told in of_hardware), ""]
        experiments = [
            f"[{folder}](../bench/results/{folder}/table.md)"
            for folder, result in self.kept
            if isinstance(result.get("recipe"), Mapping) and result["recipe"].get("name") == name
        ]
        if experiments:
            lines += [f"Experiments that began with it, most of them made small: {', '.join(experiments)}.", ""]
        return lines[:-1]

    def climbed(self, name: str) -> Iterator[str]:
        """Give what the ladders that were climbed have of a rung."""
        for folder, result in self.kept:
            for rung in result.get("rungs", ()) if result["experiment"] == "ladder" else ():
                if rung["rung"] == name and rung["accuracy"]:
                    mean, n = rung["accuracy"]["mean"], rung["accuracy"]["n"]
                    size = f"n={n}, at scale {result['scale']:g}"
                    yield f"{mean:.2%} ({size}: [{folder}](../bench/results/{folder}/table.md))"


def _trained(runs: Sequence[Line]) -> str:
    accuracy, timed = reached(runs)
    interval = ", 95% interval {:.2%} to {:.2%}".format(*accuracy.interval) if accuracy.interval else ""
    told = f"{accuracy.mean:.2%} test accuracy with TTA (n={accuracy.n}{interval})"
    if timed:
        told += f"; {statistics.median(timed):.3g} s of `train_seconds` (n={len(timed)})"
    return told


_UNCHANGING = {"recipe", "seed", "runs", "threads", "eval-every", "holdout", "dataset", "train-size", "weights", "keep"}
"""Flags that leave a recipe as it is."""


def _told(result: dict[str, Any], name: str) -> str:
    """Return what a result says of the recipe as it is; nothing if it is of another."""
    if result["date"] < CHANGED.get(name, ""):
        return ""
    row, what = result.get("row", {}), result.get("what", "") if result.get("table", "") is not None else ""
    if f"`{name}`" in what or (what and _is_of(name, result["command"])):
        spread = "" if result["spread"] in ("", "-") else f", {result['spread']}"
        told = f"{what}: {result['value']} (n={result['n']}{spread})"
    elif row.get("recipe") == f"`{name}`" and _is_of(name, result["command"]):
        told = "; ".join(f"{head}: {cell}" for head, cell in row.items() if head != "recipe" and cell[:1] != "-")
    elif "tta_accuracy" in result and _is_of(name, result["command"]):
        told = f"{result['tta_accuracy']:.2%} of {result['held_out']:,} held-out images with TTA (n={result['n']}, "
        told += f'at commit {result["commit"]}, where the idea was "{in_markdown(result["idea"])}")'
    else:
        return ""
    return f"{told}, {result['date']}: {code_in_markdown(result['command'])}"


def _is_of(name: str, command: str) -> bool:
    """Return whether a command trains the recipe as it is."""
    command = command.partition(";")[0]  # what is said of the weights that it begins with
    flags = set(re.findall(r" --([\w.-]+)", command))
    is_named = re.search(rf" --recipe {name}(?![\w-])", command) or (name == Recipe.name and "recipe" not in flags)
    return command.startswith("fastcifar ") and bool(is_named) and flags <= _UNCHANGING
