"""Counts the matrix products and the bytes of any network or function, by running it on tensors without data.

On the meta device operators compute shapes alone, so that a count takes milliseconds and no memory. The count is of
what is really called: a frozen layer has no weight gradient, and a layer above nothing that trains no input gradient,
because autograd does not ask for them. A multiply-add is counted once; it is two FLOP. The formulas are those of
`torch.utils.flop_counter`, so an operator registered there with `register_flop_formula` is counted too, and the
operators of `PRODUCTS` are registered there; torch's own `FlopCounterMode` tells neither the two gradients of a layer
apart nor bytes.
"""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import flop_registry, register_flop_formula
from torch.utils.module_tracker import ModuleTracker

from fastcifar.host import DispatchMode
from fastcifar.kernels.operators import PRODUCTS

ELSEWHERE = "(elsewhere)"
"""The layer of the gradients that a network computes otherwise than autograd would for the products of its forward
pass, as a custom autograd function can."""


def _vector_flop(*args: Any, out_val: Tensor, **_: object) -> int:
    return 2 * out_val.numel() * len(args[-1])


def _register(name: str) -> None:
    """Let torch's own counter see the operator `name` of `PRODUCTS`."""

    @register_flop_formula(getattr(torch.ops.fastcifar, name), get_raw=True)
    def _flop(*args: Any, out_val: object, **kwargs: Any) -> int:
        return 2 * sum(macs for macs, _ in PRODUCTS[name](*args, **kwargs))


for _name in PRODUCTS:
    _register(_name)

_aten = torch.ops.aten
_FORMULAS = ChainMap(flop_registry, dict.fromkeys((_aten.mv, _aten.addmv), _vector_flop))
"""The FLOP of each operator, by its arguments and result. Torch has no formula for products with a vector."""
_ADDED = {_aten.convolution: 2, _aten.addmm: 0, _aten.baddbmm: 0, _aten.addmv: 0}
"""Place of the argument that is added to a product: its bytes are not counted."""
_MOVE_NOTHING = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
_MOVE_NOTHING |= {_aten._unsafe_view, _aten._reshape_alias, _aten.lift_fresh, _aten.detach}
_ONLY_WRITE = {_aten.copy_, _aten.zero_, _aten.fill_}
_INDEXING = {_aten.index, _aten.index_select, _aten.gather, _aten.embedding}


class Product(NamedTuple):
    """The multiply-adds of one matrix product or convolution, and the bytes of its operands and result."""

    macs: int
    bytes: int


@dataclass
class Layer:
    """The products of one layer in a training step of `batch` images."""

    name: str
    input_shape: tuple[int, ...]
    """Shape of the first product's operand, without the batch."""
    output_shape: tuple[int, ...]
    parameters: int
    """Elements of the layer's own parameters, trained or not."""
    forward: int = 0
    input_gradient: int = 0
    weight_gradient: int = 0

    @property
    def total(self) -> int:
        """Return the multiply-adds of a step."""
        return self.forward + self.input_gradient + self.weight_gradient


@dataclass
class Count:
    """The operations and bytes of a function's run, or of one training step of a network."""

    batch: int
    layers: list[Layer] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    moved_bytes: int = 0
    """Bytes that all operators without products read and write, each operand and each result once. Repeated reads of a
    fused kernel are left out, and so is what a cache saves."""
    operators: int = 0
    """Calls that compute or move something: the least number of a GPU's launches. Each gradient of a convolution is
    one, and each launch of an operator listed in `PRODUCTS`."""
    activation_bytes: int = 0
    """Bytes kept from the forward for the backward pass, parameters and buffers apart."""
    kept: dict[str, int] = field(default_factory=dict)
    """These bytes by the innermost module that was called, "" where that is the network itself."""
    parameters: int = 0
    trained_parameters: int = 0

    @property
    def macs(self) -> int:
        """Return the multiply-adds of all products, forward and backward."""
        return sum(product.macs for product in self.products)

    @property
    def product_bytes(self) -> int:
        """Return the bytes that the products read and write, each its operands and its result once."""
        return sum(product.bytes for product in self.products)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the least time: each product as long as its operations or its bytes take, whichever is longer, and the
        other operators as long as their bytes, one after the other."""
        products = (max(2 * macs / flops_per_second, size / bytes_per_second) for macs, size in self.products)
        return sum(products) + self.moved_bytes / bytes_per_second


def count_module(
    module: nn.Module,
    input_shape: Sequence[int],
    loss: Callable[[Tensor], Tensor] = Tensor.sum,
    call: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__,
    training: bool = True,
) -> Count:
    """Count one training step of `module` without its optimizer, on a copy: values and device do not matter.

    input_shape: images first. The input is channels-last if it has four dimensions, of the dtype of the module's first
        matrix, and needs no gradient.
    loss: makes the scalar that is differentiated.
    call: calls the module with the input, if that is not its only argument.
    training: False counts one evaluation in inference mode.
    """
    module = copy.deepcopy(module).to("meta").train(training)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    matrices = [tensor.dtype for tensor in own.values() if tensor.is_floating_point() and tensor.dim() > 1]
    batch = torch.empty(tuple(input_shape), dtype=matrices[0] if matrices else torch.float32, device="meta")
    if batch.dim() == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    tally, saved = _Tally(module, len(batch)), []

    def keep(tensor: Tensor) -> Tensor:
        saved.append((tensor.untyped_storage(), tally.called))  # held, so that no other gets its address
        return tensor

    with tally, torch.set_grad_enabled(training):
        with tally.tracker, saved_tensors_hooks(keep, lambda tensor: tensor):
            out = call(module, batch)
        if training:
            scalar = loss(out)
            tally.forward = False
            scalar.backward()
    count = tally.finish()
    seen = {tensor.untyped_storage()._cdata for tensor in own.values()}
    for storage, called in saved:
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            count.kept[called] = count.kept.get(called, 0) + storage.nbytes()
    count.activation_bytes = sum(count.kept.values())
    count.parameters = sum(weight.numel() for weight in module.parameters())
    count.trained_parameters = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    return count


def count_products(run: Callable[[], object]) -> Count:
    """Count what `run()` computes and moves, such as an optimizer's step on meta tensors. The count has no layers."""
    tally = _Tally(nn.Module())
    tally.forward = False
    with tally:
        run()
    return tally.count


