"""Smoothed, scaled cross-entropy, summed over the batch, with the number of right answers."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_reference(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The specification of `cross_entropy`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = torch.log_softmax(wide * scale, dim=1)
    nll = -log_p.gather(1, labels[:, None]).sum()
    loss = (1 - smoothing) * nll - smoothing * log_p.mean(dim=1).sum()
    return loss, (logits.argmax(dim=1) == labels).sum()


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """`(loss summed over the batch, float32 scalar; correct count, int64 scalar)`."""
    return cross_entropy_reference(logits, labels, smoothing, scale)
