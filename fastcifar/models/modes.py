"""Modules in training or evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

Modes = Sequence[tuple[nn.Module, bool]]
"""Modules, each before those inside it, and whether they were in training mode."""


def modes(model: nn.Module) -> Modes:
    """Return the modes of `model` and all modules in it."""
    return [(module, module.training) for module in model.modules()]


def restore(before: Modes) -> None:
    """Bring back what `modes` returned."""
    for module, training in before:
        if module.training != training:
            module.train(training)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Keep `model` in evaluation mode within a `with` block; after it each module is in the mode that it was in."""
    before = modes(model)
    model.eval()
    try:
        yield
    finally:
        restore(before)
