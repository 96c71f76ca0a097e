"""Registration of the operators under `torch.ops.fastcifar`.

`torch.library.Library` and not its wrapper `torch.library.custom_op`, for the same kind of operator: the wrapper's
first call imports torch.compile's machinery (and Triton with it), 1.2 s of every process that never compiles anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._library.autograd import Info, make_autograd_impl

_library = torch.library.Library("fastcifar", "DEF")


PRODUCTS: dict[str, Callable[..., list[tuple[int, int]]]] = {}
"""By an operator's name, of its arguments: the multiply-adds and bytes of each launch that multiplies matrices."""


def operator(
    schema: str,
    implementation: Callable,
    fake: Callable,
    products: Callable[..., list[tuple[int, int]]] | None = None,
) -> None:
    """Register one operator for all devices: its schema, what computes it, the shapes of what it returns, and, for
    whoever counts operations, the matrix products in it (see `PRODUCTS`)."""
    name = schema.partition("(")[0]
    if products is not None:
        PRODUCTS[name] = products
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastcifar::{name}", fake, lib=_library)


def autograd(name: str, backward: Callable, save: Callable) -> None:
    """Give the operator `name` its gradient, as `torch.library.register_autograd` does, which refuses an operator that
    also moves statistics in place."""
    operator = getattr(torch.ops.fastcifar, name).default
    _library.impl(name, make_autograd_impl(operator, Info(backward, save)), "Autograd", with_keyset=True)
