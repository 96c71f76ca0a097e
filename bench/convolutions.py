"""The convolutions of a recipe's training step, each pass of each by itself: what a step's time is set beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fastcifar.training import Trainer
from fastcifar.training.timeline import Stage

PASSES = ("forward", "input", "weight")
"""The output, the gradient of the input and that of the weight."""


@dataclass(frozen=True)
class Convolution:
    """One convolution of a training step, as torch has it."""

    name: str
    inputs: torch.Size
    """`[N, C, H, W]`, like `outputs`."""
    outputs: torch.Size
    flop: int
    """Of one pass: two for each multiply-add."""
    passes: dict[str, Callable[[], object]]
    """By its name in `PASSES`, a call of each pass that the step makes."""


def convolutions(trainer: Trainer, stage: Stage | None = None) -> list[Convolution]:
    """The convolutions of a step of `stage` (the training's last unless given), in its batch, compute type and
    layout."""
    seen: list[tuple[str, nn.Conv2d, torch.Tensor]] = []
    stage = stage or trainer.timeline.epochs[-1].stage
    trainer.step_on_noise(stage)  # enters the stage: what is frozen in it, and all below, has no gradient
    model, side = trainer.model.train(), stage.size
    hooks = [
        module.register_forward_hook(lambda module, inputs, _, name=name: seen.append((name, module, inputs[0])))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    images = torch.randn(trainer.recipe.batch_size, 3, side, side, device=trainer.device, dtype=trainer.dtype)
    model(images.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return [_convolution(*call) for call in seen]


def _convolution(name: str, module: nn.Conv2d, inputs: torch.Tensor) -> Convolution:
    x, weight = inputs.detach(), module.weight.detach()
    where = (list(module.stride), list(module.padding), list(module.dilation))

    def forward() -> torch.Tensor:
        return torch.conv2d(x, weight, None, *where, module.groups)

    gradient = torch.randn_like(forward())

    def backward(by_input: bool) -> object:
        mask = [by_input, not by_input, False]
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *where, False, [0, 0], module.groups, mask
        )

    passes: dict[str, Callable[[], object]] = {"forward": forward}
    if inputs.requires_grad:  # something before it is trained
        passes["input"] = lambda: backward(by_input=True)
    if module.weight.requires_grad:
        passes["weight"] = lambda: backward(by_input=False)
    return Convolution(name, x.shape, gradient.shape, 2 * gradient.numel() * weight[0].numel(), passes)
