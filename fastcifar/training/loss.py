"""Losses of the user's own, and dynamic loss scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastcifar.data.plan import Mixed
from fastcifar.errors import UserError
from fastcifar.optim import FlatOptimizer
from fastcifar.recipes import LossScalingConfig

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of logits, float32 `[B, classes]`, and labels, int64 `[B]`, that returns the mean loss, `[]`, or the loss
of each image, `[B]`."""


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
    mixed: Mixed | None = None,
) -> torch.Tensor:
    """Return `gradient_scale` times the gradient at `logits` `[B, classes]` of `loss(logits * scale, labels)`, summed
    over the batch. `indices`, int64 `[B]`, are the images' places in the split; the other tensors are written as by
    `kernels.cross_entropy_step`. The loss of images that are `mixed` is that of both labels, weighted by their shares
    (Zhang 2017). Raises UserError for a loss of another shape than `[]` or `[B]`."""
    leaf = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
    value = _checked(loss(leaf * scale, labels), labels)
    if mixed is not None:
        value = torch.lerp(value, _checked(loss(leaf * scale, mixed.labels), labels), mixed.share.to(value.dtype))
    if image_losses is not None:
        if not value.dim():
            raise UserError("select.keep is below 1, which needs each image's loss; allowed: a loss of shape [B]")
        image_losses.index_copy_(0, indices, value.detach().to(image_losses.dtype))
    total = value.sum() if value.dim() else value * len(labels)
    losses.index_copy_(0, position, total.detach().to(losses.dtype)[None])
    correct.add_((logits.argmax(1) == labels).sum())
    position.add_(1)
    return torch.autograd.grad(total * gradient_scale, leaf)[0].to(logits.dtype)


def _checked(value: object, labels: torch.Tensor) -> torch.Tensor:
    """Return what a loss gives. Raises UserError for another shape than `[]` or `[B]`."""
    if not (isinstance(value, torch.Tensor) and value.requires_grad):
        what = f"{type(value).__name__}{' without a gradient' * isinstance(value, torch.Tensor)}"
        raise UserError(f"the loss gives a {what}; allowed: a tensor that depends on the logits")
    if value.shape not in ((), labels.shape):
        raise UserError(
            f"the loss has shape {list(value.shape)}; allowed: [], a mean, or [{len(labels)}], one an image"
        )
    return value


class LossScale:
    """Dynamic loss scaling (Micikevicius 2018), by the rules of torch.amp.GradScaler.

    `scale` multiplies the gradients of the loss summed over `batch_size` images. It is doubled after `growth_every`
    steps in a row, and halved after a step whose gradients are not all finite, which is left out.
    """

    def __init__(self, config: LossScalingConfig, batch_size: int) -> None:
        self._config, self._initial = config, config.initial / batch_size
        self.reset()

    def reset(self) -> None:
        """Start again with the first scale."""
        self.scale, self.finite_steps = self._initial, 0

    def step(self, optimizer: FlatOptimizer) -> None:
        """Make a step of `optimizer` by its gradients divided by `scale`, or leave it out unless all are finite. The
        host waits for the device."""
        gradients = [group.grads for group in optimizer.flat.groups if group.trains]
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
        """Return all that changes."""
        return {"scale": self.scale, "finite_steps": self.finite_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.scale, self.finite_steps = state["scale"], state["finite_steps"]
