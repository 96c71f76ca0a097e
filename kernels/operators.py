"""Registration of the operators under `torch.ops.fastcifar`.

`torch.library.Library` and not its wrapper `torch.library.custom_op`, for the same kind of operator: the wrapper's
first call imports torch.compile's machinery (and Triton with it), 1.2 s of every process that never compiles anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    for key in (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA):
        _library.impl(name, _outside_autocast(name, key), key.name)
    torch.library.register_fake(f"fastcifar::{name}", fake, lib=_library)


def _outside_autocast(name: str, key: torch._C.DispatchKey) -> Callable:
    """Return what calls the operator `name` with autocast off: it computes in the types of its tensors, and would find
    torch's operations to compute in another."""
    keys = torch._C.DispatchKeySet(key)

    def call(*arguments):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return getattr(torch.ops.fastcifar, name)(*arguments)

    return call


def autograd(name: str, backward: Callable, save: Callable, differentiable: Callable | None = None) -> None:
    """Give the operator `name` its gradient, as `torch.library.register_autograd` does. That refuses an operator which
    also moves statistics in place, and asks the schema for defaults at every call: 70 us for 13 arguments.

    differentiable: computes the gradient by operations that have gradients of their own, for `create_graph=True`; None:
        that raises RuntimeError.
    """
    operator = getattr(torch.ops.fastcifar, name).default

    def below(keys: Any, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx, keys: Any, *arguments):
        output = below(keys, *arguments)
        save(ctx, arguments, output)
        return output

    def once(ctx, *gradients):
        compute = differentiable if torch.is_grad_enabled() else backward
        if compute is not None:
            found = compute(ctx, *gradients)
            return None, *(found if isinstance(found, tuple) else (found,))
        # torch's `once_differentiable` misses what comes by tensors that are not saved
        raise RuntimeError(
            f"fastcifar::{name} has a first derivative alone, create_graph=True asks for the second; allowed: the "
            "transforms of torch.func"
        )

    functions = {"forward": staticmethod(forward), "backward": staticmethod(once)}
    function: Any = type(f"{name}_with_gradient", (torch.autograd.Function,), functions)

    def recorded(keys, *arguments):
        records = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        return (function.apply if records else below)(keys, *arguments)

    _library.impl(name, recorded, "Autograd", with_keyset=True)


def needs_plain_torch() -> bool:
    """Return True where an operator's specification must take its place: in what `is_exported`, and because the
    transforms of `torch.func` and forward derivatives know no other."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or is_exported()


def is_exported() -> bool:
    """Return True under `torch.export` (and with it ONNX) and `torch.jit.trace`, which keep what they see."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype that autocast computes in now on devices of this type; None where it is off."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Return True if autograd would record an operation on `tensors` now."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def refuse_gradients(**tensors: Tensor | None) -> None:
    """Raise ValueError for one of the `tensors` that wants a gradient, which an operation without one would lose."""
    for name, tensor in tensors.items():
        if wants_gradient(tensor):
            raise ValueError(f"{name} wants a gradient; allowed: none, or torch.no_grad()")
