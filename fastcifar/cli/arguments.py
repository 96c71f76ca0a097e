"""The meaning of the words of a command line. The fields of recipes and experiments are read here, in the grammar of
recipe files, all other flags by tyro, from a dataclass. A refusal is a UserError of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tyro

from fastcifar.catalogue import dataset_for
from fastcifar.cli.help import SHOWN, help_text
from fastcifar.cli.options import CommandOptions, flag_of, in_full, option_fields, own_fields, refuse_absent
from fastcifar.errors import RenamedWarning, UserError, did_you_mean
from fastcifar.output import user_path
from fastcifar.recipes import (
    DEFAULT_RECIPE,
    NETWORKS,
    OPTIMIZERS,
    QUICK_TRAIN_SIZE,
    Recipe,
    change,
    get_recipe,
    narrow,
    quick,
)
from fastcifar.recipes.declare import is_optional, type_hints
from fastcifar.recipes.legacy import GONE, modern_path
from fastcifar.recipes.text import allowed, field_hints, read_value
from fastcifar.registry import import_plugin

Options = TypeVar("Options", bound=CommandOptions)


def quick_recipe(recipe: Recipe) -> Recipe:
    """Return what --quick makes of `recipe`."""
    return quick(recipe)[0]


def parse(
    args: Sequence[str], default: Options, prog: str, *, description: str | None = None, usage: str = ""
) -> Options:
    """Return the options in `args`: a dataclass like `default`, which holds the value of every flag that is not given.

    The modules in --plugin are imported. `--help` and `--help-all` print the help, with the `description` (the
    docstring of the class unless given) under the `usage`, and raise SystemExit(0). Raises UserError for anything that
    cannot be read, with the flag and what is allowed; tyro itself would draw a box of several lines.
    """
    import_plugins(args)
    if asks_help(args):
        print(help_text(default, prog, usage, description, everything="--help-all" in args), end="")
        raise SystemExit(0)
    flags = _flags(default)
    how = {"prog": prog, "return_unknown_args": True, "registry": SHOWN, "add_help": False}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            options, rest = tyro.cli(type(default), args=args, default=default, **how)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _refusal(stop, flags, args, prog) from None
    if rest:
        raise _unknown(rest, flags, prog)
    refuse_absent(options)
    given = {each.name: getattr(options, each.name) for each in dataclasses.fields(options)}
    paths = {
        name: user_path("" if last_given(args, flag_of(name)) == "" else path, flag_of(name))  # Path makes "." of ""
        for name, path in given.items()
        if isinstance(path, Path)
    }
    return dataclasses.replace(options, **paths)


def parse_with_recipe(
    args: Sequence[str],
    options: Callable[..., Options],
    prog: str,
    *,
    shorten: Callable[[Recipe], Recipe] | None = quick_recipe,
    **defaults: Any,
) -> Options:
    """Return the options in `args` of a class of `RecipeOptions`.

    First --plugin is read, then the recipe (see `read_recipe`), then the command's own flags, with `defaults`.
    """
    name = last_given(args, "--recipe") or ""
    recipe, rest = read_recipe(args, name, shorten=shorten)
    usual = {section: getattr(recipe, section).kind for section in _OPEN}
    usual |= {"dataset": dataset_for(name, recipe.name), **defaults}
    return parse(rest, options(recipe=name or recipe.name, settings=recipe, **usual), prog)


def read_recipe(
    args: Sequence[str],
    name: str,
    *,
    default: Recipe | None = None,
    shorten: Callable[[Recipe], Recipe] | None = quick_recipe,
    quick_default: Recipe | None = None,
) -> tuple[Recipe, list[str]]:
    """Return the recipe that the flags in `args` ask for, and the words that say something else.

    name: a named recipe or a TOML file; empty: `default`, or with --quick `quick_default`, where there is one.
    shorten: what --quick makes of a recipe; None: the command has no such flag.

    First come the things that other defaults depend on: the recipe, --network and --optimizer, which take another kind
    with its own defaults, and --quick. Then every other field.
    """
    import_plugins(args)
    is_quick = last_given(args, "--quick") is not None
    short = quick_default if is_quick and not name else None
    recipe = get_recipe(name) if name else short or default or get_recipe(DEFAULT_RECIPE)
    kinds = {section: kind for section in _OPEN if (kind := last_given(args, f"--{section}"))}
    recipe = _with_kinds(recipe, kinds, args)
    if short and "network" in kinds:
        recipe = dataclasses.replace(recipe, network=narrow(recipe.network))
    elif is_quick and shorten and not short:
        recipe = shorten(recipe)
    changes, rest = read_fields(field_hints(recipe), args)
    return _changed(recipe, changes), rest


def asks_help(args: Sequence[str]) -> bool:
    """Return whether `args` ask for the help of a command, be it that of all flags."""
    return not {"-h", "--help", "--help-all"}.isdisjoint(args)


def import_plugins(args: Sequence[str]) -> None:
    """Import the modules in --plugin."""
    for flag, words in map(_read, groups(args)):
        if flag == "--plugin":
            if not words or not words[0]:
                raise UserError("--plugin has no value; allowed: a module, as in package.module")
            import_plugin(words[0])


def quick_train_size(args: Sequence[str]) -> int | None:
    """Return the training images of --quick; None where that is not given."""
    return None if last_given(args, "--quick") is None else QUICK_TRAIN_SIZE


def take_free_words(args: Sequence[str], hints: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the words in `args` that belong to no flag, and all others. `hints` are the types of options and fields by
    name; what follows any other flag belongs to it."""
    flags = {flag_of(name): hint for name, hint in hints.items()}
    free, rest = [], []
    for group in groups(args):
        flag, _ = _read(group)
        hint = flags.get(flag)
        is_switch = hint is bool and group[1:2] not in (["true"], ["false"])
        has_value = not is_switch and "=" not in (group or [""])[0]
        takes_all = hint is None or (get_origin(hint) is tuple and flag != "--plugin")
        taken = 0 if not flag else len(group) if takes_all else 1 + has_value
        free += group[taken:]
        rest += group[:taken]
    return free, rest


