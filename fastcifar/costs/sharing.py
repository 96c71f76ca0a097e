"""Which tensors of parameters a network's layers use: found by running it, so that weights which two layers have in
common show, whoever owns them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from fastcifar.costs.products import tensors_in
from fastcifar.host import TORCH, DispatchMode
from fastcifar.models import Network, memory_format
from fastcifar.models.modes import in_evaluation

ITSELF = "(network)"
"""The name of a network that uses tensors outside of any layer."""


@dataclass(eq=False)
class Layer:
    """A module that uses parameters, or that has none and no modules in it."""

    name: str
    kind: str
    """Its class."""
    output: tuple[int, ...] = ()
    """Shape of what it gives, without the batch; empty: unknown."""
    calls: int = 0
    tensors: list[ParameterTensor] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Elements of the tensors that it uses."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(eq=False)
class ParameterTensor:
    """A tensor of parameters: one place in memory, however many names it has."""

    names: list[str]
    shape: tuple[int, ...]
    trains: bool | None
    """None: unknown."""
    layers: list[Layer] = field(default_factory=list)
    """Those that use it, in the order of their first calls."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_shared(self) -> bool:
        """Whether it goes by several names, or several layers use it, or one in several calls."""
        return len(self.names) > 1 or len(self.layers) > 1 or any(layer.calls > 1 for layer in self.layers)


