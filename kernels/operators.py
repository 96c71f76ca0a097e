"""Registration of the operators under `torch.ops.fastcifar`.

`torch.library.Library` and not its wrapper `torch.library.custom_op`, for the same kind of operator: the wrapper's
first call imports torch.compile's machinery (and Triton with it), 1.2 s of every process that never compiles anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_library = torch.library.Library("fastcifar", "DEF")


def operator(schema: str, implementation: Callable, fake: Callable) -> None:
    """Register one operator for all devices: its schema, what computes it, and the shapes of what it returns."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastcifar::{name}", fake, lib=_library)


def autograd(name: str, backward: Callable, save: Callable) -> None:
    """Give the operator `name` its gradient, as `torch.library.register_autograd` does."""
    torch.library.register_autograd(f"fastcifar::{name}", backward, setup_context=save, lib=_library)
