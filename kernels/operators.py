"""Registration of the operators under `torch.ops.fastcifar`.

`torch.library.Library` and not its wrapper `torch.library.custom_op`, for the same kind of operator: the wrapper's
first call imports torch.compile's machinery (and Triton with it), 1.2 s of every process that never compiles anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch._compile import _disable_dynamo
from torch._library.autograd import Info, make_autograd_impl

_library = torch.library.Library("fastcifar", "DEF")


PRODUCTS: dict[str, Callable[..., list[tuple[int, int]]]] = {}
"""`PRODUCTS[operator](*arguments)`: multiply-adds and bytes of each launch that multiplies matrices."""


def operator(
    name: str,
    implementation: Callable,
    fake: Callable,
    *,
    signature: Callable | None = None,
    mutates: Sequence[str] = (),
    products: Callable[..., list[tuple[int, int]]] | None = None,
) -> None:
    """Register the operator `name` for all devices.

    implementation: computes it.
    fake: makes unwritten tensors of the shapes that it returns.
    signature: the function whose annotations give the argument and result types, without defaults; `implementation`
        unless given.
    mutates: the arguments that it writes.
    products: its entry in `PRODUCTS`, for an operator that multiplies matrices.
    """
    if products is not None:
        PRODUCTS[name] = products
    schema = torch.library.infer_schema(signature or implementation, mutates_args=mutates)
    # Whole numbers are constants of a compiled graph; those that torch infers may be unknown in it.
    _library.define(name + schema.replace("SymInt", "int"), tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _opaque(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastcifar::{name}", fake, lib=_library)


def autograd(name: str, backward: Callable, save: Callable) -> None:
    """Give the operator `name` its gradient, as `torch.library.register_autograd` does, which refuses an operator that
    also moves statistics in place."""
    operator = getattr(torch.ops.fastcifar, name).default
    _library.impl(name, make_autograd_impl(operator, Info(backward, save)), "Autograd", with_keyset=True)


def _opaque(function: Callable) -> Callable:
    """Return `function` as one that torch.compile calls and does not look into: where it runs a frame as it is, after a
    graph break, it would compile the operator's own code, which torch 2.6 fails at."""
    hidden = _disable_dynamo(function)  # imports torch._dynamo when it is called

    def call(*arguments):
        return (hidden if "torch._dynamo" in sys.modules else function)(*arguments)

    return call
