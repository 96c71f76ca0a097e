"""Flat buffers: all trained weights of a network in one tensor per group; its parameters are views into them.

An optimizer step, a moving average, a reset or a checkpoint is then one operation per group, not one per parameter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from fastcifar.errors import UserError

# Every parameter starts on a 64-byte boundary in the compute dtype, for aligned vector loads. The gaps stay zero.
_ALIGN = 32

foreach_copy = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]  (torch has no public name for it)

_PIECE, _PIECES = 4096, 48
"""The least elements in a piece that a block of torch's multi-tensor kernels copies, and the most pieces. Of whole
tensors a block copies 65536 elements, in 12 microseconds; beyond 64 pieces another launch begins."""


class FlatGroup:
    """Parameters that share hyperparameters and a dtype, as flat tensors of P elements.

    weights: master copy, float32 (float64 where that is the compute dtype).
    compute: the buffer that the network's parameters view; `weights` itself where the dtypes agree.
    grads: gradients in the compute dtype, viewed by every parameter's `.grad`; with `wide_gradients` in the dtype of
        `weights`, and `.grad` is left alone.
    gradients: a view of `grads` for each parameter.
    velocity, ema: the optimizer's, like `weights`.
    steps: steps that it trains for, set before the optimizer is built; None: the whole training.
    spans: the place of each parameter in the buffers, with the gap behind it.
    """

    def __init__(
        self, name: str, parameters: list[nn.Parameter], dtype: torch.dtype, wide_gradients: bool = False
    ) -> None:
        self.name, self.parameters = name, parameters
        ends = list(itertools.accumulate(map(_padded, parameters), initial=0))
        self.spans = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
        self.steps: int | None = None
        self.weights = _flatten(parameters, master_dtype(dtype))
        self.compute = self.weights.to(dtype)
        self.grads = torch.zeros_like(self.weights if wide_gradients else self.compute)
        self.gradients = self.views(self.grads)
        self.velocity = torch.zeros_like(self.weights)
        self.ema = self.weights.clone()
        for parameter, weight, grad in zip(parameters, self.views(self.compute), self.gradients, strict=True):
            parameter.data = weight
            parameter.grad = None if wide_gradients else grad  # torch takes only one of the parameter's own dtype

    @property
    def trains(self) -> bool:
        """True while it trains; otherwise an optimizer leaves its weights as they are."""
        return self.parameters[0].requires_grad

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Return a view of `buffer`, one of the group's, for each parameter, with its shape and memory layout."""
        return _views(buffer, self.parameters)

    def runs(self, select: Callable[[nn.Parameter], bool]) -> list[slice]:
        """Return the slices of the buffers that hold the parameters for which `select` is true, neighbors as one."""
        runs: list[slice] = []
        for parameter, span in zip(self.parameters, self.spans, strict=True):
            if select(parameter):
                start = runs.pop().start if runs and runs[-1].stop == span.start else span.start
                runs.append(slice(start, span.stop))
        return runs

    @torch.no_grad()
    def load(self, weights: torch.Tensor) -> None:
        """Start afresh from flat `weights` `[P]`: optimizer state zero, average equal to the weights."""
        self.weights.copy_(weights)
        self.ema.copy_(weights)
        self.velocity.zero_()
        self.grads.zero_()
        self.compute.copy_(weights)


class _Cut:
    """A hook that keeps the last output of a layer that needs a gradient. A copy of the layer, by pickle too, gets one
    of its own."""

    def __init__(self) -> None:
        self.output: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.output = output if output.requires_grad else None

    def __reduce__(self) -> tuple[type[_Cut], tuple[()]]:
        return _Cut, ()


