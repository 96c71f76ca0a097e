"""The command line. A command's module, and what it imports, is loaded when it is called: `--help` needs neither."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from fastcifar import __version__
from fastcifar.errors import NonFiniteLoss, UserError

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
  data info            what a data set holds and where it was found
  warm-start NAME      experiments of many runs on warm starts: half, table or online
  flops                count a recipe's operations and bytes, and the least time they mean
  compare A B          which of two recipes is better, on held-out images, stopping early
  ablate               what each trick of a recipe is worth, switched off one at a time

  fastcifar COMMAND --help says more; fastcifar --version says which this is.

examples:
  fastcifar train --quick                       under a minute on two CPU cores
  fastcifar train --recipe davidnet --runs 5    seeds 0 to 4: mean, spread, interval
  fastcifar train --epochs 12 --optim.lr 0.8    every field of a recipe is a flag

exit status: 0 done, 2 bad input, 3 the loss became NaN or infinite, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (the process's own arguments if None) and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
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
    from fastcifar.recipes.fields import did_you_mean

    given = " ".join(args[:2] if args[0] == "data" else args[:1])
    raise UserError(f"unknown command {given!r}{did_you_mean(given, COMMANDS)}; allowed: {', '.join(COMMANDS)}")


def _fail(message: object, status: int) -> int:
    print("fastcifar: " + " ".join(str(message).split()), file=sys.stderr)
    return status
