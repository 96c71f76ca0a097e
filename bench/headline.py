"""The README's results: how well and how fast the main recipes train, and how fast beside other people's programs.

What was measured on a GPU is in the records of campaigns, `bench/results/h100/COMMIT`; `gpu_results` makes results of
it, as those of the .jsonl files are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.campaign.campaign import OUTCOMES, Line, read_records, unnamed
from bench.campaign.table import counting_races, grouped, ratios_of
from fastcifar.report.statistics import Summary, summarize

RECIPES = ("speedrun94", "davidnet")
PEERS = ("cifar10-fast", "airbench94_muon", "fulcrum-e1")
"""Where `davidnet` comes from, what `speedrun94` goes back to, and the fastest program that is known."""
_WHOLE = ("cifar10, all", "cifar10, 50,000 images")
"""What results on a CPU are on: all training images, tested on all test images."""


def headline(results: list[dict], campaigns: Path) -> str:
    """Return two tables in Markdown, of the results in `bench/results/*.jsonl` and of the folder of campaigns, and a
    line on the campaigns."""
    heads = ("recipe", "on", "test accuracy with TTA (95% interval)", "n", "median `train_seconds`", "n")
    trained = _table(heads, [*_on_gpus(campaigns), *_on_cpus(results)])
    heads = ("in turn with", "measured", "times as fast (least to most)", "n", "on")
    raced = [(rival, *cells, on) for rival, on, *cells in _raced(campaigns)]
    return f"{trained}\n\n{_table(heads, [*_beside(results), *raced])}\n\n{_campaigns(campaigns)}"


def gpu_results(campaigns: Path) -> list[dict[str, Any]]:
    """Return what campaigns measured of the main recipes and beside other people's programs, as results of the tables
    "gpu" and "race"."""
    trained = ("recipe", "accuracy with TTA (95% interval)", "n", "median `train_seconds`, alone", "n alone")
    raced = ("in turn with", "measured", "times as fast (least to most)", "n")
    return [
        {"table": name, "row": dict(zip(heads, (first, *cells), strict=True)), "hardware": on}
        | {"command": f"python -m bench.campaign campaign --out DIR --data-dir DIR {asked}"}
        for name, heads, rows, asked in (
            ("gpu", trained, _on_gpus(campaigns), "--only trainings"),
            ("race", raced, _raced(campaigns), "--peers DIR --only race"),
        )
        for first, on, *cells in rows
    ]


def campaign_lines(campaigns: Path, part: str) -> list[Line]:
    """Return the records of a part of all campaigns in a folder."""
    files = sorted(campaigns.glob(f"*/{part}.jsonl"))
    lines = [{**line, "folder": path.parent.name} for path in files for line in read_records(path)]
    return [line for line in lines if line["what"] not in OUTCOMES]


def by_device(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Return the records of runs of each device, by its name."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if "device" in line:
            found.setdefault(line["device"]["name"], []).append(line)
    return found


def reached(trainings: Sequence[Line]) -> tuple[Summary, list[float]]:
    """Return what the trainings of a recipe reached with test-time augmentation, and the `train_seconds` of those
    beside which nothing else ran on the machine. A seed counts once, by its latest training: one that was trained again
    is no further draw."""
    latest = {run["seed"]: run["tta_accuracy"] for run in sorted(trainings, key=lambda run: run["time"])}
    return summarize(list(latest.values())), [run["train_seconds"] for run in trainings if "beside" not in run]


def main_trainings(campaigns: Path) -> dict[str, list[Line]]:
    """Return the trainings of the main recipes, and of what had such a recipe's name before, by name."""
    trainings = grouped(campaign_lines(campaigns, "trainings"), "recipe")
    main = {name: RECIPES.index(recipe) for name in trainings if (recipe := unnamed(name)) in RECIPES}
    return {name: trainings[name] for name in sorted(main, key=main.__getitem__)}


def _on_gpus(campaigns: Path) -> Iterator[tuple[str, ...]]:
    for recipe, trainings in main_trainings(campaigns).items():
        for device, runs in by_device(trainings).items():
            yield _trained(recipe, device, *reached(runs))


def _on_cpus(results: list[dict]) -> Iterator[tuple[str, ...]]:
    for recipe in RECIPES:
        for result in results:
            row = result.get("row", {"recipe": result.get("what", "").partition(" ")[0], "on": "cifar10, all"})
            if row.get("recipe") == f"`{recipe}`" and row.get("on") in _WHOLE and "runs" in result:
                whole = max(run["threads"] for run in result["runs"])  # fewer: one of several at a time
                timed = [run["train_seconds"] for run in result["runs"] if run["threads"] == whole]
                accuracy = summarize([run["tta_accuracy"] for run in result["runs"]])
                yield _trained(recipe, result["hardware"], accuracy, timed)


def _trained(recipe: str, on: str, accuracy: Summary, timed: list[float]) -> tuple[str, ...]:
    interval = " ({:.2%} to {:.2%})".format(*accuracy.interval) if accuracy.interval else ""
    told = "-"
    if timed:
        seconds = statistics.median(timed)
        told = f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"
    return f"`{recipe}`", on, f"{accuracy.mean:.2%}{interval}", str(accuracy.n), told, str(len(timed))


def _beside(results: list[dict]) -> Iterator[tuple[str, ...]]:
    """Give what was measured beside other programs on CPUs: a training step of `PEERS`, and every whole training."""
    found = {
        (each["row"]["program"], each["row"]["measured"]): each for each in results if each.get("table") == "peers"
    }
    stepped = [(found[peer, "training step"], "a training step at equal work") for peer in PEERS]
    whole = [(each, f"a whole `{each['recipe']}`") for (_, what), each in found.items() if what == "whole training"]
    for result, what in (*stepped, *whole):
        row = result["row"]
        yield row["program"], what, f"{row['our factor']} ({row['spread']})", row["n"], result["hardware"]


def _raced(campaigns: Path) -> Iterator[tuple[str, ...]]:
    for device, lines in by_device(campaign_lines(campaigns, "race")).items():
        for rival, ours, runs in counting_races(lines):
            if factors := [1 / ratio for ratio in ratios_of(grouped(runs, "side"), "train_seconds")]:
                told = f"{statistics.median(factors):.2f} ({min(factors):.2f} to {max(factors):.2f})"
                beside = " and ".join(sorted({run["beside"] for run in runs if "beside" in run}))
                yield rival, device, f"a whole `{ours}`{beside and f', beside {beside}'}", told, str(len(factors))


def _campaigns(campaigns: Path) -> str:
    """Return a line on the campaigns: which they are, and their torch."""
    versions = sorted({line["torch"] for line in campaign_lines(campaigns, "smoke") if "torch" in line})
    links = ", ".join(
        f"[{folder.name}](bench/results/{campaigns.name}/{folder.name}/README.md)"
        for folder in sorted(campaigns.iterdir())
        if (folder / "race.jsonl").exists()
        or any(unnamed(line.get("recipe", "")) in RECIPES for line in read_records(folder / "trainings.jsonl"))
    )
    torch = f" with torch {' and '.join(versions)}" if versions else ""
    return f"On the GPU{torch}, in the campaigns {links}. A seed counts once, by its latest training."


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ("---",) * len(heads), *rows))
