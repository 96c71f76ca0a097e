"""The project's operators as a training calls them, recorded, to be repeated on fresh values of the same shapes.

Every call of `torch.ops.fastcifar` that a piece of code makes is kept with its arguments, so that an operator which is
added to a step is compared with float64 and timed without a word here. Calls that differ in values alone count as one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastcifar.costs.products import count_bytes
from fastcifar.host import DispatchMode

_NAMESPACE = "fastcifar"
_PATH = "FASTCIFAR_KERNELS"
_LEAST_NORM = 1e-300


@dataclass(frozen=True)
class Floats:
    """A floating-point tensor of a recorded call: its form, and the distribution of its finite values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    mean: float
    std: float
    positive: bool  # no value was below 0, as in a variance

    @classmethod
    def of(cls, tensor: Tensor) -> Floats:
        """Describe `tensor`."""
        values = tensor.detach().double()
        values = values[values.isfinite()]
        mean, std, lowest = 0.0, 0.0, 0.0
        if values.numel():
            mean, std, lowest = values.mean().item(), values.std(correction=0).item(), values.min().item()
        std = std or abs(mean) / 4 or 1.0  # all alike, as before the first step
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, mean, std, lowest >= 0)

    def draw(self) -> Tensor:
        """Return fresh values of the same form, normal, of the same mean and standard deviation."""
        values = torch.randn(self.shape, device=self.device).mul_(self.std).add_(self.mean)
        values = values.abs_() if self.positive else values
        # Where a stride is 0 the tensor repeats its memory: drawn once, and expanded.
        repeated = [size > 1 and not stride for size, stride in zip(self.shape, self.stride, strict=True)]
        once = tuple(slice(0, 1) if again else slice(None) for again in repeated)
        single = [1 if again else size for size, again in zip(self.shape, repeated, strict=True)]
        memory = torch.empty_strided(single, self.stride, dtype=self.dtype, device=self.device)
        return memory.copy_(values[once]).expand(self.shape)


@dataclass
class RecordedCase:
    """One operator at one set of shapes (see `bench.cases`)."""

    operator: Any  # of `torch.ops.fastcifar`, one overload
    arguments: tuple[object, ...]
    """Arguments in the schema's order: `Floats` in place of floating-point tensors, everything else as it was."""
    bytes_moved: int  # each operand and each result once
    calls: int = 1  # in the recorded code

    @property
    def operation(self) -> str:
        return self.operator.overloadpacket.__name__

    @property
    def shape(self) -> str:
        """The arguments in a line, with a digest by which cases with equal lines differ."""
        digest = hashlib.sha256(repr(_form(self.arguments)).encode()).hexdigest()
        return f"{' '.join(map(_word, self.arguments))} ({digest[:6]})"

    def make(self) -> tuple[object, ...]:
        """Return fresh arguments; integers and booleans as they were recorded."""
        return tree_map(lambda leaf: leaf.draw() if isinstance(leaf, Floats) else _copied(leaf), self.arguments)

    def variant(self, name: str) -> Callable[..., object]:
        """Return what is timed: the operator by its "kernel" or its "reference", and putting back the integers that it
        changes, such as the position in an epoch: else the next call would go beyond the epoch's end."""
        call = {"kernel": self.kernel, "reference": self.reference}[name]
        places = [place for place in self._changed().values() if isinstance(self.arguments[place], Tensor)]

        def call_and_put_back(*arguments: Any) -> object:
            before = [arguments[place].clone() for place in places]
            results = call(*arguments)
            for place, values in zip(places, before, strict=True):
                arguments[place].copy_(values)
            return results

        return call_and_put_back

    def kernel(self, *arguments: object) -> object:
        """Call the operator as a training does."""
        schema = self.operator._schema.arguments
        named = {argument.name: value for argument, value in zip(schema, arguments, strict=True) if argument.kwarg_only}
        return self.operator(*arguments[: len(arguments) - len(named)], **named)

    def reference(self, *arguments: object) -> object:
        """Call the operator by its path in plain torch."""
        before = os.environ.get(_PATH)
        os.environ[_PATH] = "reference"
        try:
            return self.kernel(*arguments)
        finally:
            del os.environ[_PATH]
            if before is not None:
                os.environ[_PATH] = before

    def relative_errors(self) -> dict[str, float]:
        """Return ||kernel - reference|| / ||reference|| by result, and by argument that is changed.

        The reference computes in float64 from the same fresh values. For integers the error is the share that differs.
        Buffers that are only written are filled with NaN before: what is left of it must be left by both.
        """
        arguments = list(self.make())
        for place in self._only_written(arguments):
            arguments[place] = torch.full_like(arguments[place], torch.nan)
        expected = self._results(self.reference, tree_map(_widened, arguments))
        found = self._results(self.kernel, tree_map(_copied, arguments))
        return {name: _difference(found[name], expected[name]) for name in expected if expected[name].numel()}

    def _changed(self) -> dict[str, int]:
        """Return the arguments that the operator writes to, name to place."""
        arguments = enumerate(self.operator._schema.arguments)
        return {one.name: place for place, one in arguments if one.alias_info and one.alias_info.is_write}

    def _only_written(self, arguments: list[object]) -> list[int]:
        """Return the places of changed tensors whose values before do not matter: NaN in them stays where nothing is
        written, and reaches nothing else."""
        places = []
        for name, place in self._changed().items():
            if not (isinstance(arguments[place], Tensor) and arguments[place].is_floating_point()):
                continue
            given = tree_map(_widened, arguments)
            given[place].fill_(torch.nan)
            results = self._results(self.reference, given)
            own = results.pop(name).isnan()
            others = any(result.is_floating_point() and result.isnan().any() for result in results.values())
            if not own.all() and not others:
                places.append(place)
        return places

    @torch.no_grad()
    def _results(self, call: Callable[..., object], arguments: list[object]) -> dict[str, Tensor]:
        results = {f"result {number}": tensor for number, tensor in enumerate(_tensors(call(*arguments)))}
        for name, place in self._changed().items():
            tensors = enumerate(_tensors(arguments[place]))
            results |= {f"{name} {number}" if number else name: tensor for number, tensor in tensors}
        return results


