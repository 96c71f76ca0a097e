"""`fastcifar compare A B`: which of two recipes is better, seen with no more runs than it takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse, quick_recipe, quick_train_size
from fastcifar.cli.arms import ArmsOptions, check, describe_arm, load, output_folder, shown
from fastcifar.errors import UserError
from fastcifar.recipes import DEFAULT_RECIPE, RECIPES, Recipe, change, get_recipe
from fastcifar.recipes.text import read_changes

PROG = "fastcifar compare"
NAME = arg(metavar="NAME|FILE.toml", help_behavior_hint="")
FIELDS = arg(metavar="FIELD=VALUE ...", help_behavior_hint="")


@dataclass(frozen=True)
class Options(ArmsOptions):
    """Train recipes A and B in turn, with the same seeds, on held-out images, until one is seen to be better.

    It stops when an anytime-valid t-test of the paired differences (the t-mixture e-process of Lai 1976 and Wang and
    Ramdas 2024) is sure enough, after five pairs at the soonest. The intervals stay valid however often one looks, and
    where the same command goes on with more runs.
    """

    a: Annotated[Positional[str], NAME] = ""
    """A named recipe, or a TOML file."""
    b: Annotated[Positional[str], NAME] = ""
    """Another one, or the same with other fields (--b-set); quite the same one is trained from other seeds."""
    runs: Annotated[int, arg(metavar="N")] = 20
    """Runs of each, at most."""
    set: Annotated[tuple[str, ...], FIELDS] = ()
    """Fields of both, as in --set epochs=5 optimizer.lr=0.4."""
    a_set: Annotated[tuple[str, ...], FIELDS] = ()
    """Fields of A."""
    b_set: Annotated[tuple[str, ...], FIELDS] = ()
    """Fields of B."""
    by: Literal["loss", "accuracy"] = "loss"
    """What decides. Log-loss spreads less, but changes with what makes a network surer of itself, too: where A and B
    differ in label smoothing or the scale of the logits, take accuracy."""
    alpha: Annotated[float, arg(metavar="P")] = 0.05
    """The chance to see a difference where there is none."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(train_size=quick_train_size(args)), PROG)
    a, b = recipes(options)
    check(options, options.runs, a, b)
    if not 0 < options.alpha < 1:
        raise UserError(f"--alpha is {options.alpha:g}; allowed: above 0, below 1")
    out = output_folder(options, f"compare-{a.name}-{b.name}")
    silent = options.quiet or options.json
    with shown(out, silent=silent, bar=not options.quiet, describe=describe_arm, about="at most about") as show:
        dataset, data = load(options)
        from fastcifar.experiments import compare

        show.say(f"A {a.name} and B {b.name} on {data}, at most {options.runs} runs of each; kept in {out}")
        result = compare(
            a,
            b,
            dataset,
            options.runs,
            out,
            holdout=0,  # held out already, if at all
            by=options.by,
            alpha=options.alpha,
            seed=options.seed,
            device=options.device,
            on_progress=show.progress,
            on_step=show.step,
        )
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
        return 0
    show.say()
    for line in result.lines():
        show.say(line)
    print(result.verdict)
    return 0


def recipes(options: Options) -> tuple[Recipe, Recipe]:
    """A and B as they are to be trained."""
    if not (options.a and options.b):
        allowed = f"{', '.join(RECIPES)}, or a .toml file's path"
        raise UserError(f"compare needs two recipes, as in '{PROG} {DEFAULT_RECIPE} my.toml'; allowed: {allowed}")
    both = []
    for name, flag, words in ((options.a, "--a-set", options.a_set), (options.b, "--b-set", options.b_set)):
        recipe = get_recipe(name)
        if options.quick:
            recipe = quick_recipe(recipe)
        recipe = change(recipe, read_changes(options.set), "--set")
        both.append(change(recipe, read_changes(words), flag))
    return both[0], both[1]
