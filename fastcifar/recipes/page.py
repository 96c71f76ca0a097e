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
    """Return Markdown with a part for each trick that `recipe` uses, or for all tricks: why it is done, the fields, the
    kinds that have them, their meaning, their values with and without the trick, and the source."""
    title = "# Tricks" if recipe is None else f"# Tricks of {in_markdown(recipe.name)}"
    lines = [title, "", "The tricks in the fields of recipes; `fastcifar ablate` measures what each is worth."]
    for name, part in tricks_parts(recipe).items():
        lines += ["", f"## {in_markdown(name)}", *part]
    return "\n".join(lines) + "\n"


def tricks_parts(recipe: Recipe | None = None) -> dict[str, list[str]]:
    """Return `lines[name]`: what `tricks_page` says of each trick, in Markdown."""
    if recipe is None:
        shown = list(all_tricks())
    else:
        used = tricks(recipe)
        shown = [each for each in declared_tricks(recipe) if each.name in used and each.applies]
    parts: dict[str, dict[tuple[str, ...], list[str]]] = {}  # kinds by entry by name
    for each in shown:
        kinds = parts.setdefault(each.name, {}).setdefault(_entry(each), [])
        kinds += [each.section.kind] if isinstance(each.section, Kind) else []
    why = {each.name: each.declared.why for each in (*all_tricks(), *shown) if each.declared.why}
    return {name: [*(("", in_markdown(why[name])) if name in why else ()), *_lines(e)] for name, e in parts.items()}


def _lines(entries: dict[tuple[str, ...], list[str]]) -> Iterator[str]:
    for (path, doc, values, source), kinds in entries.items():
        of_kinds = in_markdown(f" ({', '.join(kinds)})" if kinds else "")
        yield from ("", f"{code_in_markdown(path)}{of_kinds}: {in_markdown(doc)}", "", f"- {values}")
        yield f"- Source: {in_markdown(source)}"


def _entry(each: FieldTrick) -> tuple[str, str, str, str]:
    """Return the path of the trick's field, its meaning, its values and the source."""
    declared, kind = each.declared, type(each.section)
    off = "several fields change" if callable(declared.off) else code_in_markdown(to_text(declared.off))
    doc = field_docs(kind).get(each.path.rpartition(".")[2], kind.__doc__ or "")
    value = code_in_markdown(to_text(each.value if declared.of is None else declared.of))
    values = "Off by default" if value == off else f"Value {value}, without the trick {off}"
    return each.path, " ".join(doc.split()), values, declared.source


def all_tricks() -> Iterator[FieldTrick]:
    """Give the tricks at the fields of all registered kinds, each kind with its defaults."""
    for section, kinds in (("network", NETWORKS), ("optimizer", OPTIMIZERS)):
        for kind in kinds.values():
            yield from declared_tricks(kind(), f"{section}.")
    for each in declared_tricks(with_all_transforms(Recipe())):
        if each.path.partition(".")[0] not in ("network", "optimizer"):
            yield each
