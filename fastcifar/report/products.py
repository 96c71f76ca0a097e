"""Counts the matrix products and the bytes of any network or function by running it on tensors without data.

On the meta device operators compute shapes alone, so that a count takes milliseconds and no memory, and it is of what
is really called: a frozen layer has no weight gradient and a layer above nothing that trains no input gradient because
autograd does not ask for them. A multiply-add is counted once; it is two FLOP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar.kernels.operators import PRODUCTS

ELSEWHERE = "(elsewhere)"
"""The layer of the gradients that a network computes otherwise than autograd would for the products of its forward
pass, as a custom autograd function can."""

_aten = torch.ops.aten
_MATRIX_PRODUCTS = {_aten.mm: 0, _aten.bmm: 0, _aten.mv: 0, _aten.addmm: 1, _aten.baddbmm: 1, _aten.addmv: 1}
"""Each with the place of its left operand among the arguments; the right one follows."""
_MOVE_NOTHING = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
_MOVE_NOTHING |= {_aten._unsafe_view, _aten._reshape_alias, _aten.lift_fresh, _aten.detach}
_ONLY_WRITE = {_aten.copy_, _aten.zero_, _aten.fill_}
_INDEXING = {_aten.index, _aten.index_select, _aten.gather, _aten.embedding}


class Product(NamedTuple):
    """One matrix product or convolution: its multiply-adds, and the bytes of its operands and of its result."""

    macs: int
    bytes: int


@dataclass
class Layer:
    """The products of one layer in a training step of `batch` images."""

    name: str
    input_shape: tuple[int, ...]
    """Of the first product's operand, without the batch."""
    output_shape: tuple[int, ...]
    parameters: int
    """Elements of the layer's own parameters, trained or not."""
    forward: int = 0
    input_gradient: int = 0
    weight_gradient: int = 0

    @property
    def total(self) -> int:
        """Multiply-adds of a step."""
        return self.forward + self.input_gradient + self.weight_gradient


@dataclass
class Count:
    """What a run of a function, or one training step of a network, computes and moves."""

    batch: int
    layers: list[Layer] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    moved_bytes: int = 0
    """Read and written by all operators that are no products, each reading its operands once and writing its results
    once. What a fused kernel reads a second time is not in it, nor is what a cache saves."""
    operators: int = 0
    """Calls that compute or move something, each gradient of a convolution being one, and each launch of an operator
    that tells the products in it: so many launches of a GPU at the least."""
    activation_bytes: int = 0
    """Kept from the forward for the backward pass, parameters and buffers apart."""
    parameters: int = 0
    trained_parameters: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds of all products, forward and backward."""
        return sum(product.macs for product in self.products)

    @property
    def product_bytes(self) -> int:
        """Bytes that the products read and write, each its operands and its result once."""
        return sum(product.bytes for product in self.products)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time: each product as long as its operations or its bytes take, whichever is longer, and the other
        operators as long as their bytes, one after the other."""
        products = (max(2 * macs / flops_per_second, size / bytes_per_second) for macs, size in self.products)
        return sum(products) + self.moved_bytes / bytes_per_second


def count_module(
    module: nn.Module,
    input_shape: Sequence[int],
    loss: Callable[[Tensor], Tensor] = Tensor.sum,
    call: Callable[[nn.Module, Tensor], Tensor] | None = None,
    training: bool = True,
) -> Count:
    """Count one training step of `module`, without its optimizer, on a batch of `input_shape` (images first), or with
    `training` False one evaluation in inference mode.

    The input is channels-last where it has four dimensions, of the dtype of the module's first matrix, and needs no
    gradient. `loss` makes the scalar that is differentiated; `call(module, input)` is for a module that is not called
    with the input alone. Neither the module's values nor its device matter, and neither is changed.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in own.items()}
    matrices = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point() and tensor.dim() > 1]
    batch = torch.empty(tuple(input_shape), dtype=matrices[0] if matrices else torch.float32, device="meta")
    if batch.dim() == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    tally = _Tally(Count(len(batch)), module, {id(tensor): name for name, tensor in tensors.items()})
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    was_training = module.training
    module.train(training)
    try:
        with tally, _watched(module, tally.path), torch.set_grad_enabled(training):
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                named = {f"module.{name}": tensor for name, tensor in tensors.items()}
                out = torch.func.functional_call(_Called(module, call), named, (batch,))
            if training:
                scalar = loss(out)
                tally.forward = False
                scalar.backward()
    finally:
        module.train(was_training)
    count = tally.close()
    for tensor in tensors.values():
        storages.pop(tensor.untyped_storage()._cdata, None)
    count.activation_bytes = sum(storage.nbytes() for storage in storages.values())
    count.parameters = sum(weight.numel() for weight in module.parameters())
    count.trained_parameters = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    return count


def count_products(run: Callable[[], object]) -> Count:
    """Count what `run()` computes and moves, such as a step of an optimizer whose tensors are on the meta device; it
    has no layers."""
    tally = _Tally(Count(batch=1), None, {})
    tally.forward = False
    with tally:
        run()
    return tally.count


def count_bytes(func: Any, args: tuple, kwargs: dict, out: object) -> int:
    """Bytes that an operator reads and writes, each operand and each result once; 0 for a view and for empty memory."""
    operator, schema = func.overloadpacket, func._schema
    returns_view = any(result.alias_info and not result.alias_info.is_write for result in schema.returns)
    if returns_view or operator in _MOVE_NOTHING:
        return 0
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    results = [] if any(result.alias_info for result in schema.returns) else list(_tensors(out))
    for argument in schema.arguments:
        if argument.alias_info and argument.alias_info.is_write:
            results += _tensors(given.get(argument.name))
    operands = list(_tensors(list(given.values())))
    if operator in _ONLY_WRITE:
        operands = operands[1:]
    elif operator in _INDEXING:
        operands = [*operands[1:], *results]
    return sum(map(_size, operands)) + sum(map(_size, results))


class _Called(nn.Module):
    """`call(module, input)` as a module, so that functional_call can put other tensors into `module` meanwhile."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x) if self.call else self.module(x)