class FlatModel:
    """A network whose state lies in flat buffers.

    `groups`: trained parameters as "weights" (matrices and convolution filters), "scales" (other vectors) and "biases";
    each parameter that the network freezes later (its `frozen_from`) is in a group of its own with the same name, and
    those that it freezes from the start are in one for each kind.
    `statistics` `[B]`: the floating buffers of batch norms, in the master dtype; `statistics_ema`: their moving
    average.

    model: the network; its parameters become views.
    dtype: the compute dtype, as in `module.to(dtype)`. Vectors of modules that compute in the master dtype (those with
        `wide_vectors`, and batch norms unless theirs is false) are in that. Frozen parameters and other floating
        buffers are cast in the same way and stay where they are.
    wide_gradients: see `FlatGroup`.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, wide_gradients: bool = False) -> None:
        self.model, self.dtype = model, dtype
        wide = master_dtype(dtype)
        alone = getattr(model, "frozen_from", {})
        narrow = {id(p) for module in model.modules() if not _is_wide(module) for p in module._parameters.values()}
        by_group: dict[tuple[str, str, torch.dtype], list[nn.Parameter]] = {}
        self._frozen: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            group = _group(name, parameter)
            computed = dtype if group == "weights" or id(parameter) in narrow else wide
            if parameter.requires_grad:
                own = "" if name not in alone else "frozen" if alone[name] <= 0 else name
                by_group.setdefault((group, own, computed), []).append(parameter)
            else:
                self._frozen[name] = parameter
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(computed)
        self.groups = [
            FlatGroup(name, parameters, computed, wide_gradients)
            for (name, _, computed), parameters in by_group.items()
        ]
        averaged, tensors = [], []
        for prefix, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is None or not buffer.is_floating_point():
                    continue
                if _is_wide(module):
                    averaged.append((prefix, module, name))
                    tensors.append(buffer)
                else:
                    module._buffers[name] = buffer.to(dtype)
        device = next(model.parameters()).device
        self.statistics = _flatten(tensors, wide) if tensors else torch.zeros(0, dtype=wide, device=device)
        self.statistics_ema = self.statistics.clone()
        self._averaged = {f"{prefix}.{name}" if prefix else name for prefix, _, name in averaged}
        self._gradients = {p: into for g in self.groups for p, into in zip(g.parameters, g.gradients, strict=True)}
        self._below: set[int] = set()
        self._cut = _Cut()
        for (_, module, name), view in zip(averaged, _views(self.statistics, tensors), strict=True):
            module._buffers[name] = view

    def __reduce__(self) -> NoReturn:
        raise TypeError("a FlatModel is not copied or pickled: a copy's parameters would lie in its buffers no more")

    def group_of(self, name: str) -> FlatGroup:
        """Return the group that holds the trained parameter `name`."""
        parameter = self.model.get_parameter(name)
        return next(group for group in self.groups if any(parameter is member for member in group.parameters))

    def part(
        self, name: str, buffers: Sequence[torch.Tensor], statistics: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the view, of its shape, of a trained parameter in `buffers`, which has one for each group laid out as
        its weights, or of a running statistic in `statistics`; of what lies in neither none."""
        if name in self._averaged:
            place = self.model.get_buffer(name)
            view = (place.shape, place.stride(), place.storage_offset())
            return [] if statistics is None else [statistics.as_strided(*view)]
        parameter = dict(self.model.named_parameters()).get(name)
        return [
            group.views(buffer)[place]
            for group, buffer in zip(self.groups, buffers, strict=True)
            for place, own in enumerate(group.parameters)
            if own is parameter
        ]

    def copies(self, name: str) -> list[torch.Tensor]:
        """Return the master copy of a parameter or buffer, what the network computes with and the moving average, as
        views; the one tensor where there are no others."""
        found = []
        for each, statistics in (
            ("weights", self.statistics),
            ("compute", None),
            ("ema", self.statistics_ema),
        ):
            found += self.part(name, [getattr(group, each) for group in self.groups], statistics)
        return found or [self._not_averaged()[name]]

    def divide(self) -> None:
        """Make `backward` compute the gradients above the network's `first_block` before all others from now on.
        Nothing changes for a network that names none."""
        name = getattr(self.model, "first_block", None)
        if not isinstance(name, str) or self._below:  # a user's network may have a module of that name
            return
        names = [parameter for parameter, _ in self.model.named_parameters()]
        last = max(place for place, parameter in enumerate(names) if parameter.startswith(f"{name}."))
        self._below = {id(self.model.get_parameter(parameter)) for parameter in names[: last + 1]}
        self.model.get_submodule(name).register_forward_hook(self._cut)

    def is_above(self, parameter: nn.Parameter) -> bool:
        """Return True for a parameter above `first_block`, whose gradients are computed first."""
        return bool(self._below) and id(parameter) not in self._below

    def backward(
        self,
        outputs: torch.Tensor,
        gradient: torch.Tensor | None = None,
        halfway: Callable[[Callable[[], None]], None] = lambda copy: copy(),
    ) -> None:
        """Overwrite the gradients of the parameters that train now, with zeros where `outputs` does not depend on them.
        The buffers' gaps stay zero.

        outputs: a scalar, or a tensor whose `gradient` is given.
        gradient: the gradient at `outputs`, of its shape.
        halfway: called after `divide`, as `halfway(copy)`, once the gradients above the first block are computed and
            before those below; it must call `copy`, which copies them into the buffers in the current stream.
        """
        cut, self._cut.output = self._cut.output, None
        trained = [parameter for group in self.groups if group.trains for parameter in group.parameters]
        if cut is None:
            self._copy_gradients(trained, _gradients(outputs, trained, gradient))
            return
        above = [parameter for parameter in trained if self.is_above(parameter)]
        below = [parameter for parameter in trained if not self.is_above(parameter)]
        *grads, at_cut = _gradients(outputs, [*above, cut], gradient)
        halfway(lambda: self._copy_gradients(above, grads))
        self._copy_gradients(below, _gradients(cut, below, at_cut))

    @torch.no_grad()
    def load(self, model: nn.Module) -> None:
        """Start afresh from the state of a network of the same shape, on any device: see `FlatGroup.load`."""
        given = dict([*model.named_parameters(), *model.named_buffers()])
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self.groups:
            group.weights.zero_()  # the gaps too
            for parameter, weight in zip(group.parameters, group.views(group.weights), strict=True):
                weight.copy_(given[names[id(parameter)]])
            group.load(group.weights)
        for name, mine in (*self._frozen.items(), *self.model.named_buffers()):
            mine.copy_(given[name])
        self.statistics_ema.copy_(self.statistics)

    @torch.no_grad()
    def load_average(self, other: FlatModel, averaged: bool = True) -> None:
        """Copy the moving averages of `other`, of the same shape, as weights; its last weights if not `averaged`.
        Tensors without an average are copied as they are."""
        for group, others in zip(self.groups, other.groups, strict=True):
            group.weights.copy_(others.ema if averaged else others.weights)
            group.compute.copy_(group.weights)
        self.statistics.copy_(other.statistics_ema if averaged else other.statistics)
        theirs = other._not_averaged()
        for name, mine in self._not_averaged().items():
            mine.copy_(theirs[name])

    @torch.no_grad()
    def return_to_average(self) -> None:
        """Set the weights that train now and the running statistics to their moving averages. Velocities stay."""
        for group in self.groups:
            if group.trains:
                group.weights.copy_(group.ema)
                group.compute.copy_(group.weights)
        self.statistics.copy_(self.statistics_ema)

    def training_state(self) -> dict[str, torch.Tensor]:
        """Return all tensors that change while training, by name; not copies."""
        state = {"statistics": self.statistics, "statistics_ema": self.statistics_ema}
        for number, group in enumerate(self.groups):
            for name in ("weights", "velocity", "ema"):
                state[f"groups.{number}.{name}"] = getattr(group, name)
        return state | {f"model.{name}": tensor.detach() for name, tensor in self._not_averaged().items()}

    @torch.no_grad()
    def load_training_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from the `training_state` of the same network. Raises UserError for another's, and changes nothing."""
        copy_tensors(tensors, self.training_state())
        for group in self.groups:
            group.compute.copy_(group.weights)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return a copy of the network's state by parameter name on the CPU, from the master weights, floating tensors
        in float32; what a module has in it besides tensors is left out."""
        whole = self.model.state_dict()
        state = {name: tensor.detach() for name, tensor in whole.items() if isinstance(tensor, torch.Tensor)}
        weights = {p: w for g in self.groups for p, w in zip(g.parameters, g.views(g.weights), strict=True)}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            state[name] = weights.get(parameter, state[name])
        plain = {"device": "cpu", "memory_format": torch.contiguous_format, "copy": True}
        return {
            name: tensor.to(dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype, **plain)
            for name, tensor in state.items()
        }

    def _not_averaged(self) -> dict[str, torch.Tensor]:
        """Return frozen parameters, and the buffers that are not among the statistics, by name."""
        others = {name: buffer for name, buffer in self.model.named_buffers() if name not in self._averaged}
        return {**self._frozen, **others}

    def _copy_gradients(self, parameters: Sequence[nn.Parameter], grads: Sequence[torch.Tensor]) -> None:
        """Copy `grads` into the flat buffers, all of one dtype at once, since one launch takes only one."""
        by_dtype: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for parameter, grad in zip(parameters, grads, strict=True):
            by_dtype.setdefault(parameter.dtype, []).append((self._gradients[parameter], grad))
            if grad.is_cuda:  # its memory must not be reused before this stream has read it
                grad.record_stream(torch.cuda.current_stream(grad.device))
        for pairs in by_dtype.values():
            if all(into.stride() == grad.stride() for into, grad in pairs):  # otherwise each piece would be a launch
                size = max(_PIECE, sum(grad.numel() for _, grad in pairs) // _PIECES)
                pairs = [
                    piece for into, grad in pairs for piece in zip(_split(into, size), _split(grad, size), strict=True)
                ]
            foreach_copy(*(list(side) for side in zip(*pairs, strict=True)))


@torch.no_grad()
def copy_tensors(tensors: Mapping[str, torch.Tensor], into: Mapping[str, torch.Tensor]) -> None:
    """Copy the saved `tensors` of a training's state `into` those of the same names. Raises UserError for other names
    or shapes, and then copies nothing."""
    require_tensors(tensors, into)
    for name, tensor in into.items():
        tensor.copy_(tensors[name])


def require_tensors(tensors: Mapping[str, torch.Tensor], into: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError unless `copy_tensors` can copy these."""
    for name in sorted(tensors.keys() | into.keys()):
        given, needed = (list(some[name].shape) if name in some else "absent" for some in (tensors, into))
        if given != needed:
            raise UserError(f"{name} of the training's state is {given}; allowed: {needed}")


