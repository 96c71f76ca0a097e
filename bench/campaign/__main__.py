"""The command line of the campaign: see the package's docstring."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.campaign import __doc__ as description
from bench.campaign.campaign import Campaign
from bench.campaign.data import check, read_first
from bench.campaign.faults import VARIABLE, read_faults
from bench.campaign.race import RIVALS
from bench.campaign.recipes import VARIANTS
from bench.campaign.schedule import BY_NAME, PARTS, SECONDS, Stage, part_names, parts_of, races, wants_images
from bench.campaign.summary import summary
from bench.peers.programs import get_program
from bench.program import new_parser, run_program
from fastcifar.errors import UserError


def main() -> int:
    parser = new_parser("bench.campaign", description)
    parser.add_argument("stage", nargs="?", choices=SECONDS, help="both in turn unless given")
    parser.add_argument("--out", type=Path, help="folder for the results, added to those there; --tiny makes a new one")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10, for the smoke a part of it")
    parser.add_argument("--peers", type=Path, help="folder with checkouts of other people's programs")
    parser.add_argument("--seconds", type=float, help="of each stage, at most (smoke 150, campaign 330)")
    only = "parts, by commas, each also as PART:RECIPE: " + ", ".join(part_names())
    parser.add_argument("--only", default="", metavar="PARTS", help=only)
    parser.add_argument("--rivals", default=",".join(RIVALS), help="programs to race, by commas (%(default)s)")
    ours = "the variant of our recipe that races them: a name in bench/campaign/recipes.py"
    parser.add_argument("--ours", choices=VARIANTS, metavar="VARIANT", help=ours)
    limits = "seconds after which parts are ended, in place of their shares, as in steps=20,trainings:davidnet=60"
    parser.add_argument("--limits", default="", metavar="PART=SECONDS", help=limits)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="everything at a size for a test, synthetic images")
    arguments = parser.parse_args()

    stages = [arguments.stage] if arguments.stage else list(SECONDS)
    titles = [part.title for part in (*PARTS["smoke"], *PARTS["campaign"], *BY_NAME)]
    names = list(dict.fromkeys([*part_names(), *titles]))  # of parts: with and without their recipe or rival
    only = [name for name in arguments.only.split(",") if name]
    _refuse_unknown("--only", only, names)
    limits = _read_limits(arguments.limits, names)
    faults = read_faults(os.environ.get(VARIABLE, ""), names, list(VARIANTS))
    rivals = [name for name in arguments.rivals.split(",") if name]
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise UserError(f"--seconds is {arguments.seconds:g}; allowed: above 0")
    if arguments.out is None and not arguments.tiny:
        raise UserError("--out is missing; allowed without it: --tiny")
    if "campaign" in stages and not arguments.tiny:
        raced = races("campaign", only, rivals, tiny=False)
        if arguments.peers is None and raced:
            raise UserError("--peers is missing; allowed without it: --rivals '', which races nobody")
        for rival in (race.of for race in raced):
            checkout = arguments.peers / get_program(rival).checkout
            if not checkout.is_dir():
                raise UserError(f"--peers: {checkout} is no folder; allowed: a checkout of {rival}, or other --rivals")
    full = not arguments.tiny
    trained = {stage for stage in stages if full and wants_images(stage, only, rivals)}
    first = read_first(arguments.data_dir) if "smoke" in trained else None
    check(arguments.device, arguments.data_dir, "campaign" in trained or (trained and first is None), wants_gpu=full)

    out = arguments.out or Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out} is no folder for results ({error.strerror})") from None
    print(f"results in {out}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # which also ends the parts
    places = (arguments.data_dir, arguments.peers)
    chosen = {"ours": arguments.ours, "first_images": first}
    campaign = Campaign(out, arguments.device, arguments.tiny, *places, faults, **chosen)
    try:
        for name in stages:
            stage = Stage(campaign, arguments.seconds or SECONDS[name], limits, partial(_tell, name, time.monotonic()))
            stage.run(parts_of(name, only, arguments.tiny), races(name, only, rivals, arguments.tiny))
    finally:  # also where all is cut off
        print()
        print("\n".join(summary(out)), flush=True)
    return 0


def _tell(stage: str, began: float, line: str) -> None:
    print(f"{stage}, {time.monotonic() - began:.0f} s: {line}", flush=True)


def _refuse_unknown(option: str, given: list[str], allowed: list[str]) -> None:
    if unknown := [name for name in given if name not in allowed]:
        raise UserError(f"{option} names {', '.join(unknown)}; allowed: {', '.join(allowed)}")


def _read_limits(text: str, names: list[str]) -> dict[str, float]:
    limits = {}
    for word in filter(None, text.split(",")):
        name, _, seconds = word.partition("=")
        _refuse_unknown("--limits", [name], names)
        try:
            limits[name] = float(seconds)
        except ValueError:
            raise UserError(f"--limits has {word!r}; allowed: PART=SECONDS, as in steps=20") from None
    return limits


if __name__ == "__main__":
    run_program("bench.campaign", main)
