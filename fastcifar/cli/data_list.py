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

from fastcifar.catalogue import DATASETS, EXTRAS, places_of
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
    """Folder to look in, and in those of its folders that have a set's name; without one, the user's cache."""
    json: Switch = False
    """Print a JSON array and nothing else to standard output."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), "fastcifar data list")
    place, is_named = _place(options.data_dir)
    sets = [_facts(name, place, is_named) for name in DATASETS]
    print(json.dumps(sets, indent=2) if options.json else "\n".join(_table(sets, place)))
    return 0


def sets_here(data_dir: Path | None) -> list[str]:
    """Return the names of the sets whose files are in `data_dir`, else in `$FASTCIFAR_DATA`, else in the user's
    cache."""
    place, _ = _place(data_dir)
    return [name for name in DATASETS if _path(name, place)]


def _facts(name: str, place: Path, is_named: bool) -> dict[str, Any]:
    entry = DATASETS[name]
    train, test = entry.images or (None, None)
    is_known = entry.images is not None  # else it is a plug-in's
    path = _path(name, place)
    module = EXTRAS.get(entry.extra)
    return {
        **{"name": name, "summary": entry.summary, "variants": dict(entry.variants), "test_only": entry.test_only},
        **{"train_size": train, "test_size": test, "side": entry.side if is_known else None},
        "classes": entry.classes if is_known else None,
        "path": None if path is None else str(path),
        "looked_in": str(place) if entry.files else None,
        "download_megabytes": None if path or is_named else entry.megabytes or None,
        "extra": entry.extra or None,
        "extra_is_installed": None if module is None else importlib.util.find_spec(module) is not None,
    }


def _place(data_dir: Path | None) -> tuple[Path, bool]:
    """Return where data sets are looked for, one place as their loaders have it, and whether the user names it."""
    if data_dir or os.environ.get("FASTCIFAR_DATA"):
        return data_dir or user_path(os.environ["FASTCIFAR_DATA"], "$FASTCIFAR_DATA"), True
    import platformdirs

    return Path(platformdirs.user_cache_dir("fastcifar")), False


def _path(name: str, place: Path) -> Path | None:
    """Return where a set's files are: in `place`, in one of its folders there, or that itself."""
    entry = DATASETS[name]
    if (place.name,) in entry.files and place.exists():
        return place
    for folder in places_of(name, place):
        for form in entry.files:
            if all((folder / file).exists() for file in form):
                return folder / form[0] if len(form) == 1 else folder
    return None


def _table(sets: list[dict[str, Any]], place: Path) -> list[str]:
    names = [shown(each["name"]) for each in sets]
    width = max(map(len, names))
    lines = [f"looked for in {shown(place)}", ""]
    lines += [f"{'':<{width}}{'training':>11}{'test':>9}{'side':>6}{'classes':>9}  where"]
    for name, each in zip(names, sets, strict=True):
        columns = [f"{each[key]:{size},}" if each[key] else f"{'-':>{size}}" for key, size in _COLUMNS.items()]
        lines.append(f"{name:<{width}}{''.join(columns)}  {_where(each)}")
        words = [
            f"{each['name']}:{word}" + f" ({count} classes)" * (count != each["classes"])
            for word, count in each["variants"].items()
        ]
        if words:
            more = f" and so on, {len(words)} in all" if len(words) > _SHOWN else ""
            lines.append(f"{'':<{width}}  also {', '.join(words[:_SHOWN])}{more}")
    return lines


_COLUMNS = {"train_size": 11, "test_size": 9, "side": 6, "classes": 9}
"""The columns of numbers, with their widths."""


def _where(facts: dict[str, Any]) -> str:
    where = shown(facts["path"]) if facts["path"] else "not there" if facts["looked_in"] else "needs no files"
    size = facts["download_megabytes"]
    lack = facts["extra_is_installed"] is False
    where += f": the first use downloads {size:,} MB" if size else ""
    return where + f"; needs pip install 'fastcifar[{facts['extra']}]'" * lack