def record_cases(run: Callable[[], object]) -> list[RecordedCase]:
    """Return the calls that `run()` makes, in the order of their first ones."""
    recorder = _Recorder()
    with recorder:
        run()
    return list(recorder.cases.values())


class _Recorder(DispatchMode):
    """Keeps the first of each kind of call, before it can change its arguments, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.cases: dict[object, RecordedCase] = {}

    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if func.namespace != _NAMESPACE:
            return func(*args, **kwargs)
        further = func._schema.arguments[len(args) :]
        given = (*args, *(kwargs.get(argument.name, argument.default_value) for argument in further))
        key = (func, repr(_form(given)))
        if key in self.cases:
            self.cases[key].calls += 1
            return func(*args, **kwargs)
        kept = tree_map(_kept, given)
        out = func(*args, **kwargs)
        self.cases[key] = RecordedCase(func, kept, _bytes(func, given, out))
        return out


def _bytes(func: Any, arguments: tuple[object, ...], out: object) -> int:
    """Return the bytes that the call moves; of a whole dataset, or an epoch's plan, only the batch that is taken from
    it."""
    if func.overloadpacket.__name__.startswith("augment"):
        batch = slice(len(_tensors(out)[0]))
        arguments = tree_map(lambda leaf: leaf[batch] if isinstance(leaf, Tensor) and leaf.ndim else leaf, arguments)
    return count_bytes(func, arguments, {}, out)


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _form(argument: object) -> object:
    """Return what makes two arguments alike: all but a tensor's values."""
    if isinstance(argument, Tensor):
        return tuple(argument.shape), argument.stride(), str(argument.dtype)
    if isinstance(argument, Floats):
        return argument.shape, argument.stride, str(argument.dtype)
    return [_form(one) for one in argument] if isinstance(argument, list | tuple) else argument


def _word(argument: object) -> str:
    if isinstance(argument, Tensor | Floats):
        return f"{str(argument.dtype).removeprefix('torch.')}[{'x'.join(map(str, argument.shape))}]"
    if isinstance(argument, list | tuple):
        return f"({' '.join(map(_word, argument))})" if len(argument) <= 4 else f"({len(argument)} numbers)"
    return "-" if argument is None else f"{argument:g}" if isinstance(argument, float) else str(argument)


def _kept(leaf: object) -> object:
    if not isinstance(leaf, Tensor):
        return leaf
    return Floats.of(leaf) if leaf.is_floating_point() else leaf.clone()


def _copied(leaf: object) -> object:
    if not isinstance(leaf, Tensor):
        return leaf
    copy = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    return leaf if 0 in leaf.stride() and leaf.numel() > 1 else copy.copy_(leaf)


def _widened(leaf: object) -> object:
    """Return a copy in float64, if it is floating point: a tensor, or the type of a result."""
    if isinstance(leaf, torch.dtype):
        return torch.float64 if leaf.is_floating_point else leaf
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.to(torch.float64, copy=True)
    return _copied(leaf)


def _difference(found: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return (found != expected).double().mean().item()
    left = expected.isnan()
    if not torch.equal(found.isnan(), left):
        return float("inf")
    found, expected = found.double()[~left], expected[~left]
    difference = torch.where(found == expected, 0, found - expected)  # of equal infinities 0
    return (difference.norm() / expected.norm().clamp_min(_LEAST_NORM)).item()
