"""The standard streams of a command, which may be narrow, closed, full, gone, or unable to show a character."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, TextIO


def wrapped(text: str, first: str = "", others: str = "") -> str:
    """Return `text` in lines as wide as the terminal, broken at spaces alone; paragraphs stay what they are.

    first, others: what the first line begins with, and the others.
    """
    width = shutil.get_terminal_size().columns or 80  # one of no columns says 0
    how = {"initial_indent": first, "subsequent_indent": others, "break_long_words": False, "break_on_hyphens": False}
    return "\n\n".join(textwrap.fill(" ".join(each.split()), width, **how) for each in text.split("\n\n"))


class Output:
    """A standard stream that never raises: what `stream` (None: a closed one) cannot take any more is dropped.

    A character that it cannot show is written as an escape, as in `\\xe9`.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.failure: OSError | None = None
        """The reason why something could not be written, if anything."""
        self._is_closed = stream is None
        self._stream: Any = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  (as long as the process)
        self._errors = getattr(stream, "errors", None)

    def write(self, text: str) -> int:
        """Write `text`, or nothing after the first failure."""
        if self._is_closed and text:
            self.failure = self.failure or OSError("it is closed")
        try:
            self._stream.write(text)
        except OSError as error:
            self._end(error)
        return len(text)

    def flush(self) -> None:
        """Write what is left, as far as that goes."""
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        self.failure = self.failure or error
        with contextlib.suppress(OSError):  # the file below it: what is left would fail again as the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def show_any(self, errors: str | None = "backslashreplace") -> None:
        """Write escapes for characters that the stream's encoding has not; None: do as before."""
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors=errors or self._errors)


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Put an `Output` in the place of either standard stream while the block runs, and give that of standard output."""
    # A closed one would be the number of the next file that is opened, and libraries write to it.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    outputs = [Output(stream) for stream in before]
    for output in outputs:
        output.show_any()
    sys.stdout, sys.stderr = outputs  # pyright: ignore[reportAttributeAccessIssue]  (all that print and rich ask for)
    try:
        yield outputs[0]
    finally:
        for output in outputs:
            output.flush()
            output.show_any(None)
        sys.stdout, sys.stderr = before
