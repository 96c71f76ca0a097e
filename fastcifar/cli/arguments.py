"""Command-line arguments typed by tyro from a dataclass; every refusal is a UserError of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from fastcifar.errors import UserError
from fastcifar.recipes import Recipe, get_recipe, quick
from fastcifar.recipes.fields import allowed, did_you_mean

Options = TypeVar("Options")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
"""A flag without a value, off unless given."""


def parse(args: Sequence[str], default: Options, prog: str) -> Options:
    """The options in `args`: a dataclass like `default`, which holds the value of every flag that is not given.

    `--help` prints the help and raises SystemExit(0). Raises UserError for anything that cannot be read, with the flag
    and what is allowed; tyro itself would draw a box of several lines.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            options, rest = tyro.cli(type(default), args=args, default=default, prog=prog, return_unknown_args=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _refusal(stop, _flags(type(default)), args, prog) from None
    if rest:
        raise _unknown(rest, _flags(type(default)), prog)
    return options


def parse_with_recipe(args: Sequence[str], options: Callable[..., Options], prog: str) -> Options:
    """The same for a dataclass with the fields `recipe`, `train_size` and `settings`. --recipe and --quick are read
    first: they give the other fields their defaults."""
    name = last_given(args, "--recipe") or "davidnet"
    recipe, train_size = get_recipe(name), None
    if last_given(args, "--quick") is not None:
        recipe, train_size = quick(recipe)
    return parse(args, options(recipe=name, train_size=train_size, settings=recipe), prog)


def last_given(args: Sequence[str], flag: str) -> str | None:
    """The last value given to `flag`, read before the other flags can be; None where the flag is absent."""
    values = [words[0] if words else "" for given, words in _given(args) if given == flag]
    return values[-1] if values else None


def _given(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag in `args`, spelled with hyphens, with the words up to the next flag."""
    flag, words = "", []
    for word in args:
        if word.startswith("--"):
            if flag:
                yield flag, words
            flag, equals, value = word.partition("=")
            flag, words = flag.replace("_", "-"), [value] if equals else []
        else:
            words.append(word)
    if flag:
        yield flag, words


def _flags(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every flag with the type hint of its value. A recipe's own fields stand bare, its sections' behind a dot."""
    flags = {}
    for name, hint in get_type_hints(cls).items():
        if not any(field.name == name for field in dataclasses.fields(cls)):
            continue  # a class variable
        name = name.replace("_", "-")
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            flags |= _flags(hint, "" if hint is Recipe else f"{prefix}{name}.")
            continue
        if get_origin(hint) in (UnionType, Union):  # X | None: None stands for a flag that is not given
            hint = get_args(hint)[0]
        flags[f"--{prefix}{name}"] = hint
        if hint is bool and prefix:
            flags[f"--{prefix}no-{name}"] = hint
    return flags


def _refusal(stop: SystemExit, flags: dict[str, Any], args: Sequence[str], prog: str) -> UserError:
    """Why tyro stopped: a refusal of our own, which it met while it built the options, or a value of the wrong type."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__context__
    for flag, words in _given(args):
        hint = flags.get(flag)
        if hint is None or hint is bool or _fits(words, hint):
            continue
        said = f"{flag} is {' '.join(words)!r}" if words else f"{flag} has no value"
        return UserError(f"{said}; allowed: {allowed(hint)}")
    return UserError(f"cannot read the arguments; '{prog} --help' lists what is allowed")


def _fits(words: list[str], hint: Any) -> bool:
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        counted = Ellipsis in kinds or len(words) >= len(kinds)
        return counted and all(_fits([word], kinds[0]) for word in words)
    if not words:
        return False
    if get_origin(hint) is Literal:
        return words[0] in get_args(hint)
    try:
        hint(words[0])
    except ValueError:
        return False
    return True


def _unknown(rest: Sequence[str], flags: Iterable[str], prog: str) -> UserError:
    see_help = f"; '{prog} --help' lists what is allowed"
    for word in rest:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            return UserError(f"unknown flag {flag}{_nearest(flag, flags) or see_help}")
    return UserError(f"unexpected argument {rest[0]!r}{see_help}")


def _nearest(flag: str, flags: Iterable[str]) -> str:
    """The flag probably meant: a field without its section (`--lr`), the same words in another order
    (`--no-model.norm`), or else what is spelled nearest."""
    name = flag.lstrip("-").replace("_", "-")
    known = [flag.removeprefix("--") for flag in flags]
    meant = [flag for flag in known if flag.rpartition(".")[2] == name or _words(flag) == _words(name)]
    return f"; did you mean '--{meant[0]}'?" if meant else did_you_mean(name, known, prefix="--")


def _words(flag: str) -> list[str]:
    return sorted(flag.replace(".", "-").split("-"))
