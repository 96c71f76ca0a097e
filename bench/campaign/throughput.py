"""Part `throughput`: images per second and memory of a recipe's step at batch sizes up to the first that does not
fit, as `fastcifar throughput` measures them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.campaign.campaign import Campaign, Line
from bench.campaign.recipes import get_recipe
from fastcifar.costs.throughput import Throughput

_FIRST = 32  # images, one of davidnet's ghost batches; with fewer a step takes as long
_TINY = 64  # the last size with `tiny`


def throughput(campaign: Campaign, recipe: str) -> Iterator[Line]:
    """Measure the sizes that earlier calls have left out, and then say which does not fit, and why."""
    known = [record for record in campaign.records("throughput") if record["recipe"] == recipe]
    if any(record["what"] == "end" for record in known):
        return
    found = Throughput(get_recipe(recipe, campaign.tiny), campaign.device, steps=2 if campaign.tiny else 20)
    first = max((2 * record["batch_size"] for record in known), default=_FIRST)
    for size in found.measure(first, max(first, _TINY) if campaign.tiny else None):
        campaign.require_capture(recipe, size.not_captured is None, size.not_captured)
        yield {"what": "size", "recipe": recipe, **size.to_json()}
        if campaign.seconds_left < 0:
            return
    yield {"what": "end", "recipe": recipe, "too_large": found.too_large, "ended": found.ended}
