"""`fastcifar ablate`: what each trick of a recipe is worth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from fastcifar.cli.arguments import parse_with_recipe
from fastcifar.cli.arms import ArmsOptions, check, describe_arm, load, output_folder, shown
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe
from fastcifar.recipes.tricks import choose_tricks, tricks

PROG = "fastcifar ablate"


@dataclass(frozen=True)
class Options(ArmsOptions):
    """Train a recipe and the same without each of its tricks, one at a time, in turn and with the same seeds.

    Says what is lost without each, in accuracy, log-loss and time, with 95% intervals. An effect of 0.05 points takes
    over a hundred runs of an arm to see. The flags of the experiment stand first, the fields of the recipe after them.
    """

    recipe: Annotated[str, arg(metavar="NAME|FILE.toml")] = "davidnet"
    """A named recipe (`fastcifar recipes` lists them) or a TOML file."""
    runs: Annotated[int, arg(metavar="N")] = 3
    """Runs of each arm; with more of them the same command goes on."""
    only: Annotated[tuple[str, ...], arg(metavar="TRICK ...", help_behavior_hint="(default: all)")] = ()
    """The tricks to switch off; an unknown one is answered with the recipe's."""
    settings: Annotated[Recipe, arg(name="")] = dataclasses.field(default_factory=Recipe)


def main(args: Sequence[str]) -> int:
    options = parse_with_recipe(args, Options, PROG)
    recipe = options.settings
    check(options, options.runs, recipe)
    if not tricks(recipe):
        raise UserError(f"{recipe.name} uses no trick that can be switched off; allowed: a recipe that does")
    off = choose_tricks(recipe, options.only)
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
