"""Adapter of kozistr/pytorch_optimizer's tests: our optimizers under its names `sgd`, `lars` and `muon`, and
Lookahead, around SGD, under one of its own: it has one of another form.

The tests read what is tested from tables, and ask for exceptions of its own. Those become ours.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from pytorch_optimizer import optimizer as theirs
from pytorch_optimizer.base import exception

from bench.foreign import optimizers

UNUSED = ("foreach", "eps", "k")
"""Arguments that its tests give to every optimizer, and that say nothing to ours."""


def _taking_all(cls: type) -> type:
    """Return a subclass of the same name that takes its tests' arguments: `UNUSED`, and groups with `use_muon`."""

    def __init__(self, params: Any, *rates: float, **settings: Any) -> None:
        settings = {name: value for name, value in settings.items() if name not in UNUSED}
        super(made, self).__init__(params, *rates, **settings)

    made = type(cls.__name__, (cls,), {"__init__": __init__})
    return made


SGD, LARS, Muon, Lookahead = map(_taking_all, (optimizers.SGD, optimizers.LARS, optimizers.Muon, optimizers.Lookahead))
OURS: dict[str, type] = {"sgd": SGD, "lars": LARS, "muon": Muon, "our_lookahead": Lookahead}
CONFIGURATIONS = [
    (SGD, {"lr": 0.5}, 10),
    (SGD, {"lr": 0.5, "weight_decay": 1e-3}, 10),
    (SGD, {"lr": 0.5, "momentum": 0.0}, 20),
    (SGD, {"lr": 0.5, "nesterov": False}, 10),
    (LARS, {"lr": 1.0, "trust_coefficient": 0.2}, 10),
    (LARS, {"lr": 1.0, "trust_coefficient": 0.2, "weight_decay": 1e-3}, 10),
    (LARS, {"lr": 1.0, "trust_coefficient": 0.2, "momentum": 0.0}, 40),
    (Muon, {"lr": 0.5}, 20),
    (Muon, {"lr": 0.5, "weight_decay": 1e-3}, 20),
    (Muon, {"lr": 0.5, "nesterov": False}, 20),
    (Muon, {"lr": 0.5, "norm_every": 20}, 20),
    (Lookahead, {"lr": 0.5}, 20),
    (Lookahead, {"lr": 0.5, "weight_decay": 1e-3}, 20),
]
"""Class, settings and steps within which the loss of two hundred points has to fall by a third."""

for name in ("NegativeLRError", "NoComplexParameterError", "NoSparseGradientError"):
    setattr(exception, name, ValueError)
theirs.OPTIMIZERS.clear()
theirs.OPTIMIZERS.update(OURS)

constants = import_module("tests.constants")  # now that its table has ours
constants.OPTIMIZERS = CONFIGURATIONS
for name in dir(constants):
    if name == "FOREACH_OPTIMIZERS" or name.startswith("SKIP_"):
        setattr(constants, name, getattr(constants, name) - OURS.keys())
constants.SKIP_EPSILON |= OURS.keys()
constants.COMPLEX_OPTIMIZERS = frozenset(OURS.keys() - {"muon"})

REASONS = {
    "*::test_init_group*: TypeError: *num_iterations*": (
        "asks for init_group, a method of pytorch_optimizer's own base class"
    ),
    "*::test_*_optimizers*Muon*: AssertionError: Loss did not decrease enough*": (
        "asks for a loss that takes the biases, too, which Muon leaves alone"
    ),
    "*::test_sparse_not_supported*: Failed: DID NOT RAISE*": (
        "ours is torch's SGD, which takes sparse gradients, and Lookahead is around it"
    ),
    "*::test_complex_not_supported[[]muon]: *UserError: a parameter of Muon is torch.complex64*": (
        "asks for a refusal by step(); ours is made before it"
    ),
}


def is_ours(item: pytest.Item) -> bool:
    """Return whether a test has one of ours as parameter."""
    callspec = getattr(item, "callspec", None)
    values = [] if callspec is None else list(callspec.params.values())
    values += [value[0] for value in values if isinstance(value, tuple)]
    return any(value in OURS if isinstance(value, str) else value in OURS.values() for value in values)
