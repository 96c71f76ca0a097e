"""The command line. A command's module, and what it imports, is loaded when it is called: `--help` needs neither."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fastcifar import __version__
from fastcifar.cli.streams import standard_streams, wrapped
from fastcifar.errors import (
    NonFiniteLoss,
    Notice,
    ProcessesDied,
    UserError,
    as_out_of_memory,
    did_you_mean,
    is_out_of_memory,
    one_line,
)
from fastcifar.launch import Rank
from fastcifar.signals import SIGNALS, Interrupted

COMMANDS = {
    "train": ("train", "fastcifar.cli.train", "train a recipe's network and save the run"),
    "finetune": ("finetune", "fastcifar.cli.finetune", "train on from given weights, all of them or the classifier"),
    "eval": ("eval RUN_DIR", "fastcifar.cli.evaluate", "evaluate the network of a saved run again"),
    "predict": ("predict RUN_DIR", "fastcifar.cli.predict", "write what a saved network takes images for"),
    "robustness": (
        "robustness RUN...",
        "fastcifar.cli.robustness",
        "compare shifted accuracies with a baseline",
    ),
    "summary": ("summary DIR", "fastcifar.cli.summary", "say what the runs in a folder say together"),
    "plot": ("plot RUN...", "fastcifar.cli.plot", "draw how runs went, and how they compare"),
    "report": ("report DIR...", "fastcifar.cli.report", "make one page of HTML about the runs in folders"),
    "agreement": ("agreement RUN...", "fastcifar.cli.agreement", "say how far runs agree, and what ensembles gain"),
    "show augmentations": (
        "show augmentations",
        "fastcifar.cli.show:augmentations",
        "draw what a recipe's network sees of images, epoch by epoch",
    ),
    "show filters": ("show filters RUN", "fastcifar.cli.show:filters", "draw the filters of a saved run's network"),
    "show images": ("show images", "fastcifar.cli.show:images", "draw a few images of each class of a data set"),
    "recipes": ("recipes", "fastcifar.cli.recipes", "list the named recipes"),
    "recipes show": ("recipes show NAME", "fastcifar.cli.recipes:show", "print a recipe as a TOML file for --recipe"),
    "recipes tricks": ("recipes tricks", "fastcifar.cli.recipes:tricks", "print what the tricks of recipes are"),
    "models": ("models", "fastcifar.cli.models", "list the networks, and their parameters"),
    "models list": ("models list", "fastcifar.cli.models", "the same"),
    "models show": ("models show NETWORK", "fastcifar.cli.models:show", "print a network's layers and what they cost"),
    "data list": ("data list", "fastcifar.cli.data_list", "list the data sets, and which are here"),
    "data info": ("data info", "fastcifar.cli.data_info", "say what a data set holds and where it was found"),
    "data verify": ("data verify", "fastcifar.cli.data_verify", "read all of a data set and say what is wrong with it"),
    "data convert": ("data convert OUT", "fastcifar.cli.data_convert", "write a data set as npz, HDF5 or TFRecord"),
    "doctor": ("doctor", "fastcifar.cli.doctor", "say whether this machine can train, and what to do"),
    "throughput": ("throughput", "fastcifar.cli.throughput", "measure a training step at growing batch sizes"),
    "flops": ("flops", "fastcifar.cli.flops", "count a recipe's operations and bytes, and their least time"),
}
"""`COMMANDS[words]`: how each command is typed, the module (and function) that runs it, and a line on it. Experiments
are commands too: see `fastcifar.experiments.EXPERIMENTS`."""

HELP = """\
usage: fastcifar COMMAND [OPTIONS]

Trains CIFAR-10 networks as fast as the hardware allows, repeatably and
measured honestly.

{commands}

  fastcifar COMMAND --help says more, and --help-all shows every flag;
  fastcifar --version says which this is.

examples:
  fastcifar train --quick                       a small network and few images
  fastcifar train --runs 5                      seeds 0 to 4, their mean
  fastcifar train --epochs 12 --optimizer.lr 2  every field is a flag
  fastcifar compare my.toml other.toml          which recipe is better

