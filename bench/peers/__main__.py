"""Other people's programs beside ours, in turn, on our data.

    python -m bench.peers --checkouts DIR --device cpu                   # 5 training steps a round, 5 rounds
    python -m bench.peers --checkouts DIR --device cuda                  # whole trainings, 20 rounds
    python -m bench.peers --checkouts DIR --cold                         # fresh processes with empty caches

DIR holds the checkouts under the names of their repositories; a peer whose folder is not there is left out. Each is a
process that stays, warmed once, and run in turn with a process of ours, with equal pauses. Where steps are timed, ours
is the recipe in bench/peers/equal whose step does the same work (its comments say what is equal); where trainings are,
ours is the recipe with the same aim. The factor is how many times as fast ours is: the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bench.peers.programs import COLD, PROGRAMS, get_program
from bench.peers.race import Race, cold, race, table
from bench.program import add_save_option, new_parser, run_program
from bench.record import append
from fastcifar.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    outcomes = []
    for peer in choose(options.checkouts, options.only, options.device, options.cold):
        outcome = measure(peer, options)
        outcomes.append(outcome)
        if options.save:
            append(options.save, record(outcome, options), options.device)
    print(table(outcomes))
    return int(any(outcome.failures for outcome in outcomes))


def measure(peer: str, options: argparse.Namespace) -> Race:
    where = (peer, options.checkouts, options.data_dir, options.device)
    if options.cold:
        rounds = options.rounds or 1
        return cold(*where, steps=options.steps, rounds=rounds, timeout=options.timeout, tell=_tell)
    steps = options.steps or (5 if options.device == "cpu" else None)
    rounds = options.rounds or (5 if steps else 20)
    further = {"gap": options.gap, "cache": options.cache, "timeout": options.timeout}
    return race(*where, steps=steps, rounds=rounds, **further, tell=_tell)


def record(outcome: Race, options: argparse.Namespace) -> dict[str, object]:
    """The outcome as a result for `bench.record.append`: the row of the README's table, and every run behind it. What
    has no factor is in no table."""
    row = outcome.row()
    chosen = {"device": options.device, "steps": options.steps, "rounds": options.rounds}
    words = ["python", "-m", "bench.peers", "--checkouts", "DIR", "--only", outcome.peer]
    words += [word for name, value in chosen.items() if value for word in (f"--{name}", str(value))]
    words += ["--cold"] * options.cold
    return {
        "table": "peers" if outcome.factors() else None,
        "row": row,
        "n": len(outcome.factors()),
        "spread": row["spread"],
        "command": shlex.join(words),
        "recipe": outcome.recipe,
        "gap": options.gap,
        "factors": outcome.factors(),
        "facts": outcome.facts,
        # Who ran is told by the keys, and the path of our recipe is this machine's.
        "runs": {
            side: [{key: value for key, value in run.items() if key != "peer"} for run in runs]
            for side, runs in outcome.runs.items()
        },
        "failures": outcome.failures,
    }


def choose(checkouts: Path, only: str | None, device: str, is_cold: bool) -> list[str]:
    """The peers asked for; without `only` those whose checkout is there. Raises UserError for an unknown one, and where
    there is none."""
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
    parser.add_argument("--rounds", type=_positive, help="runs of each, measured (steps: 5; trainings: 20; cold: 1)")
    parser.add_argument("--gap", type=float, default=1.0, help="idle seconds before each run")
    parser.add_argument("--timeout", type=float, help="seconds after which a run is ended")
    parser.add_argument("--cache", type=Path, help="folder that keeps what torch.compile and Triton compile")
    add_save_option(parser)
    parser.add_argument("--cold", action="store_true", help="process_seconds with empty caches")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    run_program("bench.peers", main)
