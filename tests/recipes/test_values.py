"""The fields' declarations and the named recipes are those in values.txt: results are told by these names.

After an intended change: python -m tests.recipes.test_values > tests/recipes/values.txt
"""

import dataclasses
from pathlib import Path

from fastcifar.recipes import NETWORKS, OPTIMIZERS, RECIPES, Recipe, quick
from fastcifar.recipes.declare import Checked, declaration

BOUNDS = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}


def fields_of(section: Checked, prefix: str):
    """Give each field's dotted name, value and declaration, those of the sections inside too."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, Checked):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, declaration(field)


def declared_lines():
    """Give a line for each field of a recipe and of each kind: its default, bounds and values without its tricks."""
    kinds = [kind() for kind in (*NETWORKS.values(), *OPTIMIZERS.values()) if kind.__module__.startswith("fastcifar")]
    for section, prefix in [(Recipe(), ""), *((kind, f"{kind.section}={kind.kind}.") for kind in kinds)]:
        for name, value, declared in fields_of(section, prefix):
            limits = {sign: getattr(declared, bound) for bound, sign in BOUNDS.items()}
            bounds = [f"{sign}{limit}" for sign, limit in limits.items() if limit is not None]
            off = [(each.name, getattr(each.off, "__name__", each.off)) for each in declared.tricks]
            marks = [mark for mark in ("width", "with_batch") if getattr(declared, mark)]
            if not name.startswith(("network.", "optimizer.")) and not name.endswith(".kind"):
                tricks = [f"{trick or 'trick'} off: {without}" for trick, without in off]
                yield "; ".join([f"{name} = {value}", *bounds, *marks, *tricks])


def changed(name: str, recipe: Recipe, base: Recipe):
    """Give a line for each field in which two recipes of the same kinds differ."""
    for (field, value, _), (_, before, _) in zip(fields_of(recipe, ""), fields_of(base, ""), strict=True):
        if value != before:
            yield f"{name}: {field} = {value}"


def recipe_lines():
    """Give a named recipe's kinds, a line for each field that differs from the defaults, and what --quick changes."""
    for name, recipe in RECIPES.items():
        network, optimizer = recipe.network, recipe.optimizer
        yield f"{name}: {network.kind}, {optimizer.kind}"
        yield from changed(name, recipe, Recipe(name, network=type(network)(), optimizer=type(optimizer)()))
        smaller, images = quick(recipe)
        yield from changed(f"{name} --quick, {images} images", smaller, recipe)


def test_what_is_declared_is_what_is_kept():
    kept = Path(__file__).with_name("values.txt").read_text(encoding="utf-8").splitlines()
    assert [*declared_lines(), *recipe_lines()] == kept


if __name__ == "__main__":
    print(*declared_lines(), *recipe_lines(), sep="\n")
