"""`fastcifar warm-start half|table|online`: the experiments of Ash and Adams (2020), shown as they go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from fastcifar.catalogue import DEFAULT_DATASET
from fastcifar.cli.arguments import RecipeOptions, Switch, last_given, parse_with_recipe, quick_recipe
from fastcifar.cli.arms import Show, output_folder, shown, start_device, take_train_size
from fastcifar.errors import UserError, did_you_mean
from fastcifar.recipes import Recipe, change, get_recipe, narrow, network_of
from fastcifar.start import check_factors

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.experiments import HalfResult, OnlineResult, Progress, TableResult

PROG = "fastcifar warm-start"
DEFAULT = "warmstart-resnet18"
NARROW = "warmstart-narrow"
"""The recipe of the quick experiments, and of those that a CPU can do."""

HELP = """\
usage: fastcifar warm-start half|table|online [OPTIONS]

The experiments of "On Warm-Starting Neural Network Training" (Ash and Adams 2020). Finished runs are kept: the same
command again goes on where it was, and with a larger --runs adds seeds.

  half      half of the images first, then all: warm start, random initialization, shrink and perturb
  table     the same for every network and optimizer, beside the paper's accuracies
  online    1,000 images more each round: training time and test accuracy

  fastcifar warm-start half --help lists an experiment's options; --quick tries it in about a minute.
"""


@dataclass(frozen=True)
class _Options(RecipeOptions):
    dataset: str = DEFAULT_DATASET
    """The data set."""
    data_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: $FASTCIFAR_DATA)")] = None
    """Folder that holds it; without one, CIFAR-10 is looked for in the user's cache, then downloaded."""
    split: Literal["test", "paper"] = "test"
    """test: test on the test set. paper: fit on two thirds of the training images, test on the other third."""
    train_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Take N of the images to fit on, always the same."""
    subset_seed: Annotated[int, arg(metavar="N")] = 0
    """Names the choice of images, for --train-size and for the first phase or the rounds."""
    shrink: Annotated[float, arg(metavar="S")] = 0.4
    """Shrink-perturb multiplies the weights by S, 0 to 1."""
    perturb: Annotated[float, arg(metavar="P")] = 0.1
    """Shrink-perturb adds P times fresh weights."""
    until_train_accuracy: Annotated[float | None, arg(metavar="A", help_behavior_hint="(default: all epochs)")] = None
    """End a run after the first epoch with this running training accuracy, a fraction; --epochs are then the most."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """The first seed."""
    runs: Annotated[int, arg(metavar="N")] = 1
    """Do all of it N times, with seeds S, S+1, ..."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/warm-start-...)")] = None
    """Folder for the runs, results.json, table.md, runs.json and figures: new, or one to go on in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: on a GPU if there is one."""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: torch's)")] = None
    """CPU threads."""
    quick: Switch = False
    """The same path in about a minute: a narrow network, few epochs, few images."""
    quiet: Switch = False
    """Print the last lines only."""


@dataclass(frozen=True)
class Half(_Options):
    """Train on half of the images, then on all of them: from those weights, from fresh ones, and from both mixed.

    The fields of the recipe stand last; their defaults are the recipe's.
    """

    fraction: Annotated[float, arg(metavar="F")] = 0.5
    """Share of the images in the first phase."""
    eval_every: Annotated[int, arg(metavar="N")] = 1
    """Epochs between evaluations, which make the curve; 0: only at the end."""


@dataclass(frozen=True)
class Table(_Options):
    """The experiment `half` for every network and optimizer, beside the paper's accuracies.

    The fields of the recipe stand last; their defaults are the recipe's.
    """

    networks: tuple[str, ...] = ("resnet18", "mlp")
    """Kinds of network; one that is not the recipe's is as the first named recipe has it that uses one."""
    optimizers: tuple[str, ...] = ("sgd", "Adam")
    """Kinds of optimizer, each with a rate of its own where one is given: sgd=0.03 Adam=0.001."""
    fraction: Annotated[float, arg(metavar="F")] = 0.5
    """Share of the images in the first phase."""


