"""The command of an experiment, made from its options: a subclass of `Experiment` needs no command line of its own."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from fastcifar import escape
from fastcifar.catalogue import dataset_for
from fastcifar.cli.arguments import (
    asks_help,
    groups,
    import_plugins,
    last_given,
    parse,
    read_fields,
    read_recipe,
    take_free_words,
    take_words_of,
)
from fastcifar.cli.options import SHARED, TrainingOptions, describe_images, flag_of, own_fields
from fastcifar.cli.screen import Gathered
from fastcifar.errors import NonFiniteLoss, OutOfMemory, ProcessesDied, UserError, notify
from fastcifar.experiments import Experiment, Failed, Result
from fastcifar.experiments.result import is_tried_again
from fastcifar.launch import Rank
from fastcifar.recipes import DEFAULT_RECIPE, QUICK_TRAIN_SIZE, RECIPES, Recipe, change, label
from fastcifar.recipes.declare import type_hints
from fastcifar.recipes.text import field_hints, read_changes
from fastcifar.screen import Screen, duration, fitted, share

if TYPE_CHECKING:
    from fastcifar.experiments.runner import Progress


@dataclass(frozen=True)
class ExperimentOptions(TrainingOptions):
    """Options of every experiment."""

    experiment: Annotated[Experiment, arg(name="")] = dataclasses.field(default_factory=Experiment)
    """The experiment, whose own fields are flags too."""


def main(cls: type[Experiment[Any]], args: Sequence[str]) -> int:
    """Run the experiment `cls` with the options in `args`, and return the exit status."""
    if cls.of_runs:
        of_runs = importlib.import_module(cls.of_runs)
        hints = {**type_hints(of_runs.Options), **type_hints(ExperimentOptions), **own_fields(cls)}
        if take_free_words(args, {**field_hints(Recipe()), **hints})[0]:
            return of_runs.main(args)
    options = read_options(cls, args)
    experiment = options.experiment
    options = options.resized_for(*experiment.trained_recipes().values())
    options.check(*experiment.trained_recipes().values())
    rank = Rank.here()
    experiment.refuse_processes(max(1 if options.parallel == "auto" else options.parallel, rank.count))
    name = "-".join([cls.group, cls.name] if cls.group else [cls.name])
    kept_in = options.out
    if kept_in is None and cls.is_kept:
        named = [escape.in_file_name(label(getattr(experiment, field))) for field in cls.recipe_fields()]
        words = [name, *named, *["quick"] * options.quick]
        kept_in = Path("runs") / "-".join(words)
    if kept_in is None and rank.count > 1:
        raise UserError(f"{name} keeps no runs that torchrun's ranks could share; allowed: with --out DIR")
    if kept_in is None and options.track:
        raise UserError(f"{name} keeps no runs whose metrics could be tracked; allowed: with --out DIR")
    screen = Screen(options.quiet or options.json or not rank.is_first, bar=not options.quiet and rank.is_first)
    may_end_early = cls.ends_early or getattr(experiment, "until_train_accuracy", None) is not None
    about = "at most about" if may_end_early else "about"
    done: list[str] = []
    gathered = Gathered(screen, arms=True)

    with _shown(screen, kept_in, lambda: len(done)):

        def show(progress: Progress) -> None:
            if progress.is_waiting:
                screen.say(f"waiting for another process, which trains {progress.key}")
                return
            if progress.outcome:
                screen.end_run()
                if not is_tried_again(progress.outcome):
                    done.append(progress.key)
            words = [_describe(progress), gathered.note(progress)]
            if progress.seconds_left and not screen.shows_bars:
                words.append(f"{about} {duration(progress.seconds_left)} left")
            if progress.outcome or not screen.shows_bars:
                screen.say(f"[{progress.done}/{progress.total}] {'; '.join(filter(None, words))}")

        device = options.start_device()
        dataset = options.load(device).labeled_test()
        with _flags_for_fields(cls):
            jobs = experiment.jobs(dataset)  # refused before anything is said to be kept
        where = f"; kept in {kept_in}" if kept_in else ""
        screen.say(f"{name}: {experiment.subject} on {describe_images(dataset)}, n={experiment.runs}{where}")
        screen.runs(0, max(len(jobs), experiment.most_jobs))

        from fastcifar.training.progress import ShowProgress

        how = {"on_progress": show, "parallel": options.parallel, "track": options.track}
        how |= {"listeners": [ShowProgress(screen, rows=False)] if screen.draws else []}
        result = experiment.run(dataset, kept_in, holdout=0, device=device, **how)
    if not rank.is_first:  # the first tells what all of them found
        return 0
    where = _draw(result, kept_in, options.json)
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
        return result.status
    for table in result.tables():
        table.show()
    lines = ["quick: too few images and epochs to say anything about the question"] * options.quick
    print(fitted("\n".join(map(escape.shown, [*lines, *where, *result.remarks(), *result.mixed()]))))
    return result.status


def read_options(cls: type[Experiment[Any]], args: Sequence[str]) -> ExperimentOptions:
    """Return the options in `args`, with the experiment that they make of `cls`."""
    prog = " ".join(word for word in ("fastcifar", cls.group, cls.name) if word)
    defaults = {"holdout": 0 if last_given(args, "--fold") is not None else cls.holdout}
    if last_given(args, "--quick") is not None:
        defaults |= {"train_size": QUICK_TRAIN_SIZE, **cls.quick}
    recipes, words, rest = _read_recipes(cls, args, prog)
    hints = own_fields(cls)
    several = {}
    for name in cls.repeatable:
        words_of, rest = take_words_of(rest, flag_of(name))
        several |= {name: tuple(words_of)} if words_of else {}
    switches = [each.name for each in dataclasses.fields(cls) if each.default is False]
    own, rest = read_fields(hints, rest, switches)
    own |= several
    own = {**{name: value for name, value in defaults.items() if name in hints}, **own}
    with _flags_for_fields(cls):
        experiment = cls(**recipes, **own)
    both = SHARED & {each.name for each in dataclasses.fields(cls)}
    shared = {name: getattr(experiment, name) for name in both}
    shared |= {name: value for name, value in defaults.items() if name not in hints}
    first = next(iter(recipes.values()), Recipe())
    kinds = {"network": first.network.kind, "optimizer": first.optimizer.kind}
    given = last_given(args, "--recipe") or first.name
    made_for = [dataset_for(words.get(name, ""), recipe.name) for name, recipe in recipes.items()] or [dataset_for()]
    if len({*made_for}) > 1 and last_given(args, "--dataset") is None:
        raise UserError(f"the recipes are made for {' and '.join(made_for)}; allowed: with --dataset, for both")
    kinds["dataset"] = made_for[0]
    default = ExperimentOptions(recipe=given, settings=first, experiment=experiment, **kinds, **shared)
    positions = [name.upper() for name in recipes if name != "recipe"]
    options = parse(rest, default, prog, description=inspect.getdoc(cls), usage=" ".join([prog, *positions]))
    same = {name: getattr(options, name) for name in both}
    with _flags_for_fields(cls):
        return dataclasses.replace(options, experiment=dataclasses.replace(experiment, **same))


def _read_recipes(
    cls: type[Experiment[Any]], args: Sequence[str], prog: str
) -> tuple[dict[str, Recipe], dict[str, str], list[str]]:
    """Return the recipes of the fields of `cls`, what names them, and the words that say something else. One called
    `recipe` is named by --recipe, others by words of their own; the flags of a recipe's fields change all of them."""
    defaults, rest = {name: getattr(cls(), name) for name in cls.recipe_fields()}, list(args)
    if not defaults:  # its recipes are no choice
        import_plugins(args)
        return {}, {}, rest
    names = [name for name in defaults if name != "recipe"]
    given = {"recipe": last_given(args, "--recipe") or ""}
    if names:
        if given["recipe"]:
            raise UserError(f"--recipe is {given['recipe']}; allowed: as in '{prog} {' '.join(names).upper()}'")
        hints = {**field_hints(defaults[names[0]]), **type_hints(ExperimentOptions), **own_fields(cls)}
        words, rest = take_free_words(args, hints)
        if len(words) != len(names) and not asks_help(args):
            allowed = f"{', '.join(RECIPES)}, or a .toml file's path"
            example = " ".join([DEFAULT_RECIPE, "my.toml"])
            raise UserError(f"{cls.name} needs {len(names)} recipes, as in '{prog} {example}'; allowed: {allowed}")
        given |= dict(zip(names, words, strict=False))
    changes = {}
    for name in names:
        changes[name], rest = take_words_of(rest, f"--{name}-set")
    recipes, left = {}, {}
    for name, default in defaults.items():
        how = {"default": default, "shorten": cls.shorten, "quick_default": cls.quick_default()}
        recipe, words = read_recipe(rest, given.get(name, ""), **how)
        left[name] = groups(words)
        recipes[name] = change(recipe, read_changes(changes.get(name, ())), f"--{name}-set")
    for name, other in itertools.permutations(left, 2):
        for group in left[name]:
            if group not in left[other]:
                field = f"{group[0]} is a field of {other}, not of {name}"
                raise UserError(f"{field}; allowed: --{other}-set FIELD=VALUE, or a field of both")
    return recipes, given, [word for group in next(iter(left.values())) for word in group]


