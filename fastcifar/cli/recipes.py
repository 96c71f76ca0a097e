"""`fastcifar recipes`, `fastcifar recipes show NAME` and `fastcifar recipes tricks`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import CommandOptions
from fastcifar.cli.streams import wrapped
from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES, SUMMARIES, get_recipe, to_toml


@dataclass(frozen=True)
class ListOptions(CommandOptions):
    """List the named recipes, a line for each; `fastcifar recipes show NAME` prints one in full, and
    `fastcifar recipes tricks` what the fields are that are tricks."""


@dataclass(frozen=True)
class ShowOptions(CommandOptions):
    """Print a recipe as a TOML file, which `fastcifar train --recipe FILE.toml` reads back."""

    name: Annotated[Positional[str], arg(metavar="NAME", help_behavior_hint="")] = ""
    """A named recipe, or the path of a TOML file, which is then printed with every field."""


@dataclass(frozen=True)
class TricksOptions(CommandOptions):
    """Print the tricks that recipes can use as Markdown: what each is, what switches it off, and who had it."""

    name: Annotated[Positional[str], arg(metavar="NAME", help_behavior_hint="(default: all there are)")] = ""
    """A recipe, named or a TOML file, whose own tricks to print."""


def main(args: Sequence[str]) -> int:
    parse(args, ListOptions(), "fastcifar recipes")
    width = max(map(len, RECIPES))
    for name in RECIPES:
        first = f"{name:<{width}}  "
        is_shown = sys.stdout.isatty()  # elsewhere a line for each, as other programs read them
        print(wrapped(SUMMARIES[name], first, " " * len(first)) if is_shown else first + SUMMARIES[name])
    return 0


def show(args: Sequence[str]) -> int:
    options = parse(args, ShowOptions(), "fastcifar recipes show")
    if not options.name:
        raise UserError(f"recipes show needs a recipe; allowed: {', '.join(RECIPES)}, or a .toml file's path")
    print(to_toml(get_recipe(options.name)), end="")
    return 0


def tricks(args: Sequence[str]) -> int:
    from fastcifar.recipes.page import tricks_page

    options = parse(args, TricksOptions(), "fastcifar recipes tricks")
    print(tricks_page(get_recipe(options.name) if options.name else None), end="")
    return 0