def count_bytes(func: Any, args: tuple, kwargs: dict, out: object) -> int:
    """Return the bytes that an operator reads and writes, each operand and each result once; 0 for a view and for empty
    memory."""
    operator, schema = func.overloadpacket, func._schema
    returns_view = any(result.alias_info and not result.alias_info.is_write for result in schema.returns)
    if returns_view or operator in _MOVE_NOTHING:
        return 0
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    results = [] if any(result.alias_info for result in schema.returns) else list(tensors_in(out))
    for argument in schema.arguments:
        if argument.alias_info and argument.alias_info.is_write:
            results += tensors_in(given.get(argument.name))
    operands = list(tensors_in(list(given.values())))
    if operator in _ONLY_WRITE:
        operands = operands[1:]
    elif operator in _INDEXING:
        operands = [*operands[1:], *results]
    return sum(map(_size, operands)) + sum(map(_size, results))


class _Tally(DispatchMode):
    """A count of every operator that is called. A product of a module's forward pass belongs to the layer whose weight
    it reads, else to the module which is being called."""

    def __init__(self, module: nn.Module, batch: int = 1) -> None:
        super().__init__()
        self.count, self.forward, self.tracker = Count(batch), True, ModuleTracker()
        self._module, self._layers, self._backward_macs = module, dict[str, Layer](), 0
        self._names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func.overloadpacket
        if operator is _aten.convolution_backward:
            self._add_gradients(args, out)
        elif func.namespace == "fastcifar" and func._opname in PRODUCTS:
            launches = PRODUCTS[func._opname](*args, **kwargs)
            self._add([Product(*launch) for launch in launches], list(tensors_in(args)), out)
        elif operator in _FORMULAS:
            operands = list(tensors_in([value for place, value in enumerate(args) if place != _ADDED.get(operator)]))
            macs = _FORMULAS[operator](*args, **kwargs, out_val=out) // 2
            self._add([Product(macs, sum(map(_size, (*operands, *tensors_in(out)))))], operands, out)
        else:
            moved = count_bytes(func, args, kwargs, out)
            self.count.moved_bytes += moved
            self.count.operators += moved > 0
        return out

    @property
    def called(self) -> str:
        """The name of the innermost module that is being called; empty: the whole network."""
        return max(self.tracker.parents - {"Global"}, key=len, default="").partition(".")[2]

    def finish(self) -> Count:
        """Return the count, once the backward pass is over."""
        expected = sum(layer.input_gradient + layer.weight_gradient for layer in self._layers.values())
        if self._backward_macs != expected:
            self._layers[ELSEWHERE] = Layer(ELSEWHERE, (), (), 0, weight_gradient=self._backward_macs - expected)
        self.count.layers = list(self._layers.values())
        return self.count

    def _add(self, products: list[Product], operands: Sequence[Tensor] = (), out: object = None) -> None:
        """Add one operator's products, and the gradients that autograd will ask for where `operands` require them."""
        self.count.products += products
        self.count.operators += len(products)
        macs = sum(product.macs for product in products)
        if not (self.forward and operands):
            self._backward_macs += macs
            return
        weight = next(filter(self._name, reversed(operands)), operands[-1])
        values = next((operand for operand in operands if operand is not weight), weight)
        layer = self._layer(self._name(weight), values, next(tensors_in(out)))
        layer.forward += macs
        if torch.is_grad_enabled():
            layer.input_gradient += macs * values.requires_grad
            layer.weight_gradient += macs * weight.requires_grad

    def _add_gradients(self, args: tuple, out: tuple[Tensor | None, ...]) -> None:
        """Add a convolution's gradients. Each takes as many multiply-adds as the convolution; torch's formula for them
        says more for the weights of a grouped one."""
        grad, values, weight, transposed = *args[:3], args[7]
        macs = _FORMULAS[_aten.convolution](values, weight, *[None] * 4, transposed, out_val=grad) // 2
        made = [(other, result) for other, result in zip((weight, values), out, strict=False) if result is not None]
        self._add([Product(macs, _size(grad) + _size(other) + _size(result)) for other, result in made])
        if out[2] is not None:
            self.count.moved_bytes += _size(grad) + _size(out[2])

    def _layer(self, parameter: str, values: Tensor, out: Tensor) -> Layer:
        name = parameter.rpartition(".")[0] if parameter else self.called
        if name not in self._layers:
            try:
                own = list(self._module.get_submodule(name).parameters(recurse=False))
            except AttributeError:  # a module that is no part of this one, and called with its weights
                own = []
            parameters = sum(parameter.numel() for parameter in own)
            self._layers[name] = Layer(name, tuple(values.shape[1:]), tuple(out.shape[1:]), parameters)
        return self._layers[name]

    def _name(self, tensor: Tensor) -> str:
        """Return the name of the parameter that `tensor` is, or is a view of; empty for any other."""
        return self._names.get(id(tensor if tensor._base is None else tensor._base), "")


def tensors_in(value: object) -> Iterator[Tensor]:
    """Give the tensors in `value`, one itself or in lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def _size(tensor: Tensor) -> int:
    """Return the bytes of `tensor`; those of one that repeats its memory are counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
