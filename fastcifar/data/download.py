"""What a user sees of a download: its progress, and the error where it fails; and the folder that it goes to."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from fastcifar.errors import Notice, UserError
from fastcifar.output import user_path

_SAY_SECONDS = 60.0
"""Where there is no terminal, a download says how far it is so often."""


class DownloadError(UserError):
    """A failed download from `url`; the message says from where, why, and what to do instead."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)  # what a copy, and another process, makes it from
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        allowed = "--data-dir with a folder or archive, or --mirror with another address"
        return f"cannot download {self.url}: {self.reason}; allowed: {allowed}"


def user_cache() -> Path:
    """Return the user's cache folder for fastcifar."""
    import platformdirs

    return user_path(platformdirs.user_cache_dir("fastcifar"), "the user's cache folder")


@contextlib.contextmanager
def progress(name: str, size: int, url: str) -> Iterator[Callable[[int], None]]:
    """Show a download while the block runs: give a function for the bytes that are there.

    A terminal's standard error shows a bar with the speed. Elsewhere there is a `Notice` when it begins, and one
    every minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _by_notices(name, size, url)
        return
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task, begun = bar.add_task(name, total=size), False

        def show(done: int) -> None:
            nonlocal begun
            # what was there before is not part of the speed
            (bar.update if begun else bar.reset)(task, completed=done)
            begun = True

        yield show


def _by_notices(name: str, size: int, url: str) -> Callable[[int], None]:
    since, place = 0.0, None

    def show(done: int) -> None:
        nonlocal since, place
        if place is None:
            here = f", {done / 1e6:,.1f} of which are here" if done else ""
            text = f"downloading {name}, {size / 1e6:,.1f} MB{here}, from {url}"
        elif (seconds := time.monotonic() - since) >= _SAY_SECONDS:
            speed = (done - place) / seconds / 1000
            text = f"{name}: {done / 1e6:,.1f} of {size / 1e6:,.1f} MB, {speed:,.0f} kB/s"
        else:
            return
        warnings.warn(text, Notice, stacklevel=2)
        since, place = time.monotonic(), done

    return show
