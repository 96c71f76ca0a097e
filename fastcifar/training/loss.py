"""A training step's loss of the user's own, and dynamic loss scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastcifar.errors import UserError
from fastcifar.optim import FlatModel, FlatOptimizer
from fastcifar.recipes import LossScalingConfig

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of logits, float32 `[B, classes]`, and labels, int64 `[B]`: their mean loss, or the loss of each, `[B]`."""


def loss_step(
    loss: Loss,
    logits: torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    position: torch.Tensor,
    losses: torch.Tensor,
    correct: torch.Tensor,
    image_losses: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """`gradient_scale` times the gradient, like `logits` `[B, K]`, of `loss` of `logits * scale` and `labels` `[B]`,
    summed over the batch; the loss and the right answers are noted where `kernels.cross_entropy_step` notes them.
    `indices`: int64 `[B]`, the images' places in the split. Raises UserError for a loss of another shape than `[]` or
    `[B]`."""
    leaf = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
    value = loss(leaf * scale, labels)
    if not (isinstance(value, torch.Tensor) and value.requires_grad):
        what = f"{type(value).__name__}{' without a gradient' * isinstance(value, torch.Tensor)}"
        raise UserError(f"the loss gives a {what}; allowed: a tensor that depends on the logits")
    if value.shape not in ((), labels.shape):
        raise UserError(
            f"the loss has shape {list(value.shape)}; allowed: [], a mean, or [{len(labels)}], one an image"
        )
    if image_losses is not None:
        if not value.dim():
            raise UserError("select.keep is below 1, which needs each image's loss; allowed: a loss of shape [B]")
        image_losses.index_copy_(0, indices, value.detach().to(image_losses.dtype))
    total = value.sum() if value.dim() else value * len(labels)
    losses.index_copy_(0, position, total.detach().to(losses.dtype)[None])
    correct.add_((logits.argmax(1) == labels).sum())
    position.add_(1)
    return torch.autograd.grad(total * gradient_scale, leaf)[0].to(logits.dtype)


class LossScale:
    """Dynamic loss scaling (Micikevicius 2018), with the rules of torch.amp.GradScaler: doubled after `growth_every`
    steps in a row, halved after a step whose gradients are not all finite, which is left out.

    `scale` multiplies the gradients of the loss summed over `batch_size` images.
    """

    def __init__(self, config: LossScalingConfig, batch_size: int) -> None:
        self._config, self._initial = config, config.initial / batch_size
        self.reset()

    def reset(self) -> None:
        """Begin again, as before a training."""
        self.scale, self.finite_steps = self._initial, 0

    def step(self, flat: FlatModel, optimizer: FlatOptimizer) -> None:
        """A step of `optimizer` by the gradients in `flat`, which are `scale` times too large, unless they are not
        finite. The host waits for the device to tell."""
        gradients = [group.grads for group in flat.groups if group.trains]
        if torch.stack([grad.isfinite().all() for grad in gradients]).all().item():
            for grad in gradients:
                grad.div_(self.scale)
            optimizer.step()
            self.finite_steps += 1
            if self.finite_steps == self._config.growth_every:
                self.scale, self.finite_steps = self.scale * 2, 0
        else:
            optimizer.skip()
            self.scale, self.finite_steps = self.scale / 2, 0

    def state_dict(self) -> dict[str, Any]:
        """What changes in it."""
        return {"scale": self.scale, "finite_steps": self.finite_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.scale, self.finite_steps = state["scale"], state["finite_steps"]
