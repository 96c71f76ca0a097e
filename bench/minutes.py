"""Predict how long a training takes on this CPU as it is, and held to the instructions that most have.

    python -m bench.minutes                         # speedrun94, 3 rounds: 5 minutes on two cores
    python -m bench.minutes --recipe speedrun96 --rounds 5 --save FILE

Each way is a process of its own, asked in turn. In each round it takes a step of every kind that a training on CIFAR-10
has (size of images, frozen parameters), and evaluates some images; the minutes are those times the numbers of a whole
training. Reading the data and the whitening are left out: seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.program import new_recipe_parser, recipe_of, run_program
from bench.record import show
from bench.resident import Resident
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
WAYS = {"as it is": {}, "held to AVX2": AVX2}
"""Variables of each process's environment."""
_AMX_HELD = {"held to AVX512-BF16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}}


def measure(recipe: Recipe, rounds: int, tell: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Return for each way the `facts` of its process, and its `minutes`, one for each round."""
    ways = WAYS | (_AMX_HELD if torch.cpu._is_amx_tile_supported() else {})
    request = {"recipe": dataclasses.asdict(recipe)}
    with contextlib.ExitStack() as stack:
        workers = {
            way: stack.enter_context(Resident(way, "bench.minutes_worker", environment=environment))
            for way, environment in ways.items()
        }
        found = {way: {"facts": worker.ask(request), "minutes": []} for way, worker in workers.items()}
        for number in range(1, rounds + 1):
            for way, worker in workers.items():
                minutes = worker.ask({})["seconds"] / 60
                found[way]["minutes"].append(minutes)
                tell(f"{way}, round {number} of {rounds}: {minutes:.1f} minutes")
    return found


def records(found: dict[str, dict[str, Any]], name: str, command: str) -> list[dict[str, object]]:
    """Return the results as `bench.record.append` takes them; name: the recipe's; command: what measured."""
    return [
        {
            "what": f"a whole `{name}`, predicted from its steps and its evaluation, this CPU {way}",
            "value": f"{statistics.median(each['minutes']):.1f} minutes ({each['facts']['dtype']}, "
            f"{each['facts']['level']}, {each['facts']['threads']} threads)",
            "n": len(each["minutes"]),
            "spread": f"{min(each['minutes']):.1f} to {max(each['minutes']):.1f}",
            "command": command,
            **each,
        }
        for way, each in found.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_recipe_parser("bench.minutes", __doc__)
    parser.set_defaults(recipe="speedrun94")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}; allowed: 1 or more")
    recipe = recipe_of(options)
    command = f"python -m bench.minutes --recipe {options.recipe}" + " --quick" * options.quick
    for record in records(measure(recipe, options.rounds), recipe.name, command):
        show(record, options.save, "cpu")
    return 0


if __name__ == "__main__":
    run_program("bench.minutes", main)
