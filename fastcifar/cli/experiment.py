"""The command of an experiment, made from its options: a subclass of `Experiment` needs no command line of its own."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from fastcifar.cli.arguments import groups, last_given, parse, read_fields, read_recipe, take_free_words, take_words_of
from fastcifar.cli.options import SHARED, TrainingOptions, describe_images, own_fields
from fastcifar.cli.screen import Screen, duration, share
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments import Experiment, Result
from fastcifar.recipes import DEFAULT_RECIPE, QUICK_TRAIN_SIZE, RECIPES, Recipe, change
from fastcifar.recipes.declare import type_hints
from fastcifar.recipes.text import read_changes

if TYPE_CHECKING:
    from fastcifar.experiments.runner import Progress


@dataclass(frozen=True)
class ExperimentOptions(TrainingOptions):
    """Options of every experiment."""

    experiment: Annotated[Experiment, arg(name="")] = dataclasses.field(default_factory=Experiment)
    """The experiment, whose own fields are flags too."""


def main(cls: type[Experiment[Any]], args: Sequence[str]) -> int:
    """Run the experiment `cls` with the options in `args`, and return the exit status."""
    options = read_options(cls, args)
    experiment = options.experiment
    recipes = _recipes_of(experiment)
    options.check(*recipes.values())
    name = "-".join([cls.group, cls.name] if cls.group else [cls.name])
    kept_in = options.out
    if kept_in is None and cls.is_kept:
        words = [name, *(recipe.name for recipe in recipes.values()), *["quick"] * options.quick]
        kept_in = Path("runs") / "-".join(words)
    screen = Screen(options.quiet or options.json, bar=not options.quiet)
    about = "at most about" if cls.ends_early else "about"
    with shown(screen, kept_in) as finished:

        def show(progress: Progress) -> None:
            screen.end()
            finished[:] = [progress.done]
            left = f"; {about} {duration(progress.seconds_left)} left" if progress.seconds_left else ""
            screen.say(f"[{progress.done}/{progress.total}] {_describe(progress)}{left}")

        dataset = options.load(options.start_device())
        what = " and ".join(recipe.name for recipe in recipes.values())
        where = f"; kept in {kept_in}" if kept_in else ""
        screen.say(f"{name}: {what} on {describe_images(dataset)}, n={experiment.runs}{where}")
        result = experiment.run(
            dataset, kept_in, holdout=0, device=options.device, on_progress=show, on_step=screen.step
        )
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _conclude(result, kept_in, options)
    return result.status


def read_options(cls: type[Experiment[Any]], args: Sequence[str]) -> ExperimentOptions:
    """Return the options in `args`, with the experiment that they make of `cls`."""
    prog = " ".join(word for word in ("fastcifar", cls.group, cls.name) if word)
    defaults = {"holdout": cls.holdout}
    if last_given(args, "--quick") is not None:
        defaults |= {"train_size": QUICK_TRAIN_SIZE, **cls.quick}
    recipes, rest = _read_recipes(cls, args, prog)
    hints = own_fields(cls)
    own, rest = read_fields(hints, rest)
    own = {**{name: value for name, value in defaults.items() if name in hints}, **own}
    experiment = cls(**recipes, **own)
    both = SHARED & {each.name for each in dataclasses.fields(cls)}
    shared = {name: getattr(experiment, name) for name in both}
    shared |= {name: value for name, value in defaults.items() if name not in hints}
    first = next(iter(recipes.values()))
    kinds = {"network": first.network.kind, "optimizer": first.optimizer.kind}
    given = last_given(args, "--recipe") or first.name
    default = ExperimentOptions(recipe=given, settings=first, experiment=experiment, **kinds, **shared)
    positions = [name.upper() for name in recipes if name != "recipe"]
    options = parse(rest, default, prog, description=inspect.getdoc(cls), usage=" ".join([prog, *positions]))
    same = {name: getattr(options, name) for name in both}
    return dataclasses.replace(options, experiment=dataclasses.replace(experiment, **same))


def _recipes_of(experiment: Experiment[Any]) -> dict[str, Recipe]:
    values = {each.name: getattr(experiment, each.name) for each in dataclasses.fields(experiment)}
    return {name: value for name, value in values.items() if isinstance(value, Recipe)}


def _read_recipes(cls: type[Experiment[Any]], args: Sequence[str], prog: str) -> tuple[dict[str, Recipe], list[str]]:
    """Return the recipes of the fields of `cls`, and the words that say something else. One called `recipe` is named
    by --recipe, others by the first words; the flags of a recipe's fields change all of them."""
    defaults = _recipes_of(cls())
    names = [name for name in defaults if name != "recipe"]
    words, rest = (
        take_free_words(args, {**type_hints(ExperimentOptions), **own_fields(cls)}) if names else ([], list(args))
    )
    if len(words) != len(names) and not {"-h", "--help"} & set(args):
        example = " ".join([DEFAULT_RECIPE, "my.toml"])
        allowed = f"{', '.join(RECIPES)}, or a .toml file's path"
        raise UserError(f"{cls.name} needs {len(names)} recipes, as in '{prog} {example}'; allowed: {allowed}")
    given = dict(zip(names, words, strict=False))
    if "recipe" in defaults:
        given["recipe"] = last_given(args, "--recipe") or ""
    changes = {}
    for name in names:
        changes[name], rest = take_words_of(rest, f"--{name}-set")
    recipes, left = {}, {}
    for name, default in defaults.items():
        recipe, left[name] = read_recipe(
            rest, given.get(name, ""), default=default, shorten=cls.shorten, quick_default=cls.quick_default()
        )
        recipes[name] = change(recipe, read_changes(changes.get(name, ())), f"--{name}-set")
    fewest, most = min(left, key=lambda name: len(left[name])), max(left, key=lambda name: len(left[name]))
    for group in groups(left[most]):
        if group not in groups(left[fewest]):
            field = f"{group[0]} is a field of {fewest}, not of {most}"
            raise UserError(f"{field}; allowed: --{fewest}-set FIELD=VALUE, or a field of both")
    return recipes, left[fewest]


