"""Texts of files and flags, escaped for a terminal, for Markdown and for names of files. Standard library only."""

from __future__ import annotations

import hashlib
import re

_MARKDOWN = re.compile(r"[\\`\[\]<>&#~$]|(?<! )\*|\*(?! )|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What Markdown reads as more than itself; an underscore within a word and an asterisk between spaces are none."""
_DIGITS = 8


def shown(text: object, most: int | None = None) -> str:
    """Return `text` in one line that shows what it is: what moves a terminal's cursor, is not seen or turns the
    direction of writing is an escape, as in `\\x1b`.

    most: characters from which on it is cut, ending in "…"; None: it is whole.
    """
    line = str(text)
    if most is not None and len(line) > most:
        line = line[: most - 1] + "…"
    return line if line.isprintable() else "".join(map(_visible, line))


def shown_lines(text: object) -> str:
    """Return `text` as `shown` does, in the lines that it has."""
    return "\n".join(map(shown, str(text).split("\n")))


def in_markdown(text: object) -> str:
    """Return Markdown, also for a table's cell, that reads as `shown(text)` and as nothing else."""
    # The pipe by its number: programs differ in what a backslash before one means.
    return _MARKDOWN.sub(r"\\\g<0>", shown(text)).replace("|", "&#124;")


def code_in_markdown(text: object) -> str:
    """Return `shown(text)` as a span of code in Markdown, outside of tables."""
    line = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line[:1] in ("`", " ") or line[-1:] in ("`", " ") else ""
    return f"{fence}{space}{line}{space}{fence}"


def in_file_name(text: str, most: int = 80) -> str:
    """Return `text` as the name of a file or a part of it, of at most `most` bytes; two long texts that are cut remain
    different."""
    name = re.sub(r"[^\w.+-]+", "-", text).lstrip(".") or "-"
    if len(name.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
    return name.encode()[: most - _DIGITS - 1].decode(errors="ignore") + f"-{digest}"


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
