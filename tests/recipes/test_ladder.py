"""The rungs: what each changes, and that all of it leads to DavidNet's recipe."""

import dataclasses
import re
from pathlib import Path

import pytest

from fastcifar.recipes import RECIPES, Recipe, change
from fastcifar.recipes.named.ladder import LADDER, WALK
from fastcifar.recipes.text import leaves
from fastcifar.report import Table

ROOT = Path(__file__).parents[2]
BY_NAME = {rung.name: rung for rung in LADDER}


def flat(recipe):
    return dict(leaves(dataclasses.asdict(recipe)))


def test_the_walk_leads_to_davidnets_recipe():
    assert WALK[-1].recipe == Recipe() == RECIPES["davidnet"]
    assert [rung.before for rung in WALK] == ["", *(rung.name for rung in WALK[:-1])]
    assert all(RECIPES[rung.name] == rung.recipe for rung in LADDER) and len(BY_NAME) == len(LADDER)


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: rung.name)
def test_a_rung_is_its_changes_of_the_one_before_and_each_of_them_changes_something(rung):
    before = BY_NAME[rung.before].recipe if rung.before else Recipe()
    assert change(before, {"name": rung.name, **rung.changes}) == rung.recipe
    for name in rung.changes:
        without = {"name": rung.name, **{other: value for other, value in rung.changes.items() if other != name}}
        if not name.startswith("schedule."):  # whose two lists go together
            assert change(before, without) != rung.recipe, f"{name} is as it was"


# The rates of experiments.ipynb, dawn.py, bag_of_tricks.ipynb and new_dawn.py at epochs, for the mean loss.
RATES = {
    "myrtle-baseline": (35, {0: 0, 7.5: 0.05, 15: 0.1, 15.001: 0.105, 22.5: 0.055, 30: 0.005, 32.5: 0.0025, 35: 0}),
    "myrtle-single-norm": (35, {0: 0, 7.5: 0.05, 15: 0.1, 30: 0.005, 35: 0}),
    "myrtle-minibatch": (35, {0: 0, 15: 0.44, 30: 0.005, 35: 0}),
    "myrtle-cutout": (35, {0: 0, 15: 0.44, 30: 0.005, 35: 0}),
    "myrtle-regularised": (30, {0: 0, 8: 0.6, 19: 0.3, 30: 0}),
    "myrtle-shortest-path": (20, {0: 0, 4: 0.4, 12: 0.2, 20: 0}),
    "myrtle-residual": (20, {0: 0, 4: 0.4, 12: 0.2, 20: 0}),
    "myrtle-architecture": (24, {0: 0, 5: 0.4, 24: 0}),
    "myrtle-early-pool": (25, {0: 0, 5: 0.4, 25: 0}),
    "myrtle-label-smoothing": (23, {0: 0, 4.6: 0.4, 23: 0}),
    "myrtle-celu": (20, {0: 0, 4: 0.4, 20: 0}),
    "myrtle-ghost-norm": (18, {0: 0, 3.6: 0.6, 18: 0}),
    "myrtle-frozen-scales": (17, {0: 0, 3.4: 0.6, 17: 0}),
    "myrtle-whitening": (14, {0: 0, 2.8: 1.0, 14: 0}),
    "myrtle-ema": (13, {0: 0, 2.6: 1.0, 11: 0.1, 12: 0.1, 13: 0.1}),
    "davidnet": (10, {0: 0, 2: 1.0, 8: 0.1, 9: 0.1, 10: 0.1}),
    "fenwicks": (24, {0: 0, 5: 0.4, 14.5: 0.2, 24: 0}),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_those_of_the_sources_at_their_epochs(name):
    recipe, (epochs, rates) = RECIPES[name], RATES[name]
    assert recipe.epochs == epochs
    found = {epoch: recipe.optimizer.lr * recipe.schedule(epoch / epochs) for epoch in rates}
    assert found == pytest.approx(rates, abs=2e-5)
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 1.25e-4 if name == "fenwicks" else 5e-4)


def test_batches_cutout_and_smoothing_are_those_of_the_sources():
    sizes = {rung.name: rung.recipe.batch_size for rung in WALK}
    assert {name: size for name, size in sizes.items() if size != 512} == {
        "myrtle-baseline": 128,
        "myrtle-single-norm": 128,
        "myrtle-regularised": 768,
    }
    cutouts = [rung.recipe.augment.cutout for rung in WALK]
    assert cutouts == [0] * 4 + [8] * 15 + [5, 5, 0]
    assert [rung.recipe.label_smoothing for rung in WALK] == [0.0] * 15 + [0.2] * 7
    for rung in LADDER:
        assert (rung.recipe.augment.crop, rung.recipe.augment.flip) == (4, "random")
        assert (rung.recipe.evaluate.tta == "flip") == (rung.name == "davidnet")
        assert bool(rung.recipe.ema.decay) == (rung.name in ("myrtle-ema", "davidnet"))


def test_the_posts_networks_get_faster_and_all_fifteen_are_there():
    posts = [rung.seconds for rung in WALK if rung.post == 8]
    assert posts == sorted(posts, reverse=True)
    fifteen = {
        (rung.recipe.network.residual, rung.recipe.network.extra)
        for rung in LADDER
        if rung.post == 4 and rung.recipe.network.kind == "davidnet"
    }
    assert len(fifteen) == 15 and all(not (residual and extra) for residual, extra in fifteen)


def test_the_documented_table_is_the_ladders():
    rows = [
        (
            f"`{rung.name}`",
            rung.changed + (f" (of `{rung.before}`)" if rung.is_branch else ""),
            str(rung.post or "-"),
            f"{rung.recipe.epochs:g}",
            "-" if rung.accuracy is None else f"{rung.accuracy:.1%}",
            "-" if rung.seconds is None else f"{rung.seconds:g} s",
        )
        for rung in LADDER
    ]
    page = (ROOT / "docs" / "ladder.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- begin ladder -->\n(.*)<!-- end ladder -->", page, re.DOTALL)
    table = Table("", ("rung", "what changed", "post", "epochs", "accuracy", "training"), tuple(rows)).markdown()
    table = table.partition("\n\n")[2].replace("\\`", "`")
    assert shown and shown[1] == table, table
