"""The campaign's closing table: at most 60 lines, made from the records alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bench.campaign.campaign import Campaign, Record
from fastcifar.report.statistics import summarise

MOST_LINES = 60


def summary(campaign: Campaign, parts: Iterable[str]) -> list[str]:
    """Lines for the screen: a heading for each part and what it found, cut to `MOST_LINES`, which a last line says."""
    lines = []
    for part in parts:
        records = campaign.records(part)
        lines.append(f"{part}: {len(records)} results in {campaign.path(part).name}")
        lines += [f"  {line}" for line in _LINES.get(part, _plain)(records)]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... and {len(lines) - MOST_LINES + 1} lines more in the files"]
    return lines


def _environment(records: list[Record]) -> Iterator[str]:
    for record in records:
        if record["what"] == "environment":
            yield f"{record['device'].get('name')}, torch {record['torch']}, triton {record.get('triton')}"
        elif record["what"] == "copy":
            yield f"copy {record['rate'] / 1e9:.0f} GB/s"
        elif record["what"] == "product":
            yield f"{record['dtype']} product {record['rate'] / 1e12:.2f} TFLOP/s"
    convolutions = [record for record in records if record["what"] == "convolution"]
    for recipe in dict.fromkeys(record["recipe"] for record in convolutions):
        mine = {record["layer"]: record for record in convolutions if record["recipe"] == recipe}.values()
        seconds = sum(sum(record["seconds"].values()) for record in mine)
        flop = sum(record["flop"] * len(record["seconds"]) for record in mine)
        yield f"{recipe}: convolutions {seconds * 1e3:.3f} ms a step, {flop / seconds / 1e12:.2f} TFLOP/s"


def _kernels(records: list[Record]) -> Iterator[str]:
    worst: dict[str, float] = {}
    for record in records:
        if record["what"] == "error":
            worst[record["operation"]] = max(worst.get(record["operation"], 0.0), record["worst"])
    yield "largest relative error: " + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    speeds: dict[tuple, Record] = {}
    for record in records:
        if record["what"] == "speed":
            speeds.setdefault((record["operation"], record["shape"]), {}).update(record)
    for record in speeds.values():
        shares = {
            name: f"{record[name]['share_of_copy']:.0%}" if "seconds" in record[name] else "failed"
            for name in ("kernel", "reference", "compiled")
            if name in record
        }
        told = ", ".join(f"{name} {share}" for name, share in shares.items())
        yield f"{record['operation']} {record['shape']}: of the copy bandwidth {told}"


def _steps(records: list[Record]) -> Iterator[str]:
    for record in records:
        if record["what"] == "step":
            for stage in record["stages"]:
                times = ", ".join(f"{way} {seconds * 1e3:.3f} ms" for way, seconds in stage["seconds"].items())
                search = "with" if record["cudnn_benchmark"] else "without"
                yield f"{record['recipe']} at {stage['size']} pixels, {search} cuDNN's search: {times}"
        elif record["what"] == "failed":
            yield f"{record['recipe']}: failed, {record['reason']}"


def _trainings(records: list[Record]) -> Iterator[str]:
    runs = [record for record in records if record["what"] == "training"]
    if not runs:
        return
    accuracy = summarise([run["tta_accuracy"] for run in runs])
    text = f"TTA accuracy {accuracy.mean:.2%}, n={accuracy.n}"
    if accuracy.interval:
        text += f", 95% interval {accuracy.interval[0]:.2%} to {accuracy.interval[1]:.2%}"
    yield text
    warm = [run for run in runs if not run["first_in_process"]] or runs
    for name in ("train_seconds", "time_seconds"):
        times = summarise([run[name] for run in warm])
        spread = "" if times.std is None else f", standard deviation {times.std:.3f}"
        yield f"{name} {times.mean:.3f}, n={times.n}{spread}"


def _peers(records: list[Record]) -> Iterator[str]:
    by_program: dict[str, list[Record]] = {}
    for record in records:
        if record.get("what") == "run" and record.get("seconds"):
            by_program.setdefault(record["peer"], []).append(record)
    for name, runs in by_program.items():
        own = summarise([run["own_seconds"] or run["seconds"] for run in runs])
        accuracies = [run["accuracy"] for run in runs if run.get("accuracy") is not None]
        accuracy = f", accuracy {summarise(accuracies).mean:.2%}" if accuracies else ""
        yield f"{name}: {own.mean:.3f} s by its own watch, n={own.n}{accuracy}"


def _cold(records: list[Record]) -> Iterator[str]:
    for record in records:
        if "process_seconds" in record:
            yield f"{record['program']}: {record['process_seconds']:.1f} s from process start to the first accuracy"


def _plain(records: list[Record]) -> Iterator[str]:
    for record in records:
        yield ", ".join(f"{key} {value}" for key, value in record.items() if key not in ("part", "time"))


_LINES = {
    "env": _environment,
    "kernels": _kernels,
    "steps": _steps,
    "davidnet": _trainings,
    "speedrun": _trainings,
    "peers": _peers,
    "cold": _cold,
}
