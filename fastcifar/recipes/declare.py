"""Declarations of a recipe's fields: bounds, a trick's off-value and its source, all at the field.

    crop: int = trick(4, off=0, at_least=0, below=32, unit="pixels", source="He 2015")

Flags, help, TOML files, error messages, the arms of an ablation and the page of tricks are made from them. Standard
library only.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import linecache
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.registry import Registry

Value = TypeVar("Value")
Off = Callable[[Any], Mapping[str, Any]]
"""A function of a recipe that returns the changes, by dotted name, that switch a trick off."""

_KEY = "fastcifar"
_LONGEST = 10_000
"""Entries that a list may have."""
_GREATEST = 1e30
"""Greatest number of a field, which single precision holds even with the factors of a schedule and of biases."""
_WORDS = {int: "whole number", float: "number", str: "word", Path: "path"}


@dataclass(frozen=True)
class TrickDeclaration:
    """A trick at a field."""

    name: str
    """Fields of a section with the same name are one trick: they are switched off together."""
    off: Any
    """The field's value without the trick, or a function of the recipe that returns all changes (`Off`)."""
    source: str
    """The paper, post or program that it comes from, with the year."""
    of: Any = None
    """The one value of the field that is this trick; None: any value but `off`."""
    why: str = ""
    """Why it is done, in a sentence; a trick of several fields says it at one of them."""
    needs: str = ""
    """The field of the section without whose value this trick does nothing."""

    def changes(self, recipe: object, path: str) -> Mapping[str, Any]:
        """Return the changes of `recipe`, by dotted name, that switch off the trick at the field `path`."""
        return cast(Off, self.off)(recipe) if callable(self.off) else {path: self.off}


@dataclass(frozen=True)
class Declaration:
    """The bounds, marks and tricks of a field."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    """Bounds of the number, or of each number in a list."""
    unit: str = ""
    choices: tuple[str, ...] | None = None
    """The words allowed. Unlike a `Literal`'s they may be many: an error suggests the most similar one."""
    form: str = ""
    """How the help shows a value, where its type does not say it, as in "none|backbone|N"."""
    width: bool = False
    """A number of channels, or several, which a quick run divides."""
    with_batch: bool = False
    """In proportion to the batch, as the rate for a mean loss is."""
    from_one: bool = False
    """What counts is its distance from 1, as of a momentum: a search doubles and halves that."""
    tricks: tuple[TrickDeclaration, ...] = ()


def setting(default: Value, **declared: Any) -> Value:
    """Declare a field with this default and, by keyword, the bounds and marks of `Declaration`."""
    return cast(Value, dataclasses.field(default=default, metadata={_KEY: Declaration(**declared)}))


def trick(
    default: Value,
    *,
    off: Value | Off,
    source: str,
    name: str = "",
    why: str = "",
    needs: str = "",
    lesser: Mapping[str, tuple[Value, Value, str]] | None = None,
    **declared: Any,
) -> Value:
    """Declare a field that holds a trick.

    off: the field's value without the trick, or, if other fields change too, a function of the recipe that returns the
        changes by dotted name.
    source: the paper, post or program that it comes from, with the year.
    name: its name in an ablation; the field's unless given. Fields of a section with the same name are one trick.
    why: why it is done, in a sentence; needed at one of several fields only.
    needs: another field of the section, where this one does nothing while that one is empty or 0.
    lesser: tricks that are single values of the field: by name, the value, its replacement and why it is done.

    The other keywords are those of `setting`.
    """
    tricks = [TrickDeclaration(name, off, source, why=why, needs=needs)]
    tricks += [TrickDeclaration(each, to, source, of, reason) for each, (of, to, reason) in (lesser or {}).items()]
    return setting(default, tricks=tuple(tricks), **declared)


@dataclass(frozen=True)
class Checked:
    """Frozen values that check themselves: each field against its type and bounds, then `_check`. They hold Python's
    numbers and tuples, whatever was given: see `plain`."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for field in dataclasses.fields(self):
            value = checked(self._path(field.name), getattr(self, field.name), hints[field.name], declaration(field))
            if field.init:
                object.__setattr__(self, field.name, value)
        self._check()

    def _check(self) -> None:
        """Check rules between fields; subclasses call `_require`."""

    def _path(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name

    def _refuse(self, name: str, allowed: str) -> None:
        _refuse(self._path(name), getattr(self, name), allowed)

    def _require(self, name: str, ok: object, allowed: str) -> None:
        if not ok:
            self._refuse(name, allowed)


def sections_of(section: Checked, prefix: str = "") -> Iterator[tuple[str, Checked]]:
    """Give a section and those below it, each after the prefix of its fields' dotted names: "" or "optimizer."."""
    yield prefix, section
    for field in dataclasses.fields(section):
        if isinstance(value := getattr(section, field.name), Checked):
            yield from sections_of(value, f"{prefix}{field.name}.")


