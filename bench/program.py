"""Shared by the programs in bench/: their command lines, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fastcifar.errors import UserError
from fastcifar.recipes import Recipe, get_recipe, quick
from fastcifar.signals import SIGNALS, Interrupted


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m name`, whose help shows `description`, the module's docstring, as it is."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m {name}", description=description, formatter_class=formatter)


def add_save_option(parser: argparse.ArgumentParser) -> None:
    """Add `--save FILE`, the same in every program that measures."""
    parser.add_argument("--save", type=Path, metavar="FILE", help="append the results to this .jsonl file")


def new_recipe_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a program that measures one recipe: with `--recipe`, `--quick` and `--save`."""
    parser = new_parser(name, description)
    parser.add_argument("--recipe", default="davidnet", metavar="NAME|FILE.toml")
    parser.add_argument("--quick", action="store_true", help="the quick form of the recipe")
    add_save_option(parser)
    return parser


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that `new_recipe_parser`'s flags name."""
    recipe = get_recipe(arguments.recipe)
    return quick(recipe)[0] if arguments.quick else recipe


def run_program(name: str, main: Callable[[], int]) -> NoReturn:
    """Exit with the code that `main` returns; with one line on standard error, where it refuses bad input with 2, and
    where SIGINT, SIGTERM or SIGHUP ends it with 128 and the signal's number."""
    try:
        with SIGNALS.taken():
            sys.exit(main())
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(128 + error.number)
