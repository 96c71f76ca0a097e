"""The page of tricks, written from the fields' declarations."""

from __future__ import annotations

from collections.abc import Iterator

from fastcifar.recipes.declare import Kind, field_docs
from fastcifar.recipes.networks import NETWORKS
from fastcifar.recipes.optimizers import OPTIMIZERS
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import to_text, with_all_transforms
from fastcifar.recipes.tricks import Declared, declared_tricks, tricks


def tricks_page(recipe: Recipe | None = None) -> str:
    """Return Markdown with a part for each trick that `recipe` uses, or unless given for each that there is: its
    fields, the kinds that have them, what they mean, their values with the trick and without it, and the source."""
    declared = list(_of_all_kinds() if recipe is None else declared_tricks(recipe))
    if recipe is not None:
        used = tricks(recipe)
        declared = [each for each in declared if each.name in used and each.applies]
    names = dict.fromkeys(each.name for each in declared)
    lines = ["# Tricks" if recipe is None else f"# Tricks of {recipe.name}", ""]
    lines += ["What a recipe's fields declare; `fastcifar ablate` measures what each is worth."]
    for name in names:
        fields: dict[tuple[str, ...], list[str]] = {}
        for each in declared:
            if each.name == name:
                fields.setdefault(_said(each), []).append(each.section.kind if isinstance(each.section, Kind) else "")
        lines += ["", f"## {name}"]
        for (path, doc, value, source), kinds in fields.items():
            of = f" ({', '.join(kinds)})" if all(kinds) else ""
            lines += ["", f"`{path}`{of}: {doc}", "", f"- {value}", f"- Source: {source}"]
    return "\n".join(lines) + "\n"


def _said(each: Declared) -> tuple[str, str, str, str]:
    """The field, what it means, its values, and the source."""
    trick, kind = each.trick, type(each.section)
    off = "several fields change" if callable(trick.off) else f"`{to_text(trick.off)}`"
    doc = field_docs(kind).get(each.path.rpartition(".")[2], kind.__doc__ or "")
    value = to_text(each.value if trick.of is None else trick.of)
    values = "Off by default" if f"`{value}`" == off else f"Value `{value}`, without the trick {off}"
    return each.path, " ".join(doc.split()), values, trick.source


def _of_all_kinds() -> Iterator[Declared]:
    for section, kinds in (("network", NETWORKS), ("optimizer", OPTIMIZERS)):
        for kind in kinds.values():
            yield from declared_tricks(kind(), f"{section}.")
    for each in declared_tricks(with_all_transforms(Recipe())):
        if each.path.partition(".")[0] not in ("network", "optimizer"):
            yield each
