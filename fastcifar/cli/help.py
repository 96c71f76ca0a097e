"""The help of a command: its flags, those that people use every day or all, from the dataclass of its options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from fastcifar import escape
from fastcifar.catalogue import DATASETS
from fastcifar.cli.options import SHARED, CommandOptions, RecipeOptions, flag_of, option_fields, own_fields
from fastcifar.cli.streams import wrapped
from fastcifar.recipes import NETWORKS, OPTIMIZERS, Recipe
from fastcifar.recipes.declare import Checked, declaration, field_docs, is_optional, sections_of, type_hints
from fastcifar.recipes.text import with_all_transforms

GROUPS = {
    "Run": (
        *("recipe", "network", "optimizer", "quick", "seed", "runs", "device", "threads", "parallel"),
        *("eval_every", "evaluate_at_start", "diagnose", "profile", "plugin"),
    ),
    "Data": (
        *("dataset", "data_dir", "holdout", "fold", "train_size", "train_fraction", "balanced", "subset_seed"),
        *("classes", "coarse", "resize", "resident", "mirror", "synthetic_fallback"),
    ),
    "Start": (
        *("cold_start", "warm_start", "start", "shrink", "perturb", "shrink_layers", "reset_head", "fit_head"),
        *("reset", "resume"),
    ),
    "Keep and show": ("out", "plot", "track", "keep", "keep_weights", "checkpoint_every", "quiet", "json"),
}
"""Options of commands that train, in the order in which the help shows them; what is in none is a command's own, as is
what it names in `own`."""
EVERYDAY = {
    *("recipe", "network", "optimizer", "quick", "seed", "runs", "device", "dataset", "data_dir", "holdout"),
    *("warm_start", "resume", "out", "plot", "track", "epochs", "batch_size", "optimizer.lr"),
}
"""The options and fields of recipes that --help shows, besides a command's own; --help-all shows every one."""
SHOWN = ConstructorRegistry()
"""How tyro takes each dataclass of options apart; given to `tyro.cli`."""
_LISTED: dict[str, Callable[[], Mapping[str, str]]] = {
    "network": lambda: {kind: _summary(config) for kind, config in NETWORKS.items()},
    "optimizer": lambda: {kind: _summary(config) for kind, config in OPTIMIZERS.items()},
    "dataset": lambda: {name: entry.summary for name, entry in DATASETS.items()},
}
"""Flags whose help names what is registered, and by --help-all each with a line."""
_LONGEST = 100  # characters of a field's value in the help
_COLUMN = 28
"""Where what is said of a flag begins."""


class _Flag(NamedTuple):
    """A flag in the help."""

    group: str
    name: str
    typed: str
    said: str
    listed: Mapping[str, str]
    """What its value may name, each with a line."""