exit status: 0 done, 1 verify or doctor found something, 2 bad input, or what
doctor found fails, 3 the loss became NaN or infinite, 4 standard output could
not be written, 5 out of memory, 6 all processes of --parallel died, 129, 130
or 143 ended by SIGHUP, SIGINT or SIGTERM
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own arguments if None) and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    with standard_streams() as output:
        status = _status(args)
        output.flush()
        if status or not output.failure:
            return status
        if isinstance(output.failure, BrokenPipeError):  # the reader, such as `head`, has left: as other programs do
            return 141
        return _fail(f"cannot write to standard output: {output.failure.strerror or output.failure}", 4)


def _status(args: list[str]) -> int:
    try:
        with SIGNALS.taken(), _notices_in_a_line():
            return _run(args)
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except UserError as error:
        is_said = not _rank() or "torch" in sys.modules  # else all ranks of torchrun are refused alike
        return _fail(error, 2) if is_said else 2
    except ProcessesDied as error:
        return _fail(error, 6)
    except NonFiniteLoss as error:
        return _fail(error, 3)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(as_out_of_memory(error), 5)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        return 128 + number if _rank() else _fail(str(error) or "interrupted", 128 + number)


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        print(f"fastcifar {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help", "--help-all", "help"):
        _import_plugins(args)
        print(HELP.format(commands=_lines("")), end="")
        return 0
    given = " ".join(args[:2])
    words = given if given in COMMANDS else args[0]
    if words in COMMANDS:
        module, _, function = COMMANDS[words][1].partition(":")
        return getattr(importlib.import_module(module), function or "main")(args[len(words.split()) :])
    _import_plugins(args)  # which may bring the experiment
    experiments = _experiments()
    words = given if given in experiments else args[0]
    if words in experiments:
        command = importlib.import_module("fastcifar.cli.experiment")
        return command.main(experiments[words], args[len(words.split()) :])
    in_group = _lines(f"{args[0]} ")
    if in_group and (len(args) == 1 or args[1] in ("-h", "--help", "--help-all")):
        print(f"usage: fastcifar {args[0]} COMMAND [OPTIONS]\n\n{in_group}")
        return 0
    known = [name for name in (*COMMANDS, *experiments) if not in_group or name.startswith(f"{args[0]} ")]
    given = given if in_group else args[0]
    raise UserError(f"unknown command {given!r}{did_you_mean(given, known)}; allowed: {', '.join(known)}")


def _import_plugins(args: list[str]) -> None:
    if any(word.startswith("--plugin") for word in args):
        importlib.import_module("fastcifar.cli.arguments").import_plugins(args)


def _experiments() -> dict[str, Any]:
    """Return the registered experiments by the words of their commands, in the words' order, whatever was imported
    first."""
    from fastcifar.experiments import EXPERIMENTS

    named = {f"{cls.group} {name}".strip(): cls for name, cls in EXPERIMENTS.items()}
    experiments = {words: named[words] for words in sorted(named)}
    for words in experiments:
        if words in COMMANDS:
            raise UserError(f"the experiment {words!r} has the name of a command; allowed: another name")
    return experiments


def _lines(prefix: str) -> str:
    """Return a line for each command that begins with `prefix`."""
    lines = {words: (typed, line) for words, (typed, _, line) in COMMANDS.items()}
    for words, cls in _experiments().items():
        names = [field for field in cls.recipe_fields() if field != "recipe"]
        first = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")
        lines[words] = " ".join([words, *(name.upper() for name in names)]), first[:1].lower() + first[1:]
    shown = [(typed, line) for words, (typed, line) in lines.items() if words.startswith(prefix)]
    return "\n".join(wrapped(line, f"  {typed:<20} ", " " * 23) for typed, line in shown)


@contextlib.contextmanager
def _notices_in_a_line() -> Iterator[None]:
    """Show a `Notice`, once each, as errors are shown."""
    with warnings.catch_warnings():
        others, said = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, Notice):
                if str(message) not in said:  # Python's own once is over whenever its filters change
                    _say(message)
                said.add(str(message))
            else:
                others(message, category, *where)

        warnings.showwarning = show
        warnings.simplefilter("default", Notice)
        yield


def _fail(message: object, status: int) -> int:
    _say(message)
    return status


def _rank() -> int:
    try:
        return Rank.here().number
    except UserError:  # that is said
        return 0


def _say(message: object) -> None:
    where = f"rank {_rank()}: " if _rank() else ""
    print(f"fastcifar: {where}" + one_line(" ".join(str(message).split())), file=sys.stderr)
