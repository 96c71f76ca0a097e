"""Adapter of pytorch's test/test_optim.py: our optimizers in place of torch's in `optim_db`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.foreign import optimizers
from bench.foreign.pytorch import common_optimizers as theirs
from bench.peers.adapt import stand_in

for name, members in (
    ("optim.test_lrscheduler", ("TestLRScheduler",)),
    ("optim.test_optim", ("TestDifferentiableOptimizer",)),
    ("optim.test_swa_utils", ("TestSWAUtils",)),
):  # imported there, for tests of torch's own
    stand_in(name, **dict.fromkeys(members))


SETTINGS: dict[type, tuple[dict[str, Any], ...]] = {
    optimizers.SGD: (
        {},
        {"lr": 1e-2},
        {"lr": torch.tensor(0.001)},
        {"weight_decay": 0.5},
        {"momentum": 0.0},
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": False},
    ),
    optimizers.LARS: (
        {},
        {"lr": 1e-2},
        {"lr": torch.tensor(0.001)},
        {"weight_decay": 0.5},
        {"momentum": 0.0},
        {"trust_coefficient": 0.1, "weight_decay": 0.1},
    ),
    optimizers.Muon: (
        {},
        {"lr": 1e-2},
        {"lr": torch.tensor(0.001)},
        {"weight_decay": 0.2},
        {"momentum": 0.8},
        {"nesterov": False},
        {"ns_steps": 6},
        {"ns_coefficients": (3.4, -4.7, 2.0)},
        {"norm_every": 2},
    ),
    optimizers.Lookahead: ({}, {"lr": torch.tensor(0.001)}, {"weight_decay": 0.5}, {"every": 3, "decay": 0.2}),
}


def inputs(cls: type) -> list[theirs.OptimizerInput]:
    """Return the settings that a class is tested with; a test changes them, so each call makes them anew."""
    copies = [
        {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in settings.items()}
        for settings in SETTINGS[cls]
    ]
    return [theirs.OptimizerInput(params=None, kwargs=settings, desc=str(settings)) for settings in copies]


def errors(device: str, dtype: torch.dtype) -> list[theirs.ErrorOptimizerInput]:
    """Return what torch's optimizers all refuse, and a momentum below 0; in our words where the check is ours."""
    refused = theirs.get_error_inputs_for_all_optims(device, dtype)
    for error in refused:
        if "lr" in error.error_regex:
            error.error_regex = "lr"
    momentum = theirs.OptimizerInput(params=None, kwargs={"lr": 1e-2, "momentum": -0.5}, desc="momentum below 0")
    return [*refused, theirs.ErrorOptimizerInput(momentum, error_type=ValueError, error_regex="momentum")]


theirs.optim_db[:] = [
    theirs.OptimizerInfo(
        cls,
        optim_inputs_func=lambda device, dtype=None, cls=cls: inputs(cls),
        optim_error_inputs_func=errors,
        supported_impls=(),  # foreach, fused and differentiable are no settings of ours
        supports_complex=cls is optimizers.SGD,
    )
    for cls in SETTINGS
]

REASONS = {
    "*::test_can_load_from_to_named_state_dict*Muon_*: AssertionError: The length*": (
        "counts the names of vectors, which Muon is not given"
    ),
    "*::test_step_*hook*_Muon_*: *shape [[]2]*": ("has a vector as its only parameter, which Muon refuses"),
    "*::test_step_all_hooks_Lookahead_*: AssertionError: Lists differ*": (
        "counts global hooks, which the optimizer inside calls, too"
    ),
}


def is_ours(item: pytest.Item) -> bool:
    """Return whether a test's name has one of ours."""
    return any(f"_{cls.__name__}_" in item.name for cls in SETTINGS)
