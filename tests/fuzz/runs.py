"""The folders of several runs: runs.jsonl, a run's folder, an older failure's file and an experiment's arm."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from random import Random

from fastcifar.errors import UserError
from fastcifar.output import read_lines
from fastcifar.record import RunRecord
from fastcifar.report.runs import METRICS, NUMBERS, Runs, read_runs
from fastcifar.report.summary import summary_data, summary_lines, summary_tables

FIRST = Path(__file__).parents[1] / "training/version-1/run.json"
FILES = ("runs.jsonl", "seed-5/run.json", "seed-6.diverged.json", "arm/seed-0.json")
BETWEEN = b"\x1e"
"""Between the contents of these files."""
WORDS = (
    *(b"1e999", b"NaN", b"-Infinity", b"-1", b"9" * 5000, b"2", b"0.25", b"1e300", b"true", b"null", b"[]", b"{}"),
    *(b'""', b'"a\\u001b[2J"', b'"\\ud800"', b'"failed"', b'"diverged"', b'"seed"', b"\xff"),
    *(b'{"a":' * 2000, b"[" * 100_000),
)
KEYS = [f'"{key}"'.encode() for key in ("seed", "recipe", "dataset", "init", "failed", "diverged", *METRICS, *NUMBERS)]
TARGET = 0.5


def _lines() -> tuple[dict[bytes, dict], list[bytes]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = RunRecord.from_json(json.loads(FIRST.read_bytes())).to_json()
    runs = [record | {"seed": seed, "tta_accuracy": 0.9 + seed / 100} for seed in range(4)]
    asked = {name: record[name] for name in ("recipe", "subset", "init", "dataset", "device")}
    outcomes = [runs[0], {"seed": 1, "failed": "out of memory", "run": asked}, runs[1], runs[2], runs[3]]
    outcomes.append({"seed": 4, "diverged": "NaN", "run": asked})
    files = [runs[0] | {"seed": 5}, {"diverged": "NaN", "run": asked}, runs[0]]
    return {json.dumps(each).encode(): each for each in outcomes}, [json.dumps(each).encode() for each in files]


LINES, OTHERS = _lines()


def seeds() -> dict[str, bytes]:
    lines = b"\n".join(LINES) + b"\n"
    return {"lines": lines, "torn": lines[:-20], "folder": BETWEEN.join([lines, *OTHERS])}


def mutate(data: bytes, random: Random) -> bytes:
    """Put another value in the place of one, or leave out, repeat, join, cut or move a line."""
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    line = lines[place]
    choice = random.randrange(8)
    if choice <= 3:
        places = [at + 1 for at, byte in enumerate(line) if byte in b":,[{"]
        named = line.find(b'": ', line.find(random.choice(KEYS))) + 3
        if places:
            at = named if random.random() < 0.5 and named > 2 else random.choice(places)
            end = min((found for found in (line.find(mark, at + 1) for mark in b",}]") if found > 0), default=at)
            lines[place] = line[:at] + b" " * random.randrange(2) + random.choice(WORDS) + line[end:]
    elif choice == 4:
        lines[place : place + 1] = [line] * random.choice((0, 2, 50))
    elif choice == 5 and line:
        cut = random.randrange(len(line))
        lines[place] = line[cut:] if random.random() < 0.5 else line[:cut]
    elif choice == 6:
        lines[place : place + 2] = [random.choice((b"", b"\r", b"\0", b" ", b"\n")).join(lines[place : place + 2])]
    else:
        lines.insert(random.randrange(len(lines)), lines.pop(place))
    return b"\n".join(lines)


def check(data: bytes, folder: Path) -> bool:
    parts = dict(zip(FILES, data.split(BETWEEN), strict=False))
    for name, part in parts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(part)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            kept = read_runs(folder)
        except UserError as error:
            assert "\n" not in str(error) and not any(line in LINES for line in parts[FILES[0]].split(b"\n"))
            return False
    text = json.dumps(summary_data(kept, TARGET), allow_nan=False)
    assert json.loads(text)["unreadable"] == kept.unreadable
    assert all(table.markdown() for table in summary_tables(kept.groups, TARGET))
    for runs in kept.groups:
        assert all(line.isprintable() for line in summary_lines(runs, TARGET))
        for key in (*METRICS, *NUMBERS):
            assert all(0 <= value < 1e16 for value in runs.values(key)), key
    if not any("trained again" in str(each.message) for each in said):
        _assert_whole_lines_count(folder / FILES[0], kept.groups)
    return True


def _assert_whole_lines_count(path: Path, groups: tuple[Runs, ...]) -> None:
    """Raise AssertionError unless each line that is as it was written counts, where it is the last of its seed."""
    last: dict[object, bytes | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for values in read_lines(path):
            line = json.dumps(values).encode()
            last[json.dumps(values.get("seed"))] = line if LINES.get(line) == values else None
    found = {(record.seed, record.tta_accuracy) for runs in groups for record in runs.records}
    failed = {each.seed for runs in groups for each in runs.failed}
    for line in filter(None, last.values()):
        wanted = LINES[line]
        if "recipe" in wanted:
            assert (wanted["seed"], wanted["tta_accuracy"]) in found, f"seed {wanted['seed']} is lost"
        else:
            assert wanted["seed"] in failed, f"the failure of seed {wanted['seed']} is lost"
