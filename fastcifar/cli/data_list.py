"""`fastcifar data list`: the data sets, and which of them are here. Nothing is loaded, and torch is not imported."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from fastcifar.catalogue import DATASETS, EXTRAS
from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions, Switch
from fastcifar.escape import shown
from fastcifar.output import user_path

_SHOWN = 4
"""Variants that are named; --json has all."""


@dataclass(frozen=True)
class Options(CommandOptions):
    """List the data sets: how many images and classes, the pixels of a side, where each is and what it needs. They are
    looked for, not loaded. What --dataset takes beside these is the path of images of your own."""

    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder to look in, and in its folders that have a set's name; without one, the user's cache."""
    json: Switch = False
    """Print a JSON array and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar data list")
    sets = [_facts(name, options.data_dir) for name in DATASETS]
    print(json.dumps(sets, indent=2) if options.json else "\n".join(_table(sets)))
    return 0


def sets_here(data_dir: Path | None) -> list[str]:
    """Return the names of the sets whose files are in `data_dir`, else in `$FASTCIFAR_DATA`, else in the user's
    cache."""
    return [name for name in DATASETS if _path(name, _place(data_dir))]


def _facts(name: str, data_dir: Path | None) -> dict[str, Any]:
    entry, place = DATASETS[name], _place(data_dir)
    train, test = entry.images or (None, None)
    path = _path(name, place)
    module = EXTRAS.get(entry.extra)
    return {
        **{"name": name, "summary": entry.summary, "variants": dict(entry.variants), "test_only": entry.test_only},
        **{"train_size": train, "test_size": test, "side": entry.side, "classes": entry.classes},
        "path": None if path is None else str(path),
        "looked_in": str(place) if entry.files else None,
        "extra": entry.extra or None,
        "extra_is_installed": None if module is None else importlib.util.find_spec(module) is not None,
    }


def _place(data_dir: Path | None) -> Path:
    """Return where data sets are looked for: one place, as their loaders have it."""
    if data_dir or os.environ.get("FASTCIFAR_DATA"):
        return data_dir or user_path(os.environ["FASTCIFAR_DATA"], "$FASTCIFAR_DATA")
    import platformdirs

    return Path(platformdirs.user_cache_dir("fastcifar"))


def _path(name: str, place: Path) -> Path | None:
    """Return the first of a set's files that is in `place` or a folder of the set's name there, or that it is."""
    files = DATASETS[name].files
    if place.name in files and place.exists():
        return place
    return next((path for folder in (place, place / name) for file in files if (path := folder / file).exists()), None)


def _table(sets: list[dict[str, Any]]) -> list[str]:
    names = [shown(each["name"]) for each in sets]
    width = max(map(len, names))
    lines = [f"{'':<{width}}  {'training':>9}{'test':>9}{'side':>6}{'classes':>9}  where"]
    for name, each in zip(names, sets, strict=True):
        numbers = [f"{each[key] or '-':>{n}{',' * bool(each[key])}}" for key, n in _COLUMNS.items()]
        lines.append(f"{name:<{width}}  {''.join(numbers)}  {_where(each)}")
        words = [f"{each['name']}:{word} ({count} classes)" for word, count in each["variants"].items()]
        if words:
            more = f" ... {len(words)} in all" if len(words) > _SHOWN else ""
            lines.append(f"{'':<{width}}  also {', '.join(words[:_SHOWN])}{more}")
    return lines


_COLUMNS = {"train_size": 9, "test_size": 9, "side": 6, "classes": 9}


def _where(facts: dict[str, Any]) -> str:
    path = facts["path"]
    where = shown(path) if path else f"not in {shown(facts['looked_in'])}" if facts["looked_in"] else "needs no files"
    lack = facts["extra_is_installed"] is False
    return where + f"; needs pip install 'fastcifar[{facts['extra']}]'" * lack