@contextmanager
def _watched(module: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep in `path` the names of the modules that are being called, the innermost last."""

    def leave(*_: object) -> None:
        path.pop()

    handles = []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        handles.append(part.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Tally(TorchDispatchMode):
    """Adds every operator that is called to a count, the products of the forward pass to the layer whose weight they
    read, else to that of the module which is being called."""

    def __init__(self, count: Count, module: nn.Module | None, names: dict[int, str]) -> None:
        super().__init__()
        self.count, self.forward, self.path = count, True, [""]
        self._module, self._names = module, names
        self._layers: dict[str, Layer] = {}
        self._backward_macs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # true, torch's default, imports its compiler: a second, for nothing is compiled here

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        if operator is _aten.convolution:
            self._forward_product(args[0], args[1], out, _convolution_macs(args[0], args[1], out, transposed=args[6]))
        elif operator is _aten.convolution_backward:
            self._convolution_backward(args, out)
        elif operator in _MATRIX_PRODUCTS:
            place = _MATRIX_PRODUCTS[operator]
            left, right = args[place : place + 2]
            macs = out.numel() * left.shape[-1]
            if self._parameter(left) and not self._parameter(right):
                left, right = right, left
            self._forward_product(left, right, out, macs)
        elif func.namespace == "fastcifar" and func._opname in PRODUCTS:
            self._operator_products(PRODUCTS[func._opname](*args, **(kwargs or {})), args, out)
        else:
            moved = count_bytes(func, args, kwargs or {}, out)
            self.count.moved_bytes += moved
            self.count.operators += moved > 0
        return out

    def close(self) -> Count:
        """The count, once the backward pass is over."""
        expected = sum(layer.input_gradient + layer.weight_gradient for layer in self._layers.values())
        if self._backward_macs != expected:
            self._layers[ELSEWHERE] = Layer(ELSEWHERE, (), (), 0, weight_gradient=self._backward_macs - expected)
        self.count.layers = list(self._layers.values())
        return self.count

    def _forward_product(self, values: Tensor, weight: Tensor, out: Tensor, macs: int) -> None:
        self._count_product(Product(macs, _size(values) + _size(weight) + _size(out)))
        if not self.forward:
            self._backward_macs += macs
            return
        layer = self._layer(self._parameter(weight), values, out)
        layer.forward += macs
        if torch.is_grad_enabled():
            layer.input_gradient += macs * values.requires_grad
            layer.weight_gradient += macs * weight.requires_grad

    def _operator_products(self, products: list[tuple[int, int]], args: tuple, out: Any) -> None:
        """Of an operator of the project's; in a forward pass one without gradient, of the images that come first."""
        for macs, moved in products:
            self._count_product(Product(macs, moved))
            if self.forward:
                weights = (self._parameter(tensor) for tensor in _tensors(args))
                self._layer(next(filter(None, weights), ""), args[0], out).forward += macs
            else:
                self._backward_macs += macs

    def _convolution_backward(self, args: tuple, out: tuple[Tensor | None, ...]) -> None:
        grad, values, weight, transposed = *args[:3], args[7]
        macs = _convolution_macs(values, weight, grad, transposed)
        for other, result in zip((weight, values), out, strict=False):
            if result is not None:
                self._count_product(Product(macs, _size(grad) + _size(other) + _size(result)))
                self._backward_macs += macs
        if out[2] is not None:
            self.count.moved_bytes += _size(grad) + _size(out[2])

    def _count_product(self, product: Product) -> None:
        self.count.products.append(product)
        self.count.operators += 1

    def _layer(self, parameter: str, values: Tensor, out: Tensor) -> Layer:
        name = parameter.rpartition(".")[0] if parameter else self.path[-1]
        if name not in self._layers:
            assert self._module is not None, "layers are those of a module"
            own = self._module.get_submodule(name).parameters(recurse=False)
            parameters = sum(parameter.numel() for parameter in own)
            self._layers[name] = Layer(name, tuple(values.shape[1:]), tuple(out.shape[1:]), parameters)
        return self._layers[name]

    def _parameter(self, tensor: Tensor) -> str:
        """The name of the parameter that `tensor` is, or is a view of; empty for any other."""
        base = tensor if tensor._base is None else tensor._base
        return self._names.get(id(base), "")


def _convolution_macs(values: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    return (values if transposed else out).numel() * weight[0].numel()


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _size(tensor: Tensor) -> int:
    """Bytes; those of a tensor that repeats its memory are counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
