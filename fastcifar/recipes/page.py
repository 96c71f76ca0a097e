"""The page of tricks, written from the fields' declarations."""

from __future__ import annotations

from collections.abc import Iterator

from fastcifar.escape import code_in_markdown, in_markdown
from fastcifar.recipes.declare import Kind, field_docs
from fastcifar.recipes.networks import NETWORKS
from fastcifar.recipes.optimizers import OPTIMIZERS
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import to_text, with_all_transforms
from fastcifar.recipes.tricks import FieldTrick, declared_tricks, tricks


def tricks_page(recipe: Recipe | None = None) -> str:
    """Return Markdown with a part for each trick that `recipe` uses, or for all tricks: the fields, the kinds that have
    them, their meaning, their values with and without the trick, and the source."""
    if recipe is None:
        title, shown = "# Tricks", list(_all_tricks())
    else:
        used = tricks(recipe)
        title = f"# Tricks of {in_markdown(recipe.name)}"
        shown = [each for each in declared_tricks(recipe) if each.name in used and each.applies]
    lines = [title, "", "The tricks in the fields of recipes; `fastcifar ablate` measures what each is worth."]
    parts: dict[str, dict[tuple[str, ...], list[str]]] = {}  # kinds by entry by name
    for each in shown:
        kinds = parts.setdefault(each.name, {}).setdefault(_entry(each), [])
        kinds += [each.section.kind] if isinstance(each.section, Kind) else []
    for name, entries in parts.items():
        lines += ["", f"## {in_markdown(name)}"]
        for (path, doc, values, source), kinds in entries.items():
            of_kinds = in_markdown(f" ({', '.join(kinds)})" if kinds else "")
            lines += ["", f"{code_in_markdown(path)}{of_kinds}: {in_markdown(doc)}", "", f"- {values}"]
            lines.append(f"- Source: {in_markdown(source)}")
    return "\n".join(lines) + "\n"


def _entry(each: FieldTrick) -> tuple[str, str, str, str]:
    """Return the path of the trick's field, its meaning, its values and the source."""
    declared, kind = each.declared, type(each.section)
    off = "several fields change" if callable(declared.off) else code_in_markdown(to_text(declared.off))
    doc = field_docs(kind).get(each.path.rpartition(".")[2], kind.__doc__ or "")
    value = code_in_markdown(to_text(each.value if declared.of is None else declared.of))
    values = "Off by default" if value == off else f"Value {value}, without the trick {off}"
    return each.path, " ".join(doc.split()), values, declared.source


def _all_tricks() -> Iterator[FieldTrick]:
    for section, kinds in (("network", NETWORKS), ("optimizer", OPTIMIZERS)):
        for kind in kinds.values():
            yield from declared_tricks(kind(), f"{section}.")
    for each in declared_tricks(with_all_transforms(Recipe())):
        if each.path.partition(".")[0] not in ("network", "optimizer"):
            yield each