def _gradients(
    outputs: torch.Tensor, inputs: Sequence[torch.Tensor], gradient: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Return gradients; zeros for inputs that `outputs` does not depend on, such as a block left out in this step."""
    # On a GPU it would be one more launch in every step. What has not the shape of `outputs` torch refuses.
    if gradient is not None and gradient.is_cpu and gradient.shape == outputs.shape:
        with torch.enable_grad():
            outputs, gradient = _Begin.apply(outputs, gradient), None
    return torch.autograd.grad(outputs, inputs, gradient, materialize_grads=True)


class _Begin(torch.autograd.Function):
    """A scalar whose derivative by `outputs` is `gradient`. From a scalar autograd begins by itself; to look at the
    shape of a gradient that it is given, it would import SymPy first, half a second of a CPU's training."""

    @staticmethod
    def forward(ctx: Any, outputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        return gradient.new_empty(())

    @staticmethod
    def backward(ctx: Any, one: torch.Tensor) -> tuple[torch.Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.saved_tensors[0], None


def _split(tensor: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Return pieces of about `size` elements, of whole rows."""
    return (tensor,) if tensor.numel() <= size else tensor.split(max(1, size // tensor[0].numel()))


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of master weights, optimizer state and statistics for a compute `dtype`: float32, or `dtype` if
    that is wider."""
    return torch.promote_types(dtype, torch.float32)


def _group(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("bias"):
        return "biases"
    return "weights" if parameter.dim() > 1 else "scales"


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() // _ALIGN) * _ALIGN


def _flatten(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    flat = torch.zeros(sum(map(_padded, tensors)), dtype=dtype, device=tensors[0].device)
    for view, tensor in zip(_views(flat, tensors), tensors, strict=True):
        view.copy_(tensor.detach())
    return flat


def _is_wide(module: nn.Module) -> bool:
    """Return True for a module whose vectors and buffers are in the master dtype, whatever its input's dtype."""
    return bool(getattr(module, "wide_vectors", isinstance(module, nn.modules.batchnorm._BatchNorm)))


def _views(flat: torch.Tensor, like: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return views into `flat`, one after another, with the shapes of `like`, channels-last where these are."""
    views, start = [], 0
    for tensor in like:
        part = flat[start : start + tensor.numel()]
        start += _padded(tensor)
        channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        views.append(part.as_strided(tensor.shape, tensor.stride()) if channels_last else part.view(tensor.shape))
    return views
