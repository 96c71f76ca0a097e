"""`Store`: the finished runs of an experiment, kept one by one, so that the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcifar.errors import RenamedWarning, UserError
from fastcifar.output import umask
from fastcifar.recipes import network_of
from fastcifar.recipes.legacy import modernize
from fastcifar.recipes.text import leaves, recipe_from_dict

SETTINGS = "settings.json"
"""The file that makes a folder an experiment's: what its runs were asked to do."""

_KEY = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")
_SHOWN = 60
_RECIPES = ("recipe", "a", "b")
"""Settings that hold a recipe."""
_PARTIAL = ".partial-"
"""What the name of a file begins with until it is whole; a process that was killed may leave one behind."""


class Store:
    """A folder with `settings.json` and a JSON file for each finished run.

    `settings` (anything that JSON holds; tuples become lists) are written when the folder is new or empty, and must
    equal those that are there otherwise: so runs of different settings never mix. Every file is written whole or not at
    all. Raises UserError, which names the first setting that differs, and for a folder that holds something else or
    cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = _plain(settings)
        path = self.folder / SETTINGS
        if path.is_file():
            self._compare(_in_todays_form(_read(path), str(path)))
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = any(not entry.name.startswith(_PARTIAL) for entry in self.folder.iterdir())
        except OSError as error:
            raise UserError(f"output folder {self.folder} cannot be made: {error.strerror or error}") from None
        if used:
            raise UserError(
                f"output folder {self.folder} holds files but no {SETTINGS}; allowed: a new or an empty folder, or one "
                "that this experiment was begun in"
            )
        write_whole(path, _text(self.settings))

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of the run `key`; None where there is none. Raises UserError for a file that cannot be read."""
        path = self.path(key)
        return _read(path) if path.is_file() else None

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep `record` as that of the run `key`, in the place of an earlier one."""
        write_whole(self.path(key), _text(_plain(record)))

    def write(self, name: str, text: str) -> Path:
        """Write the file `name`, such as a table of the results, beside the runs, in the place of an earlier one."""
        write_whole(self.folder / name, text)
        return self.folder / name

    def path(self, key: str) -> Path:
        """The file of the run `key`: letters, digits and . _ + -, with slashes that make folders.
        Raises UserError for any other key."""
        if not _KEY.fullmatch(key) or f"{key}.json" == SETTINGS:
            raise UserError(f"the key of a run is {key!r}; allowed: letters, digits and . _ + -, as in a/seed-0")
        return self.folder / f"{key}.json"

    def _compare(self, before: dict[str, Any]) -> None:
        old, new = dict(leaves(before)), dict(leaves(self.settings))
        for name in {**old, **new}:
            if name not in old or name not in new or old[name] != new[name]:
                there, now = (_shown(values[name]) if name in values else "absent" for values in (old, new))
                raise UserError(
                    f"{self.folder} was begun with other settings: {name} is {there} there and {now} now; "
                    "allowed: the same settings, or another folder"
                )


def _in_todays_form(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """`settings` with what older ones called the fields of a recipe under today's names."""
    new = {}
    for name, value in settings.items():
        if name in _RECIPES and isinstance(value, dict):
            renamed = modernize(value, f"{source}: {name}")
            new[name] = value if renamed == value else _plain(dataclasses.asdict(recipe_from_dict(renamed, source)))
    if isinstance(settings.get("networks"), list) and isinstance(settings.get("recipe"), dict):
        networks = (_network(each, settings["recipe"], source) for each in settings["networks"])
        new["networks"] = {network["kind"]: network for network in networks}
    return settings | new


def _network(network: Any, recipe: dict[str, Any], source: str) -> dict[str, Any]:
    """The configuration of a network of a table of `recipe`, which was kept by its kind: that of the recipe, which
    formerly had a section for each, or of `network_of`."""
    if not isinstance(network, str):
        return network
    with warnings.catch_warnings():  # said already, of the recipe
        warnings.simplefilter("ignore", RenamedWarning)
        if isinstance(recipe.get("network"), str):
            config = recipe_from_dict({**recipe, "network": network}, source).network
        else:
            config = network_of(recipe_from_dict(recipe, source), network)
    return _plain(dataclasses.asdict(config))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON gives back for `values`; raises ValueError for NaN and infinities, which are not JSON."""
    return json.loads(json.dumps(values, allow_nan=False))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {reason}; allowed: a JSON file as it was written") from None
    if not isinstance(record, dict):
        raise UserError(f"cannot read {path}: it is not an object; allowed: a JSON file as it was written")
    return record


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends. Raises UserError where it cannot
    be written."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=_PARTIAL, delete=False) as file:
            partial = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~umask())
        os.replace(partial, path)
        partial = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if partial:
            partial.unlink(missing_ok=True)