@dataclass(frozen=True)
class Online(_Options):
    """Add images round by round and train on all there are: anew each time, from the last weights, and from both mixed.

    The fields of the recipe stand last; their defaults are the recipe's, with Adam where no recipe is given.
    """

    round_size: Annotated[int, arg(metavar="N")] = 1000
    """Images that each round adds."""


Options = Half | Table | Online

EXPERIMENTS: dict[str, tuple[type[Half] | type[Table] | type[Online], dict[str, Any], dict[str, Any]]] = {
    "half": (Half, {}, {"train_size": 1500, "eval_every": 3}),
    "table": (
        Table,
        {"split": "paper", "until_train_accuracy": 0.99},
        {"train_size": 1000, "optimizers": ("sgd=0.03", "Adam")},
    ),
    "online": (Online, {"until_train_accuracy": 0.99}, {"train_size": 2000}),
}
"""Of each experiment its options, its own defaults for some, and those with --quick."""
QUICK_EPOCHS = 6


def main(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    name, rest = args[0], args[1:]
    if name not in EXPERIMENTS:
        raise UserError(
            f"unknown experiment {name!r}{did_you_mean(name, EXPERIMENTS)}; allowed: {', '.join(EXPERIMENTS)}"
        )
    options = _options(name, rest)
    _check(options)
    out = output_folder(options, f"warm-start-{name}-{options.settings.name}")
    about = "about" if options.until_train_accuracy is None else "at most"
    with shown(out, silent=options.quiet, bar=not options.quiet, describe=_said, about=about) as show:
        result = _run(name, options, out, show)
    _conclude(result, out, options)
    return 0


def _options(name: str, args: Sequence[str]) -> Options:
    """The options in `args`, by the experiment's own defaults and those that --quick gives it."""
    kind, defaults, quick_defaults = EXPERIMENTS[name]
    own = last_given(args, "--recipe") is None
    default = get_recipe(DEFAULT)
    if name == "online":
        default = change(default, {"optimizer": {"kind": "Adam", "lr": 0.001, "weight_decay": 0.0}})
    if last_given(args, "--quick") is not None:
        default, defaults = get_recipe(NARROW), defaults | quick_defaults

    def in_short(recipe: Recipe) -> Recipe:
        network = recipe.network if recipe.network == default.network else narrow(recipe.network)
        return dataclasses.replace(recipe, epochs=QUICK_EPOCHS, network=network) if own else quick_recipe(recipe)

    return parse_with_recipe(args, kind, f"{PROG} {name}", default=default, in_short=in_short, **defaults)


def _check(options: Options) -> None:
    """Refuse what can be refused before torch is imported."""

    def require(flag: str, ok: bool, allowed: str) -> None:
        if not ok:
            value = getattr(options, flag.removeprefix("--").replace("-", "_"))
            said = f"is {' '.join(value) if isinstance(value, tuple) else value}" if value != () else "has no value"
            raise UserError(f"{flag} {said}; allowed: {allowed}")

    settings = options.settings
    check_factors(options.shrink, options.perturb)
    require("--runs", options.runs >= 1, "1 or more")
    require("--seed", 0 <= options.seed <= 10**9 - options.runs, "0 up to 10**9 - 1, the last of --runs included")
    require("--subset-seed", 0 <= options.subset_seed < 2**32, "0 up to 2**32 - 1")
    if options.threads is not None:
        require("--threads", options.threads >= 1, "1 or more")
    if options.until_train_accuracy is not None:
        require("--until-train-accuracy", 0 < options.until_train_accuracy <= 1, "above 0, up to 1")
    if options.train_size is not None:
        require("--train-size", options.train_size >= 2, "2 or more images")
    if isinstance(options, Half | Table):
        require("--fraction", 0 < options.fraction < 1, "above 0, below 1")
    if isinstance(options, Half):
        require("--eval-every", options.eval_every >= 0, "0 (only at the end) or a number of epochs")
    if isinstance(options, Online):
        least = settings.batch_size
        require("--round-size", options.round_size >= least, f"batch_size, {least}, or more images")
    if isinstance(options, Table):
        rates = _rates(options)
        for flag, values in (("--networks", options.networks), ("--optimizers", options.optimizers)):
            names = rates if flag == "--optimizers" else set(values)
            require(flag, bool(values) and len(names) == len(values), "one or more, all different")
        for optimizer, lr in rates.items():
            changes = {"optimizer": optimizer} | ({} if lr is None else {"optimizer.lr": lr})
            for network in options.networks:
                change(settings, {"network": network, **changes}, f"--networks {network} --optimizers {optimizer}")


def _rates(options: Table) -> dict[str, float | None]:
    """Each of --optimizers and its rate; None where it has none of its own."""
    rates: dict[str, float | None] = {}
    for word in options.optimizers:
        optimizer, equals, rate = word.partition("=")
        try:
            rates[optimizer] = float(rate) if equals else None
        except ValueError:
            raise UserError(
                f"--optimizers has {word!r}; allowed: a name, or a name and a rate, as in Adam=0.001"
            ) from None
    return rates


def _run(name: str, options: Options, out: Path, show: Show) -> HalfResult | OnlineResult | TableResult:
    from fastcifar import experiments

    dataset = _load(options)
    show.say(
        f"{name}: {options.settings.name} on {dataset.name}, {len(dataset.train):,} images to fit on and "
        f"{len(dataset.test):,} {'held-out' if dataset.holdout else 'test'} ones, n={options.runs}; kept in {out}"
    )
    experiment: Callable[..., Any] = getattr(experiments, name)
    own = ("shrink", "perturb", "until_train_accuracy", "subset_seed", "device", "fraction", "eval_every")
    own += ("networks", "round_size")
    settings = {key: getattr(options, key) for key in own if hasattr(options, key)}
    if isinstance(options, Table):
        settings["optimizers"] = _rates(options)
        if options.quick:  # the recipe's own network is narrow already
            recipe = options.settings
            settings["networks"] = [
                kind if kind == recipe.network.kind else narrow(network_of(recipe, kind)) for kind in options.networks
            ]
    return experiment(
        options.settings,
        dataset,
        range(options.seed, options.seed + options.runs),
        out,
        **settings,
        on_progress=show.progress,
        on_step=show.step,
    )


def _load(options: _Options) -> Dataset:
    from fastcifar.data import load_dataset

    dataset = load_dataset(options.dataset, options.data_dir, start_device(options))
    if options.split == "paper":
        dataset = dataset.hold_out(len(dataset.train) - len(dataset.train) * 2 // 3)
    return take_train_size(dataset, options, options.subset_seed)


def _conclude(result: Any, out: Path, options: _Options) -> None:
    """Write the files, and show the tables and the answer."""
    from fastcifar.experiments import draw, write

    write(result, out)
    if not options.quiet:
        print()
        for table in result.tables():
            table.show()
    where = f"results.json, table.md and runs.json are in {out}"
    try:
        draw(result, out)
        where = f"figures, {where}"
    except UserError as error:
        where += f"; no figures: {error}; the same command again draws them"
    lines = [*result.remarks(), where]
    if options.quick:
        lines.insert(0, "quick: too few images and epochs to say anything about the question")
    print("\n".join(lines))


def _said(progress: Progress) -> str:
    """A finished run in a few words, or before the first what the time left is guessed from."""
    from fastcifar.experiments.half import train_accuracies
    from fastcifar.training import RunRecord

    record = progress.outcome
    if not isinstance(record, RunRecord):
        return "going by a few timed steps"
    took = "kept" if progress.kept else f"{record.train_seconds:.1f} s"
    (train_accuracy,) = train_accuracies([record])
    return f"{progress.key}: test {record.accuracy:.2%}, train {train_accuracy:.2%}, {record.epochs:g} epochs, {took}"
