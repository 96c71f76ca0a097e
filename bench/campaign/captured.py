"""A training whose steps could not be captured is slower: a failure, and none of the timings that it would give."""

from __future__ import annotations

from bench.campaign.campaign import Campaign, Record


class CaptureFailed(RuntimeError):
    """The steps of a recipe run without a CUDA graph."""


def require_capture(campaign: Campaign, name: str, record: Record) -> None:
    """Raise CaptureFailed where `record`, a training's of the recipe `name`, says so on CUDA, and where a fault is set.
    On a CPU nothing is captured."""
    if name in campaign.faults.nocapture:
        raise CaptureFailed(f"{name}: its capture counts as failed, as a fault that is set says")
    if campaign.device.type == "cuda" and not record["captured"]:
        raise CaptureFailed(f"{name}: {record['not_captured']}")
