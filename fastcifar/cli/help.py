"""How the help shows the flags of a command: tyro's, of options that hold recipes and experiments."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from fastcifar import escape
from fastcifar.catalogue import DATASETS
from fastcifar.cli.options import SHARED, CommandOptions, option_fields, own_fields
from fastcifar.experiments import Experiment
from fastcifar.recipes import NETWORKS, OPTIMIZERS, Recipe
from fastcifar.recipes.declare import Checked, declaration, field_docs, is_optional
from fastcifar.recipes.text import with_all_transforms

SHOWN = ConstructorRegistry()
"""How tyro takes each dataclass of options apart; given to `tyro.cli`."""
_LISTED: dict[str, Callable[[], Mapping[str, str]]] = {
    "network": lambda: {kind: _summary(config) for kind, config in NETWORKS.items()},
    "optimizer": lambda: {kind: _summary(config) for kind, config in OPTIMIZERS.items()},
    "dataset": lambda: {name: entry.summary for name, entry in DATASETS.items()},
}
"""Flags whose help names what is registered, each with a line."""
_LONGEST = 100  # characters of a field's value in the help


def _summary(config: type) -> str:
    """Return the docstring of a configuration up to the end of its first statement."""
    return re.split(r"[;.:](?:\s|$)(?![^(]*\))", " ".join((inspect.getdoc(config) or "").split()))[0]


@SHOWN.struct_rule
def _show(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tell tyro which flags a dataclass has. A recipe's are for the help alone: they are read before."""
    values = with_all_transforms(info.default) if isinstance(info.default, Recipe) else info.default
    if not dataclasses.is_dataclass(values) or isinstance(values, type):
        return None
    cls, is_section = type(values), not isinstance(values, CommandOptions)
    hints, docs = get_type_hints(cls, include_extras=True), field_docs(cls)
    fields = option_fields(values)
    if isinstance(values, Experiment):
        fields = [field for field in fields if field.name in own_fields(type(values))]
    experiment = getattr(values, "experiment", None)
    if experiment:  # what it says of options that it has as fields too
        docs |= {name: doc for name, doc in field_docs(type(experiment)).items() if name in SHARED}
    shown = []
    for field in sorted(fields, key=lambda field: (field.name != "experiment") + (field.name == "settings")):
        value, hint, doc = getattr(values, field.name), hints[field.name], " ".join(docs.get(field.name, "").split())
        if not is_section and field.name in _LISTED:
            doc += f" (default: {value})" + "".join(f"\n{name}: {said}" for name, said in _LISTED[field.name]().items())
            hint = _word("NAME", "")
        if is_section and not isinstance(value, Checked):
            if not field.init:
                continue  # the kind of a network, which is a flag of its own
            default = f"(default: {_words(value)})"
            hint, value = _word(declaration(field).form or _metavar(hint), default), ""
        shown.append(StructFieldSpec(field.name, hint, value, doc))
    return StructConstructorSpec((lambda **_: info.default) if is_section else cls, tuple(shown))


def _word(metavar: str, default: str) -> Any:
    """Return the type of a flag that is shown like this."""
    return Annotated[str, arg(metavar=metavar, help_behavior_hint=default)]


def _metavar(hint: Any) -> str:
    """Return how the help shows a value of a section's field."""
    if is_optional(hint):
        return _metavar(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        items = [item for item in get_args(hint) if item is not Ellipsis]
        return " ".join(map(_metavar, items)) + (" ..." if Ellipsis in get_args(hint) else "")
    return "{true,false}" if hint is bool else hint.__name__.upper()


def _words(value: object) -> str:
    """Return a value of a section's field as it is typed after its flag."""
    if isinstance(value, tuple):
        return " ".join(map(_words, value)) or "[]"
    return str(value).lower() if isinstance(value, bool) else escape.shown(value, _LONGEST)
