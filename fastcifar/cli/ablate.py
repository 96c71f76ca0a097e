"""`fastcifar ablate`: what each trick of a recipe is worth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from fastcifar.cli.arguments import RecipeOptions, Switch, last_given, parse_with_recipe, quick_recipe, quick_train_size
from fastcifar.cli.arms import ArmsOptions, Show, check, describe_arm, load, output_folder, shown
from fastcifar.cli.screen import Screen
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.tricks import choose_tricks, tricks

if TYPE_CHECKING:
    from fastcifar.experiments import Progress

PROG = "fastcifar ablate"


@dataclass(frozen=True)
class Options(ArmsOptions, RecipeOptions):
    """Train a recipe and the same without each of its tricks, one at a time, in turn and with the same seeds.

    Says what is lost without each, in accuracy, log-loss and time, with 95% intervals. An effect of 0.05 points takes
    over a hundred runs of an arm to see. The flags of the experiment stand first, the fields of the recipe after them.
    """

    runs: Annotated[int, arg(metavar="N")] = 3
    """Runs of each arm; with more of them the same command goes on."""
    only: Annotated[tuple[str, ...], arg(metavar="TRICK ...", help_behavior_hint="(default: all)")] = ()
    """The tricks to switch off; an unknown one is answered with the recipe's."""
    verify: Switch = False
    """Do not measure, but check that every trick, switched off, changes a loss of a training of some 20 steps, on
    --dataset, and exit with status 1 where one changes none. With --quick in seconds."""


def main(args: Sequence[str]) -> int:
    is_verified = last_given(args, "--verify") is not None
    in_short = _tiny if is_verified else quick_recipe
    options = parse_with_recipe(args, Options, PROG, in_short=in_short, train_size=quick_train_size(args))
    recipe = options.settings
    if not tricks(recipe) and not is_verified:
        raise UserError(f"{recipe.name} uses no trick that can be switched off; allowed: a recipe that does")
    off = choose_tricks(recipe, options.only)
    if is_verified:
        for flag in ("--runs", "--holdout", "--train-size", "--out"):
            if last_given(args, flag) is not None:
                raise UserError(f"{flag} is for measuring; allowed: without --verify")
        return _verify(dataclasses.replace(options, holdout=0, train_size=None))
    check(options, options.runs, recipe)
    out = output_folder(options, f"ablate-{recipe.name}")
    silent = options.quiet or options.json
    with shown(out, silent=silent, bar=not options.quiet, describe=describe_arm) as show:
        dataset, data = load(options)
        from fastcifar.experiments import ablate

        show.say(f"{recipe.name} without each of {', '.join(off)} on {data}, n={options.runs}; kept in {out}")
        result = ablate(
            recipe,
            dataset,
            options.runs,
            out,
            only=options.only,
            holdout=0,  # held out already, if at all
            seed=options.seed,
            device=options.device,
            on_progress=show.progress,
            on_step=show.step,
        )
    if options.json:
        print(json.dumps(result.rows(), indent=2))
    else:
        result.table().show()
        print(f"results.jsonl and table.md are in {out}")
    return 0


def _tiny(recipe: Recipe) -> Recipe:
    """The recipe for --verify --quick: of smaller batches than a quick one, ghost batches too, but as many epochs: some
    tricks begin at one."""
    small = quick_recipe(recipe)
    if getattr(small.network, "ghost_batch", 0) > 8:
        small = change(small, {"network.ghost_batch": 8})
    batch_size = min(recipe.batch_size, max(16, 2 * small.ghost_batch))
    return dataclasses.replace(small, epochs=recipe.epochs, batch_size=batch_size)


def _verify(options: Options) -> int:
    """Show what each trick changes."""
    check(options, 1, options.settings)
    show = Show(Screen(options.quiet or options.json, not options.quiet), _said, "about")
    dataset, _ = load(options)
    from fastcifar.experiments import verify_tricks

    try:
        result = verify_tricks(
            options.settings,
            dataset,
            device=options.device,
            only=options.only,
            seed=options.seed,
            on_progress=show.progress,
            on_step=show.step,
        )
    finally:
        show.screen.end()
    if options.json:
        print(json.dumps(result.rows(), indent=2))
    else:
        result.table().show()
        without = result.without_effect
        verdict = f"without effect: {', '.join(without)}" if without else "none without effect"
        print(f"{len(result.effects)} trick{'s' * (len(result.effects) != 1)}, {verdict}")
    return int(bool(result.without_effect))


def _said(progress: Progress) -> str:
    return progress.key.partition("/")[0]
