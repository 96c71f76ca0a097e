"""A page, with its drawing, for each trick that has a measured row, and the page that lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bench.drawing import Mark, forest
from bench.trick_rows import Row, Source
from fastcifar.escape import code_in_markdown, in_markdown
from fastcifar.recipes.page import tricks_parts

GROUPS = {
    "ablation": "Switched off alone in a recipe, seed by seed (`fastcifar ablate`). All else stays as it was tuned for "
    "all tricks together, so what is lost without one is at least what it is worth. n: pairs of runs, one with and one "
    "without it, of the same seed.",
    "screen": "One of many changes, all varied at once (`fastcifar screen`): the mean of the runs with it, less that "
    "of the runs without. n: all runs of the screen, about half of them with it.",
    "warm start": "In a training from the weights of an earlier one, less the same without it, and likewise from fresh "
    "weights (`fastcifar warm-start methods`). n: pairs of runs of the same seed.",
    "ladder": "Where it came in on the ladder (`fastcifar ladder`), with all else that its rung changed, mostly a "
    "shorter training: the rung's figure, not the trick's alone. n: runs of each rung.",
}
"""What the rows of a group are."""
_INTRODUCTION = """Parts of a training that can be switched off, each at a field of the recipe that says what it is and
whose. A trick has a page where its worth was measured; `fastcifar recipes tricks` prints them all, and
`fastcifar ablate --only NAME` measures one."""
_AXIS = "points of accuracy with it less without, 95% interval"


def trick_pages(rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Return name to content of all files of docs/tricks/, of `rows[trick]`."""
    parts = tricks_parts()
    of_recipe: dict[str, list[Row]] = {}
    for row in (row for of_trick in rows.values() for row in of_trick if row.source.group == "ablation"):
        of_recipe.setdefault(row.name, []).append(row)
    files = {"index.md": "\n".join(_index(rows, of_recipe, list(parts))) + "\n"}
    for recipe, found in of_recipe.items():
        best_first = sorted(found, key=lambda row: -row.points)
        files[f"of-{recipe}.svg"] = forest([_mark(row, row.trick) for row in best_first], _AXIS)
    for trick, of_trick in rows.items():
        files[f"{trick}.md"] = "\n".join(_page(trick, parts[trick], of_trick)) + "\n"
        files[f"{trick}.svg"] = forest([_mark(row, row.name) for row in _drawn(of_trick)], _AXIS)
    return files


def _page(trick: str, lines: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"# {in_markdown(trick)}", *lines, "", "## What it is worth", "")
    yield f"![Points of accuracy with {trick} less without: {_said(_drawn(rows))}]({trick}.svg)"
    for group, words in GROUPS.items():
        of_group = [row for row in rows if row.source.group == group]
        if of_group:
            yield from ("", words, "", "| compared | points of accuracy | n | besides |", "| --- | --- | --- | --- |")
            for row in of_group:
                yield f"| {in_markdown(row.name)} | {row.told} | {row.n} | {in_markdown(row.more) or '-'} |"
            yield ""
            for source in dict.fromkeys(row.source for row in of_group):
                yield f"- {in_markdown(source.conditions)}: [results](../../{source.folder}/{_file(source)}), again by"
                yield f"  {_again(source, trick)}."


def _index(
    rows: Mapping[str, Sequence[Row]], of_recipe: Mapping[str, Sequence[Row]], names: Sequence[str]
) -> Iterator[str]:
    yield from ("# Tricks", "", _INTRODUCTION, "")
    for recipe, found in of_recipe.items():
        yield from (f"## In {in_markdown(recipe)}", "", f"{in_markdown(found[0].source.conditions)}.", "")
        yield from (f"![Each trick of {recipe}: {_said(found, True)}](of-{recipe}.svg)", "")
    heads = [*of_recipe, *(["elsewhere"] if any(_elsewhere(each) for each in rows.values()) else [])]
    yield from (
        "## All that were measured",
        "",
        "Points of accuracy with the trick less without, and the 95% interval.",
        "",
    )
    yield f"| trick | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * len(heads)
    for trick in (name for name in names if name in rows):
        cells = [next((row.told for row in found if row.trick == trick), "-") for found in of_recipe.values()]
        others = "<br>".join(_elsewhere(rows[trick])) or "-"
        yield f"| [{trick}]({trick}.md) | {' | '.join([*cells, others][: len(heads)])} |"
    rest = [code_in_markdown(name) for name in names if name not in rows]
    yield from ("", f"Without a row that has it on and off so far: {', '.join(rest)}.")


def _elsewhere(rows: Sequence[Row]) -> list[str]:
    """Return what a trick's rows say, ablations left out."""
    others = (row for row in rows if row.source.group != "ablation")
    return [f"{row.source.group}, {in_markdown(row.name)}: {row.told}" for row in others]


def _drawn(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows of a trick's drawing: without those of the ladder, where there are others; they are far wider."""
    return [row for row in rows if row.source.group != "ladder"] or rows


def _mark(row: Row, name: str) -> Mark:
    return Mark(name, row.points, row.interval, color=list(GROUPS).index(row.source.group), note=f"{row.points:+.2f}")


def _said(rows: Sequence[Row], by_trick: bool = False) -> str:
    """Return a drawing's values in words, for those who do not see it."""
    return "; ".join(f"{row.trick if by_trick else row.name} {row.told}" for row in rows)


def _file(source: Source) -> str:
    return "README.md" if source.group == "screen" else "table.md"


def _again(source: Source, trick: str) -> str:
    return re.sub("`$", f" --only {trick}`", source.command) if source.group == "ablation" else source.command
