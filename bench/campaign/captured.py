"""A training whose steps could not be captured is slower: a failure, and none of the timings that it would give."""

from __future__ import annotations

from bench.campaign.campaign import Campaign


class CaptureFailed(RuntimeError):
    """The steps of a recipe run without a CUDA graph."""


def require_capture(campaign: Campaign, name: str, captured: bool | None, not_captured: str | None) -> None:
    """Raise CaptureFailed where a training of the recipe `name` on CUDA was not `captured`, for which `not_captured` is
    the reason, and where a fault is set. On a CPU nothing is captured."""
    if name in campaign.faults.nocapture:
        raise CaptureFailed(f"{name}: its capture counts as failed, as a fault that is set says")
    if campaign.device.type == "cuda" and not captured:
        raise CaptureFailed(f"{name}: {not_captured}")
