"""Downloading an archive with pooch, which is imported only when there is something to download."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError


class DownloadError(UserError):
    """The data could not be downloaded; the message says from where, why, and what to do instead."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"cannot download {url}: {reason}; allowed: --data-dir with a folder or archive, or --dataset synthetic"
        )


def user_cache() -> Path:
    """The user's cache folder for fastcifar: what `pooch.os_cache("fastcifar")` is, without importing all of pooch."""
    import platformdirs  # pooch needs it: it is there where pooch is

    return Path(platformdirs.user_cache_dir("fastcifar"))


def download(url: str, md5: str, path: Path) -> Path:
    """Downloads `url` to `path`, with a progress bar on a terminal's standard error; returns `path`.

    Raises DownloadError where there is no connection, for an HTTP error and for a file with another md5.
    """
    import pooch
    import requests  # what pooch downloads with

    # The bar and, where it fails, our one line are what the user sees, not pooch's log beside them.
    pooch.get_logger().setLevel("ERROR")
    try:
        with _progress_bar(path.name) as bar:
            # pooch annotates this argument as a bool, and what takes a downloader so that none of its own fits.
            fetch: Any = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18)  # pyright: ignore[reportArgumentType]
            pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=path.parent, downloader=fetch)
    except requests.RequestException as error:
        raise DownloadError(url, _reason(error)) from error
    except ValueError as error:  # pooch's for another md5
        raise DownloadError(url, _reason(error)) from error
    return path


def _reason(error: Exception) -> str:
    """What went wrong, on one line, without the address that requests repeats where urllib3 gave the reason apart."""
    inner = getattr(error.args[0] if error.args else None, "reason", None) or error
    return " ".join(str(inner).split()) or type(error).__name__


class _RichBar:
    """What pooch asks of a progress bar (tqdm's names), done by rich."""

    def __init__(self, progress, task) -> None:
        self._progress, self._task = progress, task

    def _set_total(self, size: int) -> None:
        # A server that does not tell the length gives 0 here: the bar then pulses.
        self._progress.update(self._task, total=size or None)

    total = property(None, _set_total)

    def update(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop()


@contextlib.contextmanager
def _progress_bar(name: str) -> Iterator[_RichBar]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _RichBar(progress, progress.add_task(name, total=None))
