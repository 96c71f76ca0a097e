"""The command line of the campaign: see the package's docstring."""

from __future__ import annotations

import time
from pathlib import Path

from bench.campaign import __doc__ as description
from bench.campaign.campaign import Campaign, Part, run_part
from bench.campaign.environment import environment
from bench.campaign.kernels import kernels
from bench.campaign.processes import cold, parallel, side_by_side
from bench.campaign.summary import summary
from bench.campaign.training import steps, trainings
from bench.program import new_parser, run_program
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.training import resolve_device

PARTS: dict[str, tuple[Part, float]] = {
    "env": (environment, 8),
    "kernels": (kernels, 14),
    "steps": (steps, 14),
    "davidnet": (trainings("davidnet"), 18),
    "speedrun": (trainings("speedrun94"), 18),
    "peers": (side_by_side, 20),
    "cold": (cold, 8),
    "parallel": (parallel, 0),
}
"""Every part in order of value, with its share of the time that is left to it and the later ones."""

_OVERTIME = 0.08
"""Of a budget of 540 seconds 43, in which a command that is cut off after 600 still ends."""


def main() -> int:
    parser = new_parser("bench.campaign", description)
    budget = f"seconds for everything; what is at hand at their end may take {_OVERTIME:.0%} more".replace("%", "%%")
    parser.add_argument("--budget", type=float, default=540, help=budget)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, added to those there")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas: " + ", ".join(PARTS))
    parser.add_argument("--peers", type=Path, help="folder with checkouts of other people's programs")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="everything at a size for a test, synthetic images")
    arguments = parser.parse_args()

    names = [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"--only names {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    started = time.monotonic()
    ends, stops = started + arguments.budget, started + (1 + _OVERTIME) * arguments.budget
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    campaign = Campaign(arguments.out, device, arguments.tiny, arguments.data_dir, arguments.peers, ends, stops)
    ordered = [name for name in PARTS if name in names]
    for place, name in enumerate(ordered):
        part, share = PARTS[name]
        shares = sum(PARTS[later][1] for later in ordered[place:])
        left = ends - time.monotonic()
        if left <= 0:
            print(f"{name}: left out, the time is up", flush=True)
            continue
        began = time.monotonic()
        written = run_part(campaign, name, part, left * share / shares if shares else left)
        print(f"{name}: {written} results in {time.monotonic() - began:.0f} s", flush=True)
    print()
    print("\n".join(summary(campaign, ordered)))
    return 0


if __name__ == "__main__":
    run_program("bench.campaign", main)
