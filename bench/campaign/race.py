"""Part `race`: whole trainings of another program and of our recipe beside it, in turn. Part `cold`: the time from the
start of a fresh process with empty compile caches to its first accuracy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.campaign.campaign import Campaign, Line, scratch
from bench.campaign.recipes import VARIANTS, get_recipe, shrink
from bench.peers import PeerError
from bench.peers.programs import COLD, OURS, PROGRAMS
from bench.peers.race import SIDES, Conditions, start_cold, take_turns
from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES, change, to_toml

RIVALS = ("cifar10-speedrun", "fulcrum-e1", "fulcrum-e5")  # the programs set beside ours, in order of value
TINY_RIVAL = "tiny"
_WANTED = 20  # rounds with a rival, over all calls
_MARGIN = 5.0  # seconds


def race(campaign: Campaign, rival: str) -> Iterator[Line]:
    """Train each once untimed, which also compiles; then, when it is this rival's turn, in rounds while the time lasts,
    one at least. Raises UserError where a side fails, CaptureFailed where ours was not captured."""
    ours = _ours(campaign, rival)
    names = {"rival": rival, "ours": ours}
    runs = [run for run in campaign.records("race", "run") if not run["warm_up"] and names.items() <= run.items()]
    wanted, done = 2 if campaign.tiny else _WANTED, min([run["side"] for run in runs].count(side) for side in SIDES)
    if done >= wanted:
        return
    recipe = _recipe(ours)
    theirs = OURS + recipe if rival == TINY_RIVAL else rival
    sides = {"theirs": (theirs, checkout(campaign, theirs)), "ours": (OURS + recipe, None)}
    gap = 0.0 if campaign.tiny else 0.5
    # A rival that is too slow is told apart from one that hangs a little before this process is ended.
    conditions = Conditions(**images(campaign), gap=gap, timeout=lambda: _until(campaign.stops - _MARGIN))
    turns = take_turns(sides, range(done, wanted + 1), conditions)
    longest, began = 0.0, time.monotonic()
    with contextlib.closing(turns):
        for turn in turns:
            if turn.error:
                print(turn.error.traceback)
                raise UserError(f"{turn.side}: {turn.error}")
            if turn.side == "ours":
                campaign.require_capture(ours, turn.run["captured"], turn.run["not_captured"])
            warm_up = turn.round == done
            yield {"what": "run", **names, "side": turn.side, "warm_up": warm_up, **turn.facts, **turn.run}
            if turn.side == SIDES[-1]:
                if warm_up:
                    campaign = campaign.wait_for_turn()
                else:
                    longest = max(longest, time.monotonic() - began)
                    if campaign.seconds_left < longest:
                        return
                began = time.monotonic()


def _ours(campaign: Campaign, rival: str) -> str:
    """Return the name of the recipe that races the rival, or of the campaign's variant of it."""
    if rival == TINY_RIVAL:
        return TINY_RIVAL
    ours = PROGRAMS[rival].rival or "davidnet"
    return campaign.ours if campaign.ours and VARIANTS[campaign.ours][0] == ours else ours


def _recipe(ours: str) -> str:
    """Return the name of a recipe, or the file of what only the campaign has a name for."""
    if ours == TINY_RIVAL:
        return tiny_recipe()
    if ours in RECIPES:
        return ours
    file = scratch() / f"{ours}.toml"
    file.write_text(to_toml(get_recipe(ours, tiny=False)), encoding="utf-8")
    return str(file)


def cold(campaign: Campaign) -> Iterator[Line]:
    """Start our recipes cold, then those programs of other people that compile for minutes."""
    recipes = [tiny_recipe()] if campaign.tiny else ["davidnet", "speedrun94"]
    known = {record["program"] for record in campaign.records("cold", "cold")}
    for name in [OURS + recipe for recipe in recipes] + list(COLD if campaign.peers and not campaign.tiny else ()):
        if name in known or campaign.seconds_left < 0:
            continue
        try:
            conditions = Conditions(**images(campaign), timeout=lambda: _until(campaign.stops))
            _, run = start_cold(name, checkout(campaign, name), conditions)
        except PeerError as error:
            yield {"what": "finding", "program": name, "found": str(error), "printed": error.traceback}
        else:
            yield {"what": "cold", "program": name, **run}


def tiny_recipe() -> str:
    """Write a recipe of a few steps of a narrow network, and return its file."""
    file = scratch() / "tiny.toml"
    few = {"epochs": 0.01, "network.widths": [8, 8, 8], "evaluate.tta": "none"}
    recipe = change(shrink(RECIPES["speedrun94"]), {"name": TINY_RIVAL, **few})
    file.write_text(to_toml(recipe), encoding="utf-8")
    return str(file)


def checkout(campaign: Campaign, name: str) -> Path | None:
    """Return the folder of a program that is not ours, None for ours."""
    return None if name.startswith(OURS) else campaign.peers / PROGRAMS[name].checkout


def images(campaign: Campaign) -> dict[str, Any]:
    """Return the data and the device with which programs are run."""
    return {"data": "synthetic" if campaign.tiny else campaign.data, "device": campaign.device.type}


def _until(moment: float) -> float:
    return max(1.0, moment - time.monotonic())
