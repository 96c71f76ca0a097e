"""The convolutions of a recipe's training step, each pass of each by itself, to set a step's time beside."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.timing import Work
from fastcifar.host import DispatchMode
from fastcifar.training import Trainer
from fastcifar.training.rehearse import step_on_noise
from fastcifar.training.timeline import Stage

PASSES = ("forward", "input", "weight")  # the output, the gradient of the input and that of the weight


@dataclass(frozen=True)
class Convolution:
    """One convolution of a training step, as torch has it."""

    name: str
    inputs: torch.Size  # `[N, C, H, W]`, like `outputs`
    outputs: torch.Size
    flop: int  # operations of one pass, two for each multiply-add
    passes: dict[str, Work]  # `passes[name]`, with a name of `PASSES`, calls a pass that the step makes


@dataclass(frozen=True)
class _Call:
    """A convolution that a network calls; `requires_grad` of its tensors says which gradients a step needs."""

    name: str
    inputs: torch.Tensor
    weight: torch.Tensor
    how: tuple[list[int], list[int], list[int]]  # stride, padding and dilation
    groups: int


def convolutions(trainer: Trainer, stage: Stage | None = None) -> list[Convolution]:
    """Return the convolutions of a step of `stage` (the training's last unless given), in its batch, compute type and
    layout."""
    stage = stage or trainer.timeline.epochs[-1].stage
    step_on_noise(trainer, stage)  # enters the stage: what is frozen in it, and all below, has no gradient
    model, shape = trainer.model.train(), (trainer.recipe.batch_size, 3, stage.size, stage.size)
    images = torch.randn(shape, device=trainer.device, dtype=trainer.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    # A CPU convolves by kernels, and small images as strips of several: there the layers' own images count. Elsewhere
    # the calls count, since two layers may be one convolution.
    calls = _of_layers(model, images) if trainer.device.type == "cpu" else _of_operators(model, images)
    return [_convolution(call) for call in calls]


def _of_layers(model: nn.Module, images: torch.Tensor) -> list[_Call]:
    calls: list[_Call] = []

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], options: dict[str, Any], _: torch.Tensor) -> None:
        padding = [0, 0] if options.get("bordered") else list(layer.padding)  # see `Conv3x3`
        how = (list(layer.stride), padding, list(layer.dilation))
        calls.append(_Call(names[layer], inputs[0], layer.weight, how, layer.groups))

    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in names]
    model(images)
    for hook in hooks:
        hook.remove()
    return calls


def _of_operators(model: nn.Module, images: torch.Tensor) -> list[_Call]:
    names = {parameter.data_ptr(): name.removesuffix(".weight") for name, parameter in model.named_parameters()}
    calls: list[_Call] = []

    class Note(DispatchMode):
        def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
            if func.overloadpacket is torch.ops.aten.convolution:
                x, weight, _, *how, _, _, groups = args
                calls.append(_Call(names.get(weight.data_ptr(), "composed"), x, weight, tuple(how), groups))
            return func(*args, **(kwargs or {}))

    with Note():
        model(images)
    return calls


def _convolution(call: _Call) -> Convolution:
    x, weight = call.inputs.detach(), call.weight.detach()
    forward = partial(torch.conv2d, x, weight, None, *call.how, call.groups)
    gradient = torch.randn_like(forward())
    rest = (gradient, x, weight, None, *call.how, False, [0, 0], call.groups)
    passes: dict[str, Work] = {"forward": forward}
    if call.inputs.requires_grad:  # something before it is trained
        passes["input"] = partial(torch.ops.aten.convolution_backward, *rest, [True, False, False])
    if call.weight.requires_grad:
        passes["weight"] = partial(torch.ops.aten.convolution_backward, *rest, [False, True, False])
    return Convolution(call.name, x.shape, gradient.shape, 2 * gradient.numel() * weight[0].numel(), passes)