@dataclass(frozen=True)
class Kind(Checked):
    """One kind of an open section, such as a network: its settings, and in a class variable the maker of the thing
    itself."""

    kinds: ClassVar[Registry[Any]]
    """All kinds of the section."""
    off: ClassVar[Off | None] = None
    """If the kind as a whole is a trick: the changes that replace it."""
    source: ClassVar[str] = ""
    """The source of that trick."""
    why: ClassVar[str] = ""
    """Why it is done, in a sentence."""

    kind: str = dataclasses.field(init=False, default="")
    """The kind of this section; its own fields follow."""


KindClass = TypeVar("KindClass", bound=Kind)


def register(
    base: type[Kind], kind: str, **made_by: str | Callable[..., Any]
) -> Callable[[type[KindClass]], type[KindClass]]:
    """Return a decorator that adds a configuration to the kinds of `base`, with `made_by` as class variables."""

    def add(cls: Any) -> Any:
        check_kind(base, kind, cls)
        for name, target in made_by.items():  # staticmethod: a plain function would become a method
            setattr(cls, name, target if isinstance(target, str) else staticmethod(target))
        cls.kind = kind
        return base.kinds.add(kind, cls)

    return add


def check_kind(base: type[Kind], kind: str, cls: type) -> None:
    """Raise UserError unless `cls` can configure `kind`: a frozen dataclass of a `base`, whose fields have defaults and
    types that a recipe file can hold."""
    if not (isinstance(cls, type) and issubclass(cls, base) and "__dataclass_fields__" in vars(cls)):
        raise UserError(f"{kind} is registered with {cls!r}; allowed: a dataclass(frozen=True) of a {base.__name__}")
    check_fields(kind, cls)


def check_fields(name: str, cls: type, besides: Sequence[str] = (), optional: bool = False) -> None:
    """Raise UserError unless the fields of a dataclass, those in `besides` excepted, have defaults and types that a
    recipe file, or with `optional` a flag, can hold."""
    for field in dataclasses.fields(cls):
        hint = type_hints(cls)[field.name]
        known = _is_known(get_args(hint)[0] if optional and is_optional(hint) else hint)
        if field.name not in besides and field.init and (field.default is dataclasses.MISSING or not known):
            what = "has no default" if field.default is dataclasses.MISSING else f"is of type {hint}"
            allowed = "a default, and a type of int, float, bool, str, a Literal of words or a tuple of these"
            raise UserError(f"the field {field.name} of {name} {what}; allowed: {allowed}")


def declaration(field: dataclasses.Field[Any]) -> Declaration:
    """Return the declaration of a dataclass's field, an empty one if it has none."""
    return field.metadata.get(_KEY, Declaration())


def bounds(declared: Declaration, whole: bool) -> str:
    """Return the bounds in words, "0 to 31 pixels" or "above 0, up to 1"; `whole`: for integers."""
    low, above, high, below = declared.at_least, declared.above, declared.at_most, declared.below
    if whole:
        low = above + 1 if above is not None else low
        high = below - 1 if below is not None else high
        above = below = None
    unit = f" {declared.unit}" if declared.unit else ""
    if above is not None:
        upper = f", up to {high:g}" if high is not None else f", below {below:g}" if below is not None else ""
        return f"above {above:g}{upper}{unit}"
    if below is not None:
        return f"{low or 0:g} up to, not including, {below:g}{unit}"
    return f"{low:,} or more{unit}" if high is None else f"{low or 0:,} to {high:,}{unit}"


