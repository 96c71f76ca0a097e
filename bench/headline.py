"""The README's results: how well and how fast the main recipes train, and how fast beside other people's programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.campaign.campaign import OUTCOMES, Line, read_records
from bench.campaign.table import grouped, ratios_of
from fastcifar.report.statistics import summarize

RECIPES = ("speedrun94", "davidnet")
PEERS = ("cifar10-fast", "airbench94_muon", "fulcrum-e1")
"""Where `davidnet` comes from, what `speedrun94` goes back to, and the fastest program that is known."""


def headline(results: list[dict], campaigns: Path) -> str:
    """Return two tables in Markdown, of the results in `bench/results/*.jsonl` and of the folder of campaigns."""
    heads = ("recipe", "on", "test accuracy with TTA (95% interval)", "n", "median `train_seconds`", "n")
    trained = _table(heads, [*_on_gpus(campaigns), *_on_cpus(results)])
    heads = ("in turn with", "measured", "times as fast (least to most)", "n", "on")
    return f"{trained}\n\n{_table(heads, [*_stepped(results), *_raced(campaigns)])}"


def campaign_lines(campaigns: Path, part: str) -> list[Line]:
    """Return the records of a part of all campaigns in a folder."""
    lines = [line for path in sorted(campaigns.glob(f"*/{part}.jsonl")) for line in read_records(path)]
    return [line for line in lines if line["what"] not in OUTCOMES]


def alone(trainings: list[Line]) -> list[Line]:
    """Return the trainings beside which nothing else ran on the machine."""
    return [run for run in trainings if "beside" not in run]


def _on_gpus(campaigns: Path) -> Iterator[tuple[str, ...]]:
    trainings = grouped(campaign_lines(campaigns, "trainings"), "recipe")
    for recipe in RECIPES:
        runs = trainings[recipe]
        yield _trained(recipe, runs[0]["device"]["name"], runs, alone(runs))


def _on_cpus(results: list[dict]) -> Iterator[tuple[str, ...]]:
    for recipe in RECIPES:
        for result in results:
            row = result.get("row", {"recipe": result.get("what", "").partition(" ")[0], "on": "cifar10, all"})
            if row.get("recipe") == f"`{recipe}`" and row.get("on", "").startswith("cifar10,") and "runs" in result:
                whole = max(run["threads"] for run in result["runs"])  # fewer: one of several at a time
                timed = [run for run in result["runs"] if run["threads"] == whole]
                yield _trained(recipe, result["hardware"], result["runs"], timed)


def _trained(recipe: str, on: str, runs: list[dict[str, Any]], timed: list[dict[str, Any]]) -> tuple[str, ...]:
    accuracy = summarize([run["tta_accuracy"] for run in runs])
    interval = " ({:.2%} to {:.2%})".format(*accuracy.interval) if accuracy.interval else ""
    seconds = statistics.median(run["train_seconds"] for run in timed)
    told = f"{seconds:.2f} s" if seconds < 10 else f"{seconds:,.0f} s"
    return f"`{recipe}`", on, f"{accuracy.mean:.2%}{interval}", str(len(runs)), told, str(len(timed))


def _stepped(results: list[dict]) -> Iterator[tuple[str, ...]]:
    of_program = {result["row"]["program"]: result for result in results if result.get("table") == "peers"}
    for peer in PEERS:
        row = of_program[peer]["row"]
        told = f"{row['our factor']} ({row['spread']})"
        yield peer, "a training step at equal work", told, row["n"], of_program[peer]["hardware"]


def _raced(campaigns: Path) -> Iterator[tuple[str, ...]]:
    runs = [run for run in campaign_lines(campaigns, "race") if run["what"] == "run" and not run["warm_up"]]
    for rival, of_rival in grouped(runs, "rival").items():
        factors = [1 / ratio for ratio in ratios_of(grouped(of_rival, "side"), "train_seconds")]
        told = f"{statistics.median(factors):.2f} ({min(factors):.2f} to {max(factors):.2f})"
        yield rival, "a whole `speedrun94`", told, str(len(factors)), of_rival[0]["device"]["name"]


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ("---",) * len(heads), *rows))