@SHOWN.struct_rule
def _take_apart(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tell tyro which flags are its own: those of a recipe and of an experiment are read before."""
    options = info.default
    if not isinstance(options, CommandOptions):
        return None
    hints = get_type_hints(type(options), include_extras=True)
    names = [field.name for field in option_fields(options) if field.name not in ("settings", "experiment")]
    fields = (StructFieldSpec(name, hints[name], getattr(options, name), "") for name in names)
    return StructConstructorSpec(partial(dataclasses.replace, options), tuple(fields))


def help_text(options: CommandOptions, prog: str, usage: str, description: str | None, everything: bool) -> str:
    """Return the help of a command with these `options`, its defaults: all flags if `everything`, else those of every
    day and the command's own.

    usage: the command with the words that it takes; empty: it follows from the options.
    description: what the command does; None: the docstring of the class.
    """
    flags = [*_flags(options)]
    if is_short := not everything and isinstance(options, RecipeOptions):
        usual = EVERYDAY.union(getattr(options, "everyday", ()))
        flags = [each for each in flags if each.name in usual or each.group in (_POSITIONS, _OWN)]
    usage = usage or " ".join([prog, *(each.typed for each in flags if each.group == _POSITIONS)])
    lines = [f"usage: {usage} [OPTIONS]", ""]
    lines.append(wrapped(description or inspect.getdoc(type(options)) or ""))
    for group in dict.fromkeys(each.group for each in flags):
        lines += ["", f"{group}:", *(_shown(each, is_short) for each in flags if each.group == group)]
    if is_short:
        fields = "Every field of the recipe is a flag too, as in --ema.every 5. " * any(map(_is_of_recipe, flags))
        lines += ["", wrapped(f"{fields}'{prog} --help-all' shows every flag.")]
    return "\n".join(lines) + "\n"


_POSITIONS, _OWN, _RECIPE = "Arguments", "Options", "Recipe"


def _is_of_recipe(flag: _Flag) -> bool:
    return flag.group.startswith(_RECIPE)


def _flags(options: CommandOptions) -> Iterator[_Flag]:
    """Give the flags of `options` in the order of the help: the command's own first, the fields of its recipe last."""
    trains = isinstance(options, RecipeOptions)
    fields = {field.name: field for field in option_fields(options)}
    experiment = getattr(options, "experiment", None)
    hints, docs = get_type_hints(type(options), include_extras=True), field_docs(type(options))
    if experiment is not None:  # what it says of options that it has as fields too
        also = SHARED & {each.name for each in dataclasses.fields(experiment)}
        docs |= {name: doc for name, doc in field_docs(type(experiment)).items() if name in also}
    apart = getattr(options, "own", ())
    known = {name: group for group, names in GROUPS.items() for name in names if trains and name not in apart}
    own = [name for name in fields if name not in (*known, "settings", "experiment")]
    for name in sorted(own, key=lambda name: not _is_positional(hints[name])):
        yield _option(name, _OWN, hints[name], getattr(options, name), docs.get(name, ""))
    if experiment is not None:
        yield from _fields(experiment, "", _OWN, own_fields(type(experiment)))
    for name, group in known.items():
        if name in fields:
            yield _option(name, group, hints[name], getattr(options, name), docs.get(name, ""))
    if "settings" in fields:
        recipe: Recipe = getattr(options, "settings")  # noqa: B009  (of `RecipeOptions`)
        for prefix, section in sections_of(with_all_transforms(recipe)):
            group = f"{_RECIPE}, {flag_of(prefix[:-1])[2:]}" if prefix else _RECIPE
            names = [each.name for each in dataclasses.fields(section) if each.init]
            names = [name for name in names if not isinstance(getattr(section, name), Checked)]
            yield from _fields(section, prefix, group, names)


def _option(name: str, group: str, hint: Any, value: object, doc: str) -> _Flag:
    """Return the flag of an option, whose type may say how it is shown."""
    how = [mark for mark in getattr(hint, "__metadata__", ()) if hasattr(mark, "help_behavior_hint")]
    plain = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    metavar = next((mark.metavar for mark in how if mark.metavar), "" if plain is bool else _metavar(plain))
    default = next((mark.help_behavior_hint for mark in how if mark.help_behavior_hint is not None), None)
    if default is None:
        default = "" if value in (None, "", ()) else f"(default: {_words(value)})"
    if _is_positional(hint):
        several = " ..." * (get_origin(plain) is tuple)
        return _Flag(_POSITIONS, name, f"{metavar}{several}", f"{doc} {default}", {})
    listed = _LISTED[name]() if name in _LISTED else {}
    metavar = "NAME" if listed else metavar
    own = f"no-{name}" if plain is bool and value is True else name  # it turns off what is on
    flags = ", ".join([*(each for mark in how for each in mark.aliases or ()), flag_of(own)])
    return _Flag(group, name, f"{flags} {metavar}".rstrip(), f"{doc} {default}", listed)


def _is_positional(hint: Any) -> bool:
    return Positional in getattr(hint, "__metadata__", ())


def _fields(section: Checked, prefix: str, group: str, names: Collection[str]) -> Iterator[_Flag]:
    """Give the flags of fields of a section of a recipe, or of an experiment."""
    hints, docs, fields = type_hints(type(section)), field_docs(type(section)), section.__dataclass_fields__
    for name in names:
        metavar = declaration(fields[name]).form or _metavar(hints[name])
        said = f"{docs.get(name, '')} (default: {_words(getattr(section, name))})"
        yield _Flag(group, f"{prefix}{name}", f"{flag_of(prefix + name)} {metavar}", said, {})


def _shown(flag: _Flag, is_short: bool) -> str:
    """Return the lines on a flag."""
    indent = " " * _COLUMN
    start = f"  {flag.typed:<{_COLUMN - 4}}  "
    lines = [] if len(start) == _COLUMN else [start.rstrip()]
    said = " ".join(flag.said.split())
    if is_short and flag.listed:
        said += f" One of: {', '.join(flag.listed)}."
    lines.append(wrapped(said, indent if lines else start, indent).rstrip() or start.rstrip())
    if not is_short:
        lines += [wrapped(f"{name}: {line}", indent, f"{indent}  ") for name, line in flag.listed.items()]
    return "\n".join(lines)


def _summary(config: type) -> str:
    """Return the docstring of a configuration up to the end of its first statement."""
    return re.split(r"[;.:](?:\s|$)(?![^(]*\))", " ".join((inspect.getdoc(config) or "").split()))[0]


def _metavar(hint: Any) -> str:
    """Return how the help shows a value of a type."""
    if is_optional(hint):
        return _metavar(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        items = [item for item in get_args(hint) if item is not Ellipsis]
        return " ".join(map(_metavar, items)) + (" ..." if Ellipsis in get_args(hint) else "")
    return "{true,false}" if hint is bool else hint.__name__.upper()


def _words(value: object) -> str:
    """Return a value as it is typed after its flag."""
    if isinstance(value, tuple):
        return " ".join(map(_words, value)) or "[]"
    return str(value).lower() if isinstance(value, bool) else escape.shown(value, _LONGEST)
