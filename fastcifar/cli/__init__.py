"""The command line. A command's module, and what it imports, is loaded when it is called: `--help` needs neither."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fastcifar import __version__
from fastcifar.errors import NonFiniteLoss, RenamedWarning, UserError, did_you_mean

COMMANDS = {
    "train": "fastcifar.cli.train",
    "eval": "fastcifar.cli.evaluate",
    "recipes": "fastcifar.cli.recipes",
    "data info": "fastcifar.cli.data_info",
    "warm-start": "fastcifar.cli.warm_start",
    "flops": "fastcifar.cli.flops",
    "compare": "fastcifar.cli.compare",
    "ablate": "fastcifar.cli.ablate",
}
"""Each command and the module whose `main(args) -> int` runs it."""

HELP = """\
usage: fastcifar COMMAND [OPTIONS]

Trains CIFAR-10 networks as fast as the hardware allows, repeatably and measured honestly.

  train                train a recipe's network and save the run
  eval RUN_DIR         evaluate the network of a saved run again
  recipes              list the named recipes
  recipes show NAME    print a recipe as a TOML file, which train --recipe reads
  recipes tricks       the tricks that a recipe can use: what they are, who had them
  data info            what a data set holds and where it was found
  warm-start NAME      experiments of many runs on warm starts: half, table or online
  flops                count a recipe's operations and bytes, and the least time they mean
  compare A B          which of two recipes is better, on held-out images, stopping early
  ablate               what each trick of a recipe is worth, switched off one at a time

  fastcifar COMMAND --help says more; fastcifar --version says which this is.

examples:
  fastcifar train --quick                       under a minute on two CPU cores
  fastcifar train --runs 5                      seeds 0 to 4: mean, spread, interval
  fastcifar train --epochs 12 --optimizer.lr 2  every field of a recipe is a flag

exit status: 0 done, 1 ablate --verify found something, 2 bad input, 3 the loss became NaN or infinite, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own arguments if None) and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with _renamings_in_a_line():
            status = _run(args)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except UserError as error:
        return _fail(error, 2)
    except NonFiniteLoss as error:
        return _fail(error, 3)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:  # the reader, such as `head`, has left: end as quietly as other programs do
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if args == ["--version"]:
        print(f"fastcifar {__version__}")
        return 0
    for words in (2, 1):
        module = COMMANDS.get(" ".join(args[:words]))
        if module:
            return importlib.import_module(module).main(args[words:])
    given = " ".join(args[:2] if args[0] == "data" else args[:1])
    raise UserError(f"unknown command {given!r}{did_you_mean(given, COMMANDS)}; allowed: {', '.join(COMMANDS)}")


@contextlib.contextmanager
def _renamings_in_a_line() -> Iterator[None]:
    """Show a `RenamedWarning`, once each, as errors are shown."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, RenamedWarning):
                _say(message)
            else:
                others(message, category, *where)

        warnings.showwarning = show
        warnings.simplefilter("default", RenamedWarning)
        yield


def _fail(message: object, status: int) -> int:
    _say(message)
    return status


def _say(message: object) -> None:
    print("fastcifar: " + " ".join(str(message).split()), file=sys.stderr)
