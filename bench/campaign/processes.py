"""Parts `peers`, `cold` and `parallel`: what needs processes of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from bench.campaign.campaign import Campaign, Record
from bench.campaign.recipes import shrink
from bench.peers import PeerError
from bench.peers.programs import COLD, OURS, PROGRAMS
from bench.peers.race import SIDES, start_cold, take_turns
from fastcifar.recipes import RECIPES, to_toml

_RIVALS = ("cifar10-speedrun", "airbench94_muon", "cifar10-fast", "airbench95", "airbench96_faster", "hlb-CIFAR10")
"""The programs set beside ours, in order of value: while the first lacks runs, no later one has its turn."""
_ROUNDS = 20


def side_by_side(campaign: Campaign) -> Iterator[Record]:
    """Whole trainings of each program and of our recipe beside it, in turn, up to `_ROUNDS` of each over all calls."""
    if campaign.peers is None and not campaign.tiny:
        yield {"what": "skipped", "reason": "no --peers folder"}
        return
    for rival in ("tiny",) if campaign.tiny else _RIVALS:
        yield from _pair(campaign, rival)
        if campaign.seconds_left < 0:
            return


def _pair(campaign: Campaign, rival: str) -> Iterator[Record]:
    measured = [
        record["side"]
        for record in campaign.records("peers")
        if record.get("pair") == rival and record["what"] == "run" and not record["warm_up"]
    ]
    rounds, done = 2 if campaign.tiny else _ROUNDS, min(map(measured.count, SIDES))
    if done >= rounds:
        return
    ours = _tiny_recipe(campaign) if campaign.tiny else PROGRAMS[rival].rival or "davidnet"
    theirs = OURS + ours if campaign.tiny else rival
    sides = {"theirs": (theirs, _checkout(campaign, theirs)), "ours": (OURS + ours, None)}
    turns = take_turns(
        sides,
        range(done, rounds + 1),
        _data(campaign),
        campaign.device.type,
        steps=2 if campaign.tiny else None,
        gap=0.0 if campaign.tiny else 1.0,
        cache=campaign.scratch / "compiled",
        timeout=lambda: campaign.patience(60.0),
    )
    longest, began = 0.0, time.monotonic()
    with contextlib.closing(turns):
        for turn in turns:
            if turn.error:
                peer, _ = sides[turn.side]
                yield {"what": "failed", "pair": rival, "side": turn.side, "peer": peer, **_why(turn.error)}
                return
            # A worker's first run also compiles: it is kept, and counted as a warm-up.
            warm_up = turn.round == done
            yield {"what": "run", "pair": rival, "side": turn.side, "warm_up": warm_up, **turn.run}
            if turn.side == SIDES[-1]:
                if not warm_up:
                    longest = max(longest, time.monotonic() - began)
                if campaign.seconds_left < longest:
                    return
                began = time.monotonic()


def cold(campaign: Campaign) -> Iterator[Record]:
    """From the start of a fresh process with empty compile caches to its first accuracy: ours, then the peers'."""
    recipes = [_tiny_recipe(campaign)] if campaign.tiny else ["davidnet", "speedrun94"]
    known = {record["program"] for record in campaign.records("cold") if record["what"] == "cold"}
    for name in [OURS + recipe for recipe in recipes] + list(COLD if campaign.peers and not campaign.tiny else ()):
        if name in known:
            continue
        steps, timeout = 2 if campaign.tiny else None, campaign.patience(120.0)
        try:
            _, run = start_cold(
                *(name, _checkout(campaign, name), _data(campaign), campaign.device.type), steps=steps, timeout=timeout
            )
        except PeerError as error:
            yield {"what": "failed", "program": name, **_why(error)}
        else:
            yield {"what": "cold", "program": name, **run}
        if campaign.seconds_left < 0:
            return


def _tiny_recipe(campaign: Campaign) -> str:
    file = campaign.scratch / "tiny.toml"
    file.write_text(to_toml(shrink(RECIPES["davidnet"])), encoding="utf-8")
    return str(file)


def _checkout(campaign: Campaign, name: str) -> Path | None:
    return None if name.startswith(OURS) else campaign.peers / PROGRAMS[name].checkout


def _data(campaign: Campaign) -> Path | str | None:
    return "synthetic" if campaign.tiny else campaign.data


def _why(error: PeerError) -> Record:
    return {"reason": str(error), "log": error.traceback}


def parallel(campaign: Campaign) -> Iterator[Record]:
    """The library trains one network at a time."""
    yield {"what": "skipped", "reason": "fastcifar trains one network at a time on a device"}
