"""Flat buffers: all trained weights of a network in one tensor per group, its parameters being views into them.

The optimiser step, the moving average, a reset for the next run or a checkpoint is then one operation per group instead
of one per parameter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

# Every parameter starts on a 64-byte boundary in the compute dtype, for aligned vector loads. The gaps stay zero.
_ALIGN = 32

_PIECE, _PIECES = 4096, 48
"""Elements that a block of torch's multi-tensor kernels copies at least, and how many blocks' there may be: of tensors
that are not in pieces a block takes 65536, in 12 microseconds; of more than 64 pieces the rest is another launch."""


class FlatGroup:
    """Parameters that share hyperparameters and a dtype, as flat tensors of P elements.

    `weights`: master copy, float32 (float64 where that is the compute dtype); `compute`: what the network's parameters
    view, `weights` itself where the dtypes agree; `grads`: gradients in the compute dtype, viewed by every parameter's
    `.grad`; `velocity` and `ema`: the optimiser's, like `weights`. `steps`: how many steps it trains for where that is
    not the whole training, which is for the trainer to say before it builds the optimiser. `spans`: where in the
    buffers each parameter lies, with the gap behind it.
    """

    def __init__(self, name: str, parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
        self.name, self.parameters = name, parameters
        ends = list(itertools.accumulate(map(_padded, parameters), initial=0))
        self.spans = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
        self.steps: int | None = None
        self.weights = _flatten(parameters, master_dtype(dtype))
        self.compute = self.weights.to(dtype)
        self.grads = torch.zeros_like(self.compute)
        self.velocity = torch.zeros_like(self.weights)
        self.ema = self.weights.clone()
        for parameter, weight, grad in zip(
            parameters, _views(self.compute, parameters), _views(self.grads, parameters), strict=True
        ):
            parameter.data = weight
            parameter.grad = grad

    @property
    def trains(self) -> bool:
        """Whether it trains now; while it does not, an optimiser leaves its weights as they are."""
        return self.parameters[0].requires_grad

    def runs(self, select: Callable[[nn.Parameter], bool]) -> list[slice]:
        """The stretches of the buffers that hold the parameters for which `select` is true, neighbours as one."""
        runs: list[slice] = []
        for parameter, span in zip(self.parameters, self.spans, strict=True):
            if select(parameter):
                start = runs.pop().start if runs and runs[-1].stop == span.start else span.start
                runs.append(slice(start, span.stop))
        return runs

    @torch.no_grad()
    def load(self, weights: torch.Tensor) -> None:
        """Start afresh from flat `weights` [P]: optimiser state zero, average equal to the weights."""
        self.weights.copy_(weights)
        self.ema.copy_(weights)
        self.velocity.zero_()
        self.grads.zero_()
        self.compute.copy_(weights)


class FlatModel:
    """A network whose state lies in flat buffers: `groups` of trained parameters and `statistics`, all floating
    buffers.

    Groups: "weights" in `dtype` (matrices and convolution filters); "scales" (other trained vectors) and "biases" in
    the master dtype, batch norm being computed in it; each parameter that the network freezes later (its `frozen_from`)
    in a group of its own with the same name. `statistics` is [B] in the master dtype, `statistics_ema` its
    moving average. Frozen parameters are cast likewise and stay where they are.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.dtype = model, dtype
        wide = master_dtype(dtype)
        alone = getattr(model, "frozen_from", {})
        by_group: dict[tuple[str, str], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = (_group(name, parameter), name if name in alone else "")
                by_group.setdefault(key, []).append(parameter)
            else:
                parameter.data = parameter.data.to(dtype if parameter.dim() > 1 else wide)
        self.groups = [
            FlatGroup(name, parameters, dtype if name == "weights" else wide)
            for (name, _), parameters in by_group.items()
        ]
        buffers = [(module, name) for module in model.modules() for name in module._buffers]
        buffers = [(module, name) for module, name in buffers if module._buffers[name].is_floating_point()]
        tensors = [module._buffers[name] for module, name in buffers]
        device = next(model.parameters()).device
        self.statistics = _flatten(tensors, wide) if tensors else torch.zeros(0, dtype=wide, device=device)
        self.statistics_ema = self.statistics.clone()
        self._below: set[int] = set()
        self._cut: torch.Tensor | None = None
        for (module, name), view in zip(buffers, _views(self.statistics, tensors), strict=True):
            module._buffers[name] = view

    def group_of(self, name: str) -> FlatGroup:
        """The group that the trained parameter `name` lies in."""
        parameter = self.model.get_parameter(name)
        return next(group for group in self.groups if any(parameter is member for member in group.parameters))

    def divide(self) -> None:
        """From now on make the gradients above the network's `first_block` before all others (see `backward`). Nothing
        changes for a network that names none."""
        name = getattr(self.model, "first_block", None)
        if name is None or self._below:
            return
        names = [parameter for parameter, _ in self.model.named_parameters()]
        last = max(place for place, parameter in enumerate(names) if parameter.startswith(f"{name}."))
        self._below = {id(self.model.get_parameter(parameter)) for parameter in names[: last + 1]}
        self.model.get_submodule(name).register_forward_hook(self._keep_cut)

    def is_above(self, parameter: nn.Parameter) -> bool:
        """Whether `parameter` is among those whose gradients are made first."""
        return bool(self._below) and id(parameter) not in self._below

    def _keep_cut(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._cut = output if output.requires_grad else None

    def backward(
        self,
        outputs: torch.Tensor,
        gradient: torch.Tensor | None = None,
        halfway: Callable[[Callable[[], None]], None] = lambda copy: copy(),
    ) -> None:
        """Overwrite the gradients of the parameters that train now with those of `outputs`, a scalar, or of what
        `gradient`, like `outputs`, is the gradient of. The buffers' gaps stay zero. `halfway(copy)` is called once the
        gradients above the first block are made, if the model was divided, while those below are not; it calls `copy`,
        which copies them into the buffers, in the current stream. Raises RuntimeError where `outputs` does not depend
        on one of the parameters."""
        cut, self._cut = self._cut, None
        trained = [parameter for group in self.groups if group.trains for parameter in group.parameters]
        if cut is None:
            _copy_gradients(trained, torch.autograd.grad(outputs, trained, gradient))
            return
        above = [parameter for parameter in trained if self.is_above(parameter)]
        below = [parameter for parameter in trained if not self.is_above(parameter)]
        *grads, at_cut = torch.autograd.grad(outputs, [*above, cut], gradient)
        halfway(lambda: _copy_gradients(above, grads))
        _copy_gradients(below, torch.autograd.grad(cut, below, at_cut))

    @torch.no_grad()
    def load(self, model: nn.Module) -> None:
        """Start afresh from the state of a network of the same shape, on any device: see `FlatGroup.load`."""
        state = model.state_dict()
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self.groups:
            group.weights.zero_()  # the gaps too
            for parameter, weight in zip(group.parameters, _views(group.weights, group.parameters), strict=True):
                weight.copy_(state[names[id(parameter)]])
            group.load(group.weights)
        for name, mine in (*self.model.named_parameters(), *self.model.named_buffers()):
            if not mine.requires_grad:  # frozen parameters and running statistics
                mine.copy_(state[name])
        self.statistics_ema.copy_(self.statistics)

    @torch.no_grad()
    def load_average(self, other: FlatModel, averaged: bool = True) -> None:
        """Take the moving averages of another network of the same shape as weights, or its last weights if not
        `averaged`."""
        for group, source in zip(self.groups, other.groups, strict=True):
            group.weights.copy_(source.ema if averaged else source.weights)
            group.compute.copy_(group.weights)
        self.statistics.copy_(other.statistics_ema if averaged else other.statistics)
        self._copy_frozen(other)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the network's state by parameter name, float32 on the CPU, from the master weights."""
        state = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self.groups:
            for parameter, weight in zip(group.parameters, _views(group.weights, group.parameters), strict=True):
                state[names[id(parameter)]] = weight
        plain = {"device": "cpu", "dtype": torch.float32, "memory_format": torch.contiguous_format, "copy": True}
        return {name: tensor.to(**plain) for name, tensor in state.items()}

    def _copy_frozen(self, other: FlatModel) -> None:
        for mine, theirs in zip(self.model.parameters(), other.model.parameters(), strict=True):
            if not mine.requires_grad:
                mine.data.copy_(theirs.data)


def _copy_gradients(parameters: Sequence[nn.Parameter], grads: Sequence[torch.Tensor]) -> None:
    """Into the flat buffers, those of one dtype at once, as one launch for all needs."""
    by_dtype: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for parameter, grad in zip(parameters, grads, strict=True):
        by_dtype.setdefault(parameter.dtype, []).append((parameter.grad, grad))
        if grad.is_cuda:  # its memory is not to be given away before this stream has read it
            grad.record_stream(torch.cuda.current_stream())
    for pairs in by_dtype.values():
        if all(into.stride() == grad.stride() for into, grad in pairs):  # else each would be a launch
            size = max(_PIECE, sum(grad.numel() for _, grad in pairs) // _PIECES)
            pairs = [
                piece for into, grad in pairs for piece in zip(_split(into, size), _split(grad, size), strict=True)
            ]
        torch._foreach_copy_(*(list(side) for side in zip(*pairs, strict=True)))


def _split(tensor: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Pieces of some `size` elements, of whole rows."""
    return (tensor,) if tensor.numel() <= size else tensor.split(max(1, size // tensor[0].numel()))


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of master weights, optimiser state and statistics beside a compute `dtype`: float32, or wider if that
    is."""
    return torch.promote_types(dtype, torch.float32)


def _group(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("bias"):
        return "biases"
    return "weights" if parameter.dim() > 1 else "scales"


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() // _ALIGN) * _ALIGN


def _flatten(tensors: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    flat = torch.zeros(sum(map(_padded, tensors)), dtype=dtype, device=tensors[0].device)
    for view, tensor in zip(_views(flat, tensors), tensors, strict=True):
        view.copy_(tensor.detach())
    return flat


def _views(flat: torch.Tensor, like: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Views into `flat`, one after another, with the shapes of `like`; four-dimensional ones channels-last."""
    views, start = [], 0
    for tensor in like:
        part = flat[start : start + tensor.numel()]
        start += _padded(tensor)
        if tensor.dim() == 4:
            out, into, height, width = tensor.shape
            views.append(part.view(out, height, width, into).permute(0, 3, 1, 2))
        else:
            views.append(part.view(tensor.shape))
    return views
