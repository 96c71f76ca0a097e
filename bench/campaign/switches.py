"""What is switched off until a GPU has shown that it is right and faster. Part `switches`: a step without them, with
each, and with all."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from unittest.mock import patch

from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import noise
from bench.campaign.recipes import MAIN, get_recipe
from bench.timing import best_seconds
from fastcifar.training import Trainer
from fastcifar.training.rehearse import replay_on_noise

SWITCHES: Mapping[str, tuple[str, str]] = {
    "conv-pool": ("fastcifar.models.convolution", "FUSE_POOL"),
    "dependent-launches": ("fastcifar.kernels.launch", "DEPENDENT_LAUNCHES"),
}
"""`SWITCHES[name]`: the module and the constant."""


def switch_on(*names: str) -> ExitStack:
    """Return a block that switches these on, and others off; what is entered and never left switches this process."""
    stack = ExitStack()
    for name, (module, constant) in SWITCHES.items():
        # By its name: `fastcifar.kernels.launch` is a function too.
        stack.enter_context(patch.object(importlib.import_module(module), constant, name in names))
    return stack


def switches(campaign: Campaign) -> Iterator[Line]:
    """Time a replayed step of each stage of the main recipes, captured with each combination that `_COMBINATIONS`
    names. What raises is a finding."""
    known = [(record["recipe"], record["on"]) for record in campaign.records("switches", "step")]
    for recipe in MAIN:
        for on in _COMBINATIONS:
            if (recipe, on) in known or campaign.seconds_left < 0:
                continue
            with switch_on(*on):
                try:
                    yield {"what": "step", "recipe": recipe, "on": on, "seconds": _steps(campaign, recipe)}
                except RuntimeError as error:
                    yield {"what": "finding", "program": f"{recipe}, {', '.join(on)}", "found": str(error)}


_COMBINATIONS = [[], *([name] for name in SWITCHES), list(SWITCHES)]


def _steps(campaign: Campaign, name: str) -> dict[str, float]:
    """Return the seconds of a step by the side of its images."""
    recipe = get_recipe(name, campaign.tiny)
    trainer = Trainer(recipe, noise(campaign, recipe.batch_size), campaign.device)
    calls, rows = (1, 1) if campaign.tiny else (20, 5)
    seconds = {
        str(stage.size): best_seconds(replay_on_noise(trainer, stage), campaign.device, calls, rows, captured=False)
        for stage in trainer.timeline.steps_by_stage()
    }
    campaign.require_capture(name, trainer.not_captured is None, trainer.not_captured)
    return seconds
