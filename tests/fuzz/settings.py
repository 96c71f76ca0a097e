"""settings.json, what the runs in an experiment's folder were asked to do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from fastcifar.errors import UserError
from fastcifar.experiments import EXPERIMENTS
from fastcifar.experiments.store import SETTINGS, Store
from tests.fuzz.engine import one_line
from tests.fuzz.values import mutated_json as mutate  # noqa: F401

ASKED = {name: {**cls().settings(), "dataset": "cifar10", "subset": None} for name, cls in EXPERIMENTS.items()}


def seeds() -> dict[str, bytes]:
    return {name: json.dumps(settings, indent=2).encode() for name, settings in ASKED.items()}


def check(data: bytes, folder: Path) -> bool:
    kept = folder / "kept"
    kept.mkdir()
    (kept / SETTINGS).write_bytes(data)
    accepted = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for settings in ASKED.values():
            try:
                Store(kept, settings)
            except UserError as error:
                one_line(error)
            else:
                accepted += 1
                there = json.loads(data)
                assert there["experiment"] == settings["experiment"] and there.keys() == settings.keys()
    assert (kept / SETTINGS).read_bytes() == data, "the settings that are kept were changed"
    assert accepted <= 1, "the settings of several experiments"
    return accepted > 0