@contextmanager
def shown(screen: Screen, out: Path | None) -> Iterator[list[int]]:
    """Give a list for the number of finished runs while an experiment goes on. Where that is stopped, the error also
    says that they are kept in `out`."""
    finished = [0]
    try:
        yield finished
    except (UserError, NonFiniteLoss, KeyboardInterrupt) as error:
        if finished[0] and out:
            runs = f"{finished[0]} finished run{'s are' if finished[0] > 1 else ' is'} kept in {out}"
            goes_on = "; the same command goes on" if isinstance(error, KeyboardInterrupt) else ""
            error.args = (f"{str(error) or 'interrupted'}; {runs}{goes_on}",)
        raise
    finally:
        screen.end()


def _describe(progress: Progress) -> str:
    """Return a finished run in a few words or, before the first, what the time left is guessed from."""
    from fastcifar.training import RunRecord

    if progress.outcome is None:
        return "going by the first steps"
    record = progress.outcome
    if not isinstance(record, RunRecord):
        return f"{progress.key:<28} diverged"
    train = f"  train {record.train_split.accuracy:.2%}" if record.train_split else ""
    took = "kept" if progress.kept else f"{record.train_seconds:.1f} s"
    accuracy = share(record.tta_accuracy)
    return (
        f"{progress.key:<28} loss {record.tta_loss:.4f}  accuracy {accuracy}{train}  {record.epochs:g} epochs  {took}"
    )


def _conclude(result: Result, out: Path | None, options: TrainingOptions) -> None:
    """Show the tables and the answer, and draw the figures."""
    for table in result.tables():
        table.show()
    lines = result.remarks()
    if out and not options.quiet:
        where = f"{', '.join(result.files())} are in {out}"
        try:
            where = f"figures, {where}" if result.draw(out) else where
        except UserError as error:
            where += f"; no figures: {error}; the same command again draws them"
        lines.insert(0, where)
    if options.quick:
        lines.insert(0, "quick: too few images and epochs to say anything about the question")
    print("\n".join(lines), end="\n" * bool(lines))