def take_words_of(args: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """Return the words that follow `flag` in `args`, and all others."""
    words, rest = [], []
    for group in groups(args):
        if _read(group)[0] == flag:
            words += _read(group)[1]
            if not words:
                raise UserError(f"{flag} has no value; allowed: FIELD=VALUE, as in optimizer.lr=0.2")
        else:
            rest += group
    return words, rest


def last_given(args: Sequence[str], flag: str) -> str | None:
    """Return the last value given to `flag`, read before the other flags can be; None where the flag is absent."""
    values = [words[0] if words else "" for given, words in map(_read, groups(args)) if given == flag]
    return values[-1] if values else None


def groups(args: Sequence[str]) -> list[list[str]]:
    """Split `args` before each flag: the first words, which belong to none, then each flag with the words up to the
    next."""
    groups: list[list[str]] = [[]]
    for word in args:
        if word.startswith("--") or word in ("-h", "-o"):
            groups.append([])
        groups[-1].append(word)
    return groups


def _read(group: Sequence[str]) -> tuple[str, list[str]]:
    """Return the flag, spelled with hyphens, and the words of one of `groups`; --flag=word is a word too."""
    if not group or not group[0].startswith("-"):
        return "", list(group)
    flag, equals, value = group[0].partition("=")
    return in_full(flag), [value] * bool(equals) + list(group[1:])


def read_fields(
    hints: Mapping[str, Any], args: Sequence[str], switches: Container[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the flags that name fields, whose types by dotted name are `hints`, and all other words of
    `args`. A flag of `switches` alone is true."""
    fields = {flag_of(name): (name, hint) for name, hint in hints.items()}
    values: dict[str, Any] = {}
    rest: list[str] = []
    for group in groups(args):
        flag, words = _read(group)
        if flag not in fields:
            rest += group
            continue
        name, hint = fields[flag]
        if not words and name in switches:
            words = ["true"]
        if not words:
            raise UserError(f"{flag} has no value; allowed: {allowed(hint)}")
        if get_origin(hint) is not tuple and len(words) > 1:
            raise UserError(f"unexpected argument {words[1]!r} after {flag} {words[0]}; allowed: {allowed(hint)}")
        if hint == tuple[str, ...] and name in values:  # of other flags the last counts, after those of a script
            raise UserError(f"{flag} is given twice; allowed: once, with all its values after it")
        values[name] = read_value(words, hint)
    return values, rest


def _with_kinds(recipe: Recipe, kinds: Mapping[str, str], args: Sequence[str]) -> Recipe:
    """Return `recipe` with other kinds. Where it does not go with one as it is, as early crops do not with a network
    that takes whole images, the fields in `args` that every recipe has may help."""
    try:
        return _changed(recipe, kinds)
    except UserError:
        fields = {name: hint for name, hint in field_hints(recipe).items() if not _is_open(name)}
        return _changed(recipe, {**kinds, **read_fields(fields, args)[0]})


def _is_open(name: str) -> bool:
    return name.partition(".")[0] in _OPEN


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with other values in some fields; refusals name the field alone."""
    try:
        return change(recipe, changes, "flags")
    except UserError as error:
        raise UserError(str(error).removeprefix("flags: ")) from None


def _flags(options: Any) -> dict[str, Any]:
    """Return every flag of the dataclass `options` with the type hint of its value, those of a recipe in it too."""
    flags = {}
    hints = type_hints(type(options))
    for name in (field.name for field in option_fields(options)):
        hint = hints[name]
        if name == "settings":
            flags |= {flag_of(field): hint for field, hint in field_hints(options.settings).items()}
        elif name == "experiment":
            flags |= {flag_of(field): hint for field, hint in own_fields(type(options.experiment)).items()}
        else:
            flags[flag_of(name)] = hint
    return flags


_OPEN: dict[str, Mapping[str, Any]] = {"network": NETWORKS, "optimizer": OPTIMIZERS}
"""The sections of a recipe that are of one kind of several."""
_REPLACED = {
    "set": "a flag for each field, as in --epochs 5",
    "split": "--holdout third",
    "verify": "the command 'fastcifar verify'",
}
"""Flags of earlier versions, and what took their place."""


def _refusal(stop: SystemExit, flags: dict[str, Any], args: Sequence[str], prog: str) -> UserError:
    """Say why tyro stopped: a refusal of our own, which it met while it built the options, or a value of the wrong
    type."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__context__
    for flag, words in map(_read, groups(args)):
        hint = flags.get(flag)
        if hint is not None and hint is not bool and not _fits(words, hint):
            given = " ".join(words if get_origin(hint) is tuple else words[:1])  # others are no values of the flag
            said = f"{flag} is {given!r}" if words else f"{flag} has no value"
            return UserError(f"{said}; allowed: {allowed(hint)}")
    return UserError(f"cannot read the arguments; '{prog} --help-all' lists what is allowed")


def _fits(words: list[str], hint: Any) -> bool:
    if is_optional(hint):
        return any(_fits(words, each) for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple:
        return bool(words) and all(_fits([word], get_args(hint)[0]) for word in words)
    if not words:
        return False
    if get_origin(hint) is Literal:
        return words[0] in get_args(hint)
    try:
        hint(words[0])
    except ValueError:
        return False
    return True


def _unknown(rest: Sequence[str], flags: Mapping[str, Any], prog: str) -> UserError:
    see_help = f"; '{prog} --help-all' lists what is allowed"
    for word in rest:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            return UserError(f"unknown flag {flag}{_meant(flag, flags) or see_help}")
    return UserError(f"unexpected argument {rest[0]!r}{see_help}")


def _meant(flag: str, flags: Mapping[str, Any]) -> str:
    """Say which flag was probably meant: a field by its older name, a switch turned off (`--network.no-norm`), a field
    of another kind, one without its section (`--lr`), the same words in another order, or what is spelled nearest."""
    name = flag.lstrip("-").replace("_", "-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RenamedWarning)
        renamed = flag_of(modern_path(name.replace("-", "_"), "")).removesuffix(".kind")
    if tuple(name.replace("-", "_").split(".")) in GONE:
        return ": it was removed"
    if name in _REPLACED:
        return f": it was removed; allowed: {_REPLACED[name]}"
    if renamed != flag_of(name) and renamed in flags:
        return f"; did you mean '{renamed}'?"
    section, _, field = renamed.removeprefix("--").rpartition(".")
    positive = renamed.removesuffix(field) + field.removeprefix("no-")
    if field.startswith("no-") and flags.get(positive) is bool:
        return f"; did you mean '{positive} false'?"
    kinds = _OPEN.get(section, {}).items()
    owners = [kind for kind, config in kinds if field.replace("-", "_") in config.__dataclass_fields__]
    if owners:
        return f"; allowed: with --{section} {' or '.join(owners)}"
    known = [flag.removeprefix("--") for flag in flags]
    meant = [flag for flag in known if flag.rpartition(".")[2] == name or _parts(flag) == _parts(name)]
    return f"; did you mean '--{meant[0]}'?" if meant else did_you_mean(name, known, prefix="--")


def _parts(flag: str) -> list[str]:
    return sorted(flag.replace(".", "-").split("-"))
