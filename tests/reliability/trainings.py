"""Trainings in processes of their own, small and of every kind of state, and what they have to end with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastcifar.output import PARTIAL
from fastcifar.recipes import EMAConfig, LookaheadConfig, Recipe, to_toml
from fastcifar.recipes.optimizers.torch import AdamConfig
from tests.small import DAVIDNET, EVERYTHING

ROOT = Path(__file__).parents[2]
RECIPES: dict[str, Recipe] = {
    "everything": replace(EVERYTHING, epochs=6, lookahead=LookaheadConfig(every=3)),
    "averages": replace(DAVIDNET, epochs=5, ema=EMAConfig(decay=0.9, every=3)),
    "adam": replace(DAVIDNET, epochs=5, dtype="bfloat16", optimizer=AdamConfig(lr=0.01)),
}
"""Recipes that between them have every kind of state."""
SOME = ["--dataset", "synthetic", "--train-size", "400", "--holdout", "100", "--threads", "1", "--keep-weights", "all"]
"""What makes them small; without a holdout 2,000 images would be scored at every evaluation."""
TIMES = {"seconds", "started", "phases", "command", "resumed", "versions", "images_per_second", "commit"}
"""Parts of a record that are of the process, not of the training."""


@dataclass(frozen=True)
class Training:
    """A command that trains into `folder`, and may be stopped."""

    folder: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str] | None = None

    @classmethod
    def of(cls, name: str, folder: Path, *more: str) -> Training:
        """Return a training of the recipe `name` of `RECIPES`, whose file is written beside `folder`."""
        file = folder.with_name(f"{folder.name}.toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_toml(RECIPES[name]))
        return cls(folder, ("--recipe", str(file), *SOME, *more))

    def start(self, *, resume: bool = False, **options: Any) -> subprocess.Popen[str]:
        """Start the command, or what goes on with it."""
        words = ("--resume", str(self.folder)) if resume else (*self.arguments, "--out", str(self.folder))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(self.environment or {})}
        command = [sys.executable, "-m", "fastcifar", "train", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **options)

    def run(self, *, resume: bool = False, seconds: int = 300) -> Ended:
        """Run the command to its end, which is to come within so many seconds."""
        return Ended.of(self.start(resume=resume), seconds)

    def made(self) -> dict[str, str]:
        """Return `made[path]`, a digest of every file in the folder that says what was trained (weights, predictions,
        records), without what is of the process."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith((PARTIAL, ".")):
                found[str(path.relative_to(self.folder))] = hashlib.sha256(_said(path)).hexdigest()
        return found


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    output: str
    errors: str

    @classmethod
    def of(cls, process: subprocess.Popen[str], seconds: int = 300) -> Ended:
        """Wait for `process`."""
        output, errors = process.communicate(timeout=seconds)
        return cls(process.returncode, output, errors)

    @property
    def lines(self) -> list[str]:
        """What was said on standard error."""
        return self.errors.splitlines()

    @property
    def is_clear(self) -> bool:
        """True if every line on standard error is a line of ours: no traceback."""
        return all(line.startswith("fastcifar: ") for line in self.lines)


def _said(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".jsonl":
        return "\n".join(sorted(json.dumps(_timeless(json.loads(line))) for line in content.splitlines())).encode()
    if path.suffix == ".tsv":  # epoch, hours, accuracy
        return "\n".join(" ".join(line.split("\t")[::2]) for line in content.decode().splitlines()).encode()
    return content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if not name.endswith("seconds") and name not in TIMES}
        return {name: _timeless(each) for name, each in kept.items()}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def same(made: Mapping[str, str], expected: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the files that differ."""
    return [name for name in sorted({*made, *expected}) if made.get(name) != expected.get(name)]
