"""The errors that a user can cause or must hear of, how they show what they were given, and suggestions for misspelled
words.

Standard library only: raising one never imports torch.
"""

from __future__ import annotations

import difflib
import errno
import re
import sys
import warnings
from collections.abc import Iterable

from fastcifar.escape import shown


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what is allowed. The command line exits with 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class DamagedData(UserError):
    """Files of a data set whose contents are not as they are to be."""


class Unequipped(UserError):
    """A data set that cannot be read on this machine for want of a package or of memory."""


class NonFiniteLoss(ArithmeticError):
    """Training met a NaN or infinite loss. The message names the step and the likely cause. The command line exits with
    3."""


class OutOfMemory(MemoryError):
    """Training needed more memory than the device has. The message is one line: where, what was asked, what was free,
    and what to try. The command line exits with 5."""


class ProcessesDied(RuntimeError):
    """All processes that trained died. The message is one line: of what, and at which runs. The command line exits with
    6."""


class Notice(UserWarning):
    """What a user should hear of though all goes on: a line, which the command line shows as it shows errors."""


class RenamedWarning(Notice):
    """A recipe or a kept run calls something by an older name; it is read all the same."""


def notify(text: str) -> None:
    """Give a `Notice` at the line of the program that called fastcifar, however deep this is called: logs show it."""
    inside, frame, level = {"fastcifar", "torch", "contextlib"}, sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, Notice, stacklevel=level)


_SIGNS = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC_FAILED")
"""Words of the errors of CUDA, of torch's CPU allocator, of cuBLAS and cuDNN, and of Triton's launches."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for any error that says that memory ran out, a GPU's or a CPU's: torch's, numpy's or Python's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SIGNS.search(str(error))))


def as_out_of_memory(error: BaseException) -> OutOfMemory:
    """Return `error`, by which memory ran out, as one of the class, with what it says itself where it is another."""
    if isinstance(error, OutOfMemory):
        return error
    reason = str(error).partition("\n")[0] or type(error).__name__
    return OutOfMemory(f"out of memory: {reason}; allowed: smaller batches, fewer images, to end other processes")


def brief(value: object, most: int = 200) -> str:
    """Return `value` for an error line, as Python writes it, up to `most` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, lists nested as deep
        return f"<{type(value).__name__} too large to show>"
    return text if len(text) <= most else f"{text[:most]}..."


def one_line(text: str, most: int = 1500) -> str:
    """Return `text` with escapes for line ends and all else that a terminal would not print but obey, and without the
    middle where it is longer than `most` characters."""
    text = shown(text)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def did_you_mean(word: object, known: Iterable[str], prefix: str = "") -> str:
    """Return "; did you mean 'epochs'?" to append to an error line, or "" if no known word is similar."""
    spelling = {name.lower(): name for name in known}
    near = difflib.get_close_matches((word if isinstance(word, str) else brief(word)).lower(), spelling, n=1)
    return f"; did you mean '{prefix}{spelling[near[0]]}'?" if near else ""
