"""What a recipe's fields are: their docstrings, what they admit, and the word that was probably meant.

Read by the TOML files and by the command line, so that both describe and refuse a field in the same words.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args, get_origin

_KINDS = {int: "whole number", float: "number", str: "word", Path: "path"}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, by field name; empty where the source file is not at hand."""
    try:
        [declared] = ast.parse(inspect.getsource(cls)).body
    except OSError:
        return {}
    assert isinstance(declared, ast.ClassDef)
    docs = {}
    for pair in itertools.pairwise(declared.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs


def allowed(hint: object) -> str:
    """What a value of this type hint may be, for the end of an error line: "a whole number", "4 numbers"."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        count = "" if Ellipsis in kinds else f"{len(kinds)} "
        return f"{count}{_KINDS[kinds[0]]}s"
    if hint is bool:
        return "true or false"
    return f"a {_KINDS[hint]}"


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint to append to an error line, "; did you mean 'epochs'?", or nothing where no known word is near."""
    spelling = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spelling, n=1)
    return f"; did you mean '{prefix}{spelling[near[0]]}'?" if near else ""