def allowed(hint: object) -> str:
    """Return the values of this type in words, for the end of an error line: "a whole number", "4 numbers"."""
    if is_optional(hint):
        return " or ".join(allowed(each) for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is Literal:
        return "one of " * (len(get_args(hint)) > 1) + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if get_origin(kinds[0]) is tuple:
            return f"lists, each of {allowed(kinds[0])}"
        if get_origin(kinds[0]) is Literal:
            return f"words out of {', '.join(get_args(kinds[0]))}"
        if kinds[0] is bool:
            return "words out of true, false"
        if Ellipsis not in kinds and len(set(kinds)) > 1:
            return " and ".join(map(allowed, kinds))
        count = "" if Ellipsis in kinds else f"{len(kinds)} "
        return f"{count}{_WORDS[kinds[0]]}s"
    if hint is bool:
        return "true or false"
    return f"a {_WORDS[hint]}" if hint in _WORDS else "a section of fields"


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, inherited ones too, by field name; none if its file cannot
    be read."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        file = getattr(sys.modules.get(base.__module__), "__file__", None) or ""
        linecache.checkcache(file)
        declared = _classes("".join(linecache.getlines(file))).get(base.__qualname__, [])
        for pair in itertools.pairwise(declared):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = inspect.cleandoc(text)
    return docs


@functools.cache
def _classes(code: str) -> dict[str, list[ast.stmt]]:
    """Return the statements of each class in a module, by qualified name. It parses the module once, where
    `inspect.getsource` does for each class."""
    classes: dict[str, list[ast.stmt]] = {}

    def find(node: ast.AST, prefix: str) -> None:
        for inner in ast.iter_child_nodes(node):
            below = prefix
            if isinstance(inner, ast.ClassDef):
                classes[prefix + inner.name] = inner.body
                below = f"{prefix}{inner.name}."
            elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                below = f"{prefix}{inner.name}.<locals>."
            if isinstance(inner, ast.stmt):
                find(inner, below)

    find(ast.parse(code), "")
    return classes


def checked(path: str, value: Any, hint: Any, declared: Declaration = Declaration()) -> Any:
    """Return `value` as a plain one of the type `hint`; `path` names it in errors.

    Raises UserError for another type, for NaN and infinities, for numbers out of the bounds `declared` or beyond
    1e30, for whole numbers of more than 64 bits and for lists of more than 10,000 entries."""
    refuse_long(path, value)
    value = plain(value)
    if not fits(value, hint):
        _refuse(path, value, allowed(hint))
    given = [each for each in _flat(value) if isinstance(each, int | float)]
    if any(isinstance(number, float) and not math.isfinite(number) for number in given):
        _refuse(path, value, "a finite number")
    whole = float not in (hint, *get_args(hint))
    if not all(_within(number, declared) for number in given):
        _refuse(path, value, bounds(declared, whole) + " each" * isinstance(value, tuple))
    if whole and declared.at_most is declared.below is None and any(abs(number) >= 2**63 for number in given):
        _refuse(path, value, f"a whole number below 2**63, {2**63:,}")
    if not whole and any(abs(number) > _GREATEST for number in given):
        _refuse(path, value, f"a number up to {_GREATEST:g}")
    if declared.choices and value not in declared.choices:
        near = did_you_mean(value, declared.choices)
        raise UserError(f"{path} is {brief(value)}{near}; allowed: {', '.join(declared.choices)}")
    return value


def refuse_long(path: str, value: object) -> None:
    """Raise UserError for a list with more entries than a field may have; `path` names the field."""
    if isinstance(value, tuple | list) and len(value) > _LONGEST:
        raise UserError(f"{path} has {len(value):,} entries; allowed: up to {_LONGEST:,}")


def _refuse(path: str, value: object, allowed: str) -> None:
    value = str(value) if isinstance(value, os.PathLike) else value
    raise UserError(f"{path} is {brief(value)}; allowed: {allowed}")


def plain(value: Any) -> Any:
    """Return `value` with Python's numbers and words for those of numpy and torch, and tuples for lists and arrays, so
    that it can be compared, written to JSON and computed with like any other."""
    if type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "tolist"):  # an array, a tensor or a number of numpy's
        value = value.tolist()
    if isinstance(value, tuple | list):
        try:
            return tuple(map(plain, value))
        except RecursionError:  # nested so deep that it is no field's value
            return value
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def fits(value: object, hint: Any) -> bool:
    """Return True if `value` is of this type; a whole number is a number too."""
    if is_optional(hint):
        return value is None or any(fits(value, each) for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)  # words alone: a type of numpy equals its name
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        items = item_hints(hint, len(value))
        return items is not None and all(map(fits, value, items))
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**1023)
    return type(value) is hint if hint in (int, str, bool) else isinstance(value, hint)


def is_optional(hint: Any) -> bool:
    """Return whether a type is one of several, as in `int | None`; None stands for a value that is not given."""
    return get_origin(hint) in (UnionType, Union)


def item_hints(hint: Any, count: int) -> tuple[Any, ...] | None:
    """Return the types of the items in a tuple of this type with `count` items; None if it has another length."""
    kinds = get_args(hint)
    if Ellipsis in kinds:
        return kinds[:1] * count
    return kinds if len(kinds) == count else None


def _is_known(hint: Any) -> bool:
    if get_origin(hint) is tuple:
        return all(item is Ellipsis or _is_known(item) for item in get_args(hint))
    return hint in _WORDS or hint is bool or get_origin(hint) is Literal


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _within(number: float, declared: Declaration) -> bool:
    low, above, high, below = declared.at_least, declared.above, declared.at_most, declared.below
    checks = ((ge, low), (gt, above), (le, high), (lt, below))
    return all(bound is None or holds(number, bound) for holds, bound in checks)


type_hints = functools.cache(get_type_hints)
"""The types of a dataclass's fields, by name."""