@dataclass(frozen=True)
class Graph:
    """The layers of a network, in the order of their first calls, and its tensors of parameters, in that of names."""

    layers: list[Layer]
    tensors: list[ParameterTensor]
    word: str = "shared"
    """What tensors are that go by several names: "shared", or "equal" where their values alone are known."""

    @property
    def parameters(self) -> int:
        """Elements of all tensors, each counted once."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def shared(self) -> list[ParameterTensor]:
        """The tensors that are shared."""
        return [tensor for tensor in self.tensors if tensor.is_shared]

    def parts(self) -> dict[str, tuple[int, int, list[str]]]:
        """Return for each part (see `part_of`) the parameters that it alone uses, those that it shares with others, and
        which these are."""
        names = dict.fromkeys(part_of(layer.name) for layer in self.layers)
        parts: dict[str, tuple[int, int, list[str]]] = {}
        for name in names:
            own, common, others = 0, 0, dict[str, None]()
            for tensor in self.tensors:
                users = dict.fromkeys(part_of(layer.name) for layer in tensor.layers)
                if name in users and len(users) == 1:
                    own += tensor.size
                elif name in users:
                    common += tensor.size
                    others |= users
            parts[name] = own, common, [other for other in others if other != name]
        return parts


def part_of(layer: str) -> str:
    """Return the network within the network that a layer lies in: the first word of its name, and a number after it."""
    words = layer.split(".")
    return ".".join(words[: 1 + (len(words) > 1 and words[1].isdigit())])


@TORCH.applied()
def trace(module: nn.Module, input_shape: Sequence[int] = (2, 3, 32, 32)) -> Graph:
    """Return the graph of a network on the CPU, found by a pass in evaluation mode of each network that it is made of
    (`Network.made_of`): of the outputs that a loss reads, where these are several. `input_shape`: images first."""
    x = torch.zeros(tuple(input_shape), dtype=next((p.dtype for p in module.parameters()), torch.float32))
    with in_evaluation(module), torch.no_grad(), _Trace(module) as found:
        for part in module.made_of if isinstance(module, Network) else (module,):
            images, every = x, {}
            if isinstance(part, Network) and part.outputs > 1:
                images, every = x.repeat(part.outputs, *[1] * (x.dim() - 1)), {"every": True}  # each may have its own
            part(images.contiguous(memory_format=memory_format(part)) if x.dim() == 4 else images, **every)
    return found.graph()


def of_tensors(tensors: Mapping[str, Tensor]) -> Graph:
    """Return the graph of the weights in a file: a layer for each beginning of names up to the last dot. Tensors with
    the same values, as a file has them of one that is shared, but of copies too, are "equal" and count as one, unless
    all these values are the same number."""
    layers: dict[str, Layer] = {}
    found: list[tuple[Tensor, ParameterTensor]] = []
    for name, tensor in tensors.items():
        use = next((known for other, known in found if _same(tensor, other)), None)
        if use is None:
            use = ParameterTensor([], tuple(tensor.shape), None)
            found.append((tensor, use))
        use.names.append(name)
        owner = name.rpartition(".")[0] or ITSELF
        layer = layers.setdefault(owner, Layer(owner, "", calls=1))
        layer.tensors.append(use)
        use.layers.append(layer)
    return Graph(list(layers.values()), [known for _, known in found], "equal")


def _same(tensor: Tensor, other: Tensor) -> bool:
    if tensor.shape != other.shape or tensor.dtype != other.dtype or not tensor.numel():
        return False
    return torch.equal(tensor, other) and bool((tensor != tensor.flatten()[0]).any())


class _Trace(DispatchMode):
    """Notes which layer is called while an operator reads a parameter."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._layers, self._without_parts = dict[str, Layer](), set[str]()
        self._names: dict[nn.Module, list[str]] = {}
        for name, each in module.named_modules(remove_duplicate=False):
            self._names.setdefault(each, []).append(name)
        self._paths: list[str] = []
        self._turns: dict[tuple[str, nn.Module], itertools.count[int]] = {}
        self._tensors: list[ParameterTensor] = []
        self._memory: dict[int, list[tuple[int, int, ParameterTensor]]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            known = next(self._parameters(parameter), None)
            if known is None:
                known = ParameterTensor([], tuple(parameter.shape), parameter.requires_grad)
                self._tensors.append(known)
                self._memory.setdefault(_storage(parameter), []).append((*_extent(parameter), known))
            known.names.append(name)

    def __enter__(self) -> _Trace:
        self._hooks = (
            hooks.register_module_forward_pre_hook(self._begin),
            hooks.register_module_forward_hook(self._end),
        )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def graph(self) -> Graph:
        """Return what was found."""
        shown = [layer for name, layer in self._layers.items() if layer.tensors or name in self._without_parts]
        return Graph(shown, self._tensors)

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        for value in tensors_in([*args, *(kwargs or {}).values()]):
            for tensor in self._parameters(value):
                layer = self._layers[self._paths[-1]]
                if not any(tensor is each for each in layer.tensors):
                    layer.tensors.append(tensor)
                    tensor.layers.append(layer)
        return func(*args, **(kwargs or {}))

    def _begin(self, module: nn.Module, args: object) -> None:
        above = self._paths[-1] if self._paths else ""
        names = [name for name in self._names.get(module, ()) if not above or name.startswith(f"{above}.")]
        if not names:  # a layer that lies elsewhere: the one above borrows its weights
            self._paths.append(above)
            return
        turn = next(self._turns.setdefault((above, module), itertools.count()))
        name = names[turn % len(names)]  # one module in several places is called in their order
        self._paths.append(name)
        self._layers.setdefault(name, Layer(name or ITSELF, type(module).__name__)).calls += 1
        if not next(module.children(), None):
            self._without_parts.add(name)

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        name = self._paths.pop()
        if name in self._names.get(module, ()) and isinstance(output, Tensor):
            self._layers[name].output = tuple(output.shape[1:])

    def _parameters(self, tensor: Tensor) -> Iterator[ParameterTensor]:
        """Give the parameters in whose memory `tensor` lies."""
        start, stop = _extent(tensor)
        for first, last, known in self._memory.get(_storage(tensor), ()):
            if start < last and first < stop:
                yield known


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return where in its storage a tensor begins and ends, in elements."""
    start = int(tensor.storage_offset())
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + 1 + int(last)
