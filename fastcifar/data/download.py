"""Download of an archive with pooch, which is imported only then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError
from fastcifar.output import user_path


class DownloadError(UserError):
    """A failed download; the message says from where, why, and what to do instead."""

    def __init__(self, url: str, reason: str) -> None:
        allowed = "--data-dir with a folder or archive, or --dataset synthetic"
        super().__init__(f"cannot download {url}: {reason}; allowed: {allowed}")


def user_cache() -> Path:
    """Return the user's cache folder for fastcifar, as `pooch.os_cache("fastcifar")` without importing pooch."""
    import platformdirs  # installed with pooch

    return user_path(platformdirs.user_cache_dir("fastcifar"), "the user's cache folder")


def download(url: str, md5: str, path: Path) -> Path:
    """Download `url` to `path`, with a progress bar on a terminal's standard error, and return `path`.

    Raises DownloadError without a connection, for an HTTP error and for a file with another md5.
    """
    import pooch
    import requests  # which pooch downloads with

    # The user sees the bar or the line of our error, not pooch's log beside them.
    pooch.get_logger().setLevel("ERROR")
    try:
        with _progress_bar(path.name) as bar:
            # pooch annotates this argument as a bool, and its downloaders do not fit its annotation of `retrieve`.
            fetch: Any = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18)  # pyright: ignore[reportArgumentType]
            pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=path.parent, downloader=fetch)
    except (requests.RequestException, ValueError) as error:  # ValueError: another md5
        # urllib3's own reason, where requests has one, without the address that requests repeats
        reason = getattr(error.args[0] if error.args else None, "reason", None) or error
        raise DownloadError(url, " ".join(str(reason).split()) or type(error).__name__) from error
    return path


class _RichBar:
    """A progress bar of rich with the names that pooch calls (tqdm's)."""

    def __init__(self, progress, task) -> None:
        self._progress, self._task = progress, task

    def _set_total(self, size: int) -> None:
        # 0 if the server does not send the length: the bar then pulses.
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
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _RichBar(progress, progress.add_task(name, total=None))
