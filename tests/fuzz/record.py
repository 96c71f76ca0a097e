"""Records of runs: run.json, and as lines of runs.jsonl."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from fastcifar.errors import UserError
from fastcifar.output import read_json, read_lines
from fastcifar.recipes import RECIPES, label
from fastcifar.record import RunRecord
from tests.fuzz.engine import one_line
from tests.fuzz.values import mutated_json as mutate  # noqa: F401

FIRST = Path(__file__).parents[1] / "training/version-1/run.json"


def seeds() -> dict[str, bytes]:
    first = FIRST.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = RunRecord.from_json(json.loads(first)).to_json()
    whole = {name: record | {"recipe": _plain(recipe)} for name, recipe in RECIPES.items()}
    return {"first": first, **{name: json.dumps(each).encode() for name, each in whole.items()}}


def _plain(recipe):
    import dataclasses

    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def check(data: bytes, folder: Path) -> bool:
    path = folder / "run.json"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            record = RunRecord.from_json(read_json(path, "the record"), str(path))
        except UserError as error:
            one_line(error)
            record = None
        kept = None if record is None else json.dumps(record.to_json(), allow_nan=False)
        if kept is not None:
            assert RunRecord.from_json(json.loads(kept)) == record, "the record that was written is another"
            assert label(record.recipe).isprintable() and repr(record) and hash(record.recipe)
        path.write_bytes(data.replace(b"\n", b" ") + b"\n")
        for values in read_lines(path):
            try:
                RunRecord.from_json(values, str(path))
            except UserError as error:
                one_line(error)
    return record is not None
