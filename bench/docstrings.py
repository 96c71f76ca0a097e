"""The project's docstrings as Markdown, for the reference: lists of arguments, `name: what it is`, become lists."""

from __future__ import annotations

import re
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]  (an extra)

from bench.site import apart

_ARGUMENT = re.compile(r"(\**\w+(?:, \**\w+)*): (?=\S)")


def in_markdown(text: str, names: set[str]) -> str:
    """Return a docstring with the paragraphs that say what arguments are as lists; `names` are the arguments."""
    return "\n\n".join(_paragraph(part, names) for part in apart(text).split("\n\n"))


def _paragraph(text: str, names: set[str]) -> str:
    lines = text.splitlines()
    starts = [match for line in lines if not line.startswith(" ") for match in [_ARGUMENT.match(line)]]
    if not starts or not all(match and set(match[1].replace("*", "").split(", ")) <= names for match in starts):
        return text
    return "\n".join(line if line.startswith(" ") else _ARGUMENT.sub(r"- **`\1`**: ", line, count=1) for line in lines)


class Arguments(griffe.Extension):
    """Rewrites the docstrings of functions and classes, and shows a setting's default as what it is."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        call = attr.value
        if isinstance(call, griffe.ExprCall) and call.function.canonical_name in ("setting", "trick"):
            attr.value = call.arguments[0]  # pyright: ignore[reportAttributeAccessIssue]  (positional)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring and (obj.is_function or obj.is_class):
            made_by = obj if obj.is_function else obj.members.get("__init__")
            names = {each.name for each in getattr(made_by, "parameters", ())} | set(obj.members)
            obj.docstring.value = in_markdown(obj.docstring.value, names)
