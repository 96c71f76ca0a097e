"""Run other people's programs beside ours, in turn, on our data.

    python -m bench.peers --checkouts DIR --device cpu                   # 5 training steps a round, 5 rounds
    python -m bench.peers --checkouts DIR --device cpu --whole           # whole trainings, 2 rounds: an hour for each
    python -m bench.peers --checkouts DIR --device cuda                  # whole trainings, 20 rounds
    python -m bench.peers --checkouts DIR --cold                         # fresh processes with empty caches

DIR holds the checkouts under the names of their repositories; a peer whose folder is not there is left out. Each is a
process that stays, warmed once, and run in turn with a process of ours, with equal pauses. Where steps are timed, ours
is the recipe in bench/peers/equal whose step does the same work (its comments say what is equal). Where trainings are
timed, ours is the recipe with the same aim. The factor is how many times as fast ours is: the median over the rounds.
A peer whose whole trainings do not reach the accuracy that it publishes (`Program.accuracy`) has none, and the exit
code is 1, as where one fails. Where a signal ends the program, FILE gets the rounds that were finished.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections import deque
from pathlib import Path

from bench.peers.programs import COLD, PROGRAMS, get_program
from bench.peers.race import Conditions, Race, cold, race, table
from bench.program import add_save_option, new_parser, run_program
from bench.record import append
from fastcifar.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    outcomes = []
    for peer in choose(options.checkouts, options.only, options.device, options.cold):
        outcomes.append(measure(peer, options))
    print(table(outcomes))
    return int(any(outcome.failures or outcome.missed for outcome in outcomes))


def measure(peer: str, options: argparse.Namespace) -> Race:
    """Measure one peer as the command line asks, and save what was measured, also where a signal ends it."""
    by_steps = options.device == "cpu" and not (options.cold or options.whole)
    steps = None if options.whole else options.steps or (5 if by_steps else None)
    timing = {"steps": steps, "gap": options.gap, "timeout": lambda: options.timeout}
    conditions = Conditions(options.data_dir, options.device, cache=options.cache, **timing)
    rounds = options.rounds or (1 if options.cold else 5 if steps else 2 if options.device == "cpu" else 20)
    latest: deque[Race] = deque(maxlen=1)
    try:
        latest.extend((cold if options.cold else race)(peer, options.checkouts, conditions, rounds, _tell))
    finally:
        for outcome in latest if options.save else ():
            append(options.save, record(outcome, options), options.device)
    return latest[0]


def record(outcome: Race, options: argparse.Namespace) -> dict[str, object]:
    """Return the outcome as a result for `bench.record.append`: the row of the table, and every run behind it.
    An outcome without a factor, one that failed or missed its accuracy, is in no table."""
    row, factors, runs = outcome.row(), outcome.factors(), outcome.runs
    chosen = {"device": options.device, "steps": options.steps, "rounds": options.rounds}
    words = ["python", "-m", "bench.peers", "--checkouts", "DIR", "--only", outcome.peer]
    words += [word for name, value in chosen.items() if value for word in (f"--{name}", str(value))]
    words += ["--whole"] * options.whole + ["--cold"] * options.cold
    return {
        "table": "peers" if factors else None,
        "row": row,
        "n": len(factors),
        "spread": row["spread"],
        "command": shlex.join(words),
        "recipe": outcome.recipe,
        "gap": options.gap,
        "factors": factors,
        "facts": outcome.facts,
        # The sides say who ran, and the path of our recipe is this machine's.
        "runs": {side: [{k: run[k] for k in run if k != "peer"} for run in runs[side]] for side in runs},
        "failures": outcome.failures,
        "missed": outcome.missed,
    }


def choose(checkouts: Path, only: str | None, device: str, is_cold: bool) -> list[str]:
    """Return the peers to measure.

    checkouts: the folder of their checkouts.
    only: their names, by commas; None: those whose checkout is there.
    device: on CUDA those for a CPU alone are left out, unless named.
    is_cold: only those that compile for minutes, unless named.

    Raises UserError for an unknown name, and where there is no checkout.
    """
    if only is not None:
        names = [name.strip() for name in only.split(",")]
        for name in names:
            get_program(name)
        return names
    found = [name for name, program in PROGRAMS.items() if (checkouts / program.checkout).is_dir()]
    if is_cold:
        found = [name for name in found if name in COLD]
    if device != "cpu":
        found = [name for name in found if not PROGRAMS[name].cpu_only]
    if not found:
        folders = ", ".join(dict.fromkeys(program.checkout for program in PROGRAMS.values()))
        raise UserError(f"{checkouts} holds none of the checkouts; allowed: a folder with any of {folders}")
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser("bench.peers", __doc__)
    parser.add_argument("--checkouts", type=Path, required=True, help="folder of the peers' checkouts")
    parser.add_argument("--only", metavar="A,B", help=f"peers, of {', '.join(PROGRAMS)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data-dir", help="as of fastcifar train, or synthetic")
    parser.add_argument("--steps", type=_positive, help="training steps a round (cpu: 5; cuda: whole trainings)")
    parser.add_argument("--whole", action="store_true", help="whole trainings on a CPU too")
    parser.add_argument(
        "--rounds", type=_positive, help="runs of each, measured (steps: 5; trainings: 20, cpu: 2; cold: 1)"
    )
    parser.add_argument("--gap", type=float, default=1.0, help="idle seconds before each run")
    parser.add_argument("--timeout", type=float, help="seconds after which a run is ended")
    parser.add_argument("--cache", type=Path, help="folder that keeps what torch.compile and Triton compile")
    add_save_option(parser)
    parser.add_argument("--cold", action="store_true", help="process_seconds with empty caches")
    options = parser.parse_args(arguments)
    if not 0 <= options.gap < math.inf:
        raise UserError(f"--gap is {options.gap:g}; allowed: 0 or more seconds")
    if options.timeout is not None and not options.timeout > 0:
        raise UserError(f"--timeout is {options.timeout:g}; allowed: above 0")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    run_program("bench.peers", main)
