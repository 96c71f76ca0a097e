"""The folder of a run: may one be saved there, and where are its weights. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from fastcifar.errors import UserError

RECORD = "run.json"
"""The record of a run; a folder that holds one is a run's."""
WEIGHTS = "model.safetensors"
"""The weights of the evaluated network."""
TRACE = "trace.json"
"""A few training steps of a profiled run, for Chrome's trace viewer."""


def weights_file(path: str | Path) -> Path:
    """Return the file of weights in a run's folder, or that file itself. Raises UserError if there is none."""
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        found = f"holds no run: {WEIGHTS} is missing" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; allowed: the folder of a saved run, or a .safetensors file")
    return file


def check_out(folder: str | Path) -> None:
    """Raise UserError unless a run can be saved to `folder`: absent or empty, in a place that can be written to."""
    folder = Path(folder)
    try:
        _check(folder)
    except OSError as error:  # a name too long, a parent without permission to search it
        raise UserError(f"output folder {folder} cannot be made: {error.strerror or error}") from None


def _check(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            held = "a run" if (folder / RECORD).exists() else "files"
            raise UserError(f"output folder {folder} already holds {held}; allowed: a new or an empty folder")
    elif folder.exists():
        raise UserError(f"output folder {folder} is a file; allowed: a new or an empty folder")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"output folder {folder} cannot be made: {parent} is not a folder that can be written to")


def umask() -> int:
    """Return the process's umask: the permissions that new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
