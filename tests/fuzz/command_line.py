"""The words of a command line, with a zero byte between them: what is read of them before torch is imported."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fastcifar.cli import data_convert, data_info, data_list, data_verify, evaluate, flops, recipes, robustness, train
from fastcifar.cli.arguments import parse, parse_with_recipe, quick_train_size
from fastcifar.cli.experiment import read_options
from fastcifar.errors import UserError
from fastcifar.experiments import EXPERIMENTS
from tests.fuzz.engine import one_line
from tests.fuzz.values import number, word

Read = Callable[[Sequence[str]], Any]


CASES = 40


def _train(args: Sequence[str]) -> Any:
    options = parse_with_recipe(args, train.Options, train.PROG, train_size=quick_train_size(args))
    options.check(options.settings)
    return options


def _parsed(options: type) -> Read:
    return lambda args: parse(args, options(), "fastcifar")


def _flops(args: Sequence[str]) -> Any:
    options = parse_with_recipe(args, flops.Options, flops.PROG, shorten=None)
    flops._rates(options)
    return options


def _eval(args: Sequence[str]) -> Any:
    options = parse(args, evaluate.Options(), "fastcifar")
    evaluate.asked(options)
    return options


def _robustness(args: Sequence[str]) -> Any:
    options = parse(args, robustness.Options(), "fastcifar")
    robustness.asked_of(options)
    return options


COMMANDS: dict[str, Read] = {
    "train": _train,
    "flops": _flops,
    "eval": _eval,
    "robustness": _robustness,
    "info": _parsed(data_info.Options),
    "list": _parsed(data_list.Options),
    "verify-data": _parsed(data_verify.Options),
    "convert": lambda args: data_convert._checked(parse(args, data_convert.Options(), "fastcifar")),
    "recipes": _parsed(recipes.ListOptions),
    "show": _parsed(recipes.ShowOptions),
    "tricks": _parsed(recipes.TricksOptions),
    **{name: (lambda args, cls=cls: read_options(cls, args)) for name, cls in EXPERIMENTS.items()},
}
LINES = (
    "train --recipe speedrun94 --epochs 3 --out runs/a --runs 2 --seed 5 --quick",
    "train --network mlp --network.hidden 8 8 --optimizer Adam --optimizer.lr=0.1 --batch_size 64 --drop-last false",
    "train --warm-start a --shrink 0.5 --perturb 0.1 --reset-head --holdout third --train-size 1000 --balanced",
    "train --warm-start a --start dash:floor=0.1,alpha=0.5 --reset last-2 statistics --shrink-layers fc:shrink=0",
    "train --augment.early-crops 24 0.2 28 0.6 --schedule.name StepLR --schedule.options step_size=7 --classes 0,1",
    "train --help",
    "flops --tflops 1 2 --bandwidth 3 4 --json",
    "eval runs/a --tta none --device cpu",
    "eval runs/a --on synthetic --resize 32 --corrupt fog,noise --severity 1-3,5 --seed 2",
    "robustness runs/a runs/b --on cifar10.1 cifar10-c --corrupt fog --severity 2 --ensemble --out o --plot",
    "info --dataset synthetic --data-dir .",
    "list --data-dir . --json",
    "verify-data --dataset cifar10-c:fog-3 --all",
    "convert --dataset ./a.npz --data-dir . --to hdf5 --force b.h5",
    "recipes",
    "show davidnet",
    "tricks speedrun96",
    "compare davidnet speedrun94 --a-set epochs=3 --by accuracy --runs 3 --json",
    "ablate --only whitening --epochs 2",
    "verify --train-size 1000 --json",
    "screen --factors optimizer.lr=0.5..0.8 augment.cutout=4,epochs=8 --runs 2 --flop-worth 4e-4",
    "half --runs 2 --train-fraction 0.5",
    "online --seed 3",
    "table --networks mlp --optimizers sgd=0.1 Adam=0.001",
)
FLAGS = (
    "--epochs",
    "--out",
    "--recipe",
    "--network",
    "--seed",
    "--optim.lr",
    "--a-set",
    "--quick",
    "--",
    "-h",
    "-",
    "=",
)


def seeds() -> dict[str, bytes]:
    return {line: line.replace(" ", "\0").encode() for line in LINES}


def mutate(data: bytes, random: Random) -> bytes:
    """A word in the place of another, one more, one less, two in turn."""
    command, *words = data.split(b"\0")
    for _ in range(random.choice((1, 1, 2, 4))):
        new = random.choice(
            (number(random), word(random), random.choice(FLAGS), f"{random.choice(FLAGS)}={word(random)}")
        )
        place = random.randrange(len(words) + 1)
        words[place : place + random.choice((0, 1, 1, 2))] = random.choice(
            ([new.replace("\0", "").encode(errors="surrogateescape")], [], words[:2])
        )
    return b"\0".join([command, *words])


def check(data: bytes, folder: Path) -> bool:
    command, *words = (word.decode(errors="surrogateescape") for word in data.split(b"\0"))
    if any(word.startswith(("--tyro", "--plugin")) for word in words):  # which write files, and import modules
        return False
    read = COMMANDS.get(command, _train)
    shown = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        warnings.simplefilter("ignore")
        try:
            read(words)
        except UserError as error:
            one_line(error)
            return False
        except SystemExit as stop:
            assert not stop.code and shown.getvalue().startswith("usage: "), f"exit {stop.code} without a word"
    return True
