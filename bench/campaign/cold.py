"""Part `cold`: the time from the start of a fresh process with empty compile caches to its first accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from bench.campaign.campaign import Campaign, Line
from bench.campaign.race import checkout, conditions, tiny_recipe
from bench.peers import PeerError
from bench.peers.programs import COLD, OURS
from bench.peers.race import start_cold


def cold(campaign: Campaign) -> Iterator[Line]:
    """Start our recipes cold, then those programs of other people that compile for minutes."""
    recipes = [tiny_recipe()] if campaign.tiny else ["davidnet", "speedrun94"]
    known = {record["program"] for record in campaign.records("cold", "cold")}
    for name in [OURS + recipe for recipe in recipes] + list(COLD if campaign.peers and not campaign.tiny else ()):
        if name in known or campaign.seconds_left < 0:
            continue
        try:
            _, run = start_cold(name, checkout(campaign, name), conditions(campaign))
        except PeerError as error:
            yield {"what": "finding", "program": name, "found": str(error), "printed": error.traceback}
        else:
            yield {"what": "cold", "program": name, **run}