@contextmanager
def _shown(screen: Screen, out: Path | None, finished: Callable[[], int]) -> Iterator[None]:
    """Run an experiment inside: where it is stopped, the error also says how many runs are kept in `out`."""
    try:
        yield
    except (UserError, NonFiniteLoss, OutOfMemory, ProcessesDied, KeyboardInterrupt) as error:
        count = finished()
        if count and out:
            runs = f"{count} finished run{'s are' if count > 1 else ' is'} kept in {out}"
            again = "; the same command goes on" if isinstance(error, KeyboardInterrupt | ProcessesDied) else ""
            error.args = (f"{str(error) or 'interrupted'}; {runs}{again}",)
        raise
    finally:
        screen.end()


@contextmanager
def _flags_for_fields(cls: type[Experiment[Any]]) -> Iterator[None]:
    """Let a refusal of a field of `cls` name its flag."""
    try:
        yield
    except UserError as error:
        name, _, rest = str(error).partition(" ")
        if name in cls.__dataclass_fields__:
            raise UserError(f"{flag_of(name)} {rest}") from None
        raise


def _describe(progress: Progress) -> str:
    """Return a finished run in a few words or, before the first, what the time left is guessed from."""
    if progress.outcome is None:
        return "going by the first steps"
    record = progress.outcome
    if isinstance(record, Failed):
        return f"{progress.key:<22} {record.word}"
    train = f"  train {record.train_split.accuracy:.2%}" if record.train_split else ""
    took = "kept" if progress.kept else f"{record.train_seconds:.1f} s"
    accuracy, epochs = share(record.tta_accuracy), f"{record.epochs:g} epoch{'s' * (record.epochs != 1)}"
    return f"{progress.key:<22} loss {record.tta_loss:.4f}  accuracy {accuracy}{train}  {epochs}  {took}"


def _draw(result: Result, out: Path | None, is_silent: bool) -> list[str]:
    """Draw the figures, and return a line that says where the files are. Where they cannot be written that is told at
    once, if lines are not shown."""
    if out is None:
        return []
    where = f"{', '.join(result.files())} are in {out}"
    try:
        return [f"figures, {where}" if result.draw(out) else where]
    except UserError as error:
        line = f"{where}; no figures: {error}; the same command again draws them"
        if is_silent:
            notify(line)
        return [line]
