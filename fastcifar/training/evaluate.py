"""Evaluation with test-time augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.data import Split
from fastcifar.kernels import augment


@dataclass(frozen=True)
class Evaluation:
    """`accuracy`, a fraction; `loss`, the mean log-loss in nats; `logits`, float32 `[N, classes]` on the CPU; and
    `plain_accuracy`, that of the images as they are, without their augmented views."""

    accuracy: float
    loss: float
    logits: torch.Tensor
    plain_accuracy: float


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, tta: str = "flip", batch_size: int = 1000) -> Evaluation:
    """Evaluate `model` on `split`, in the model's own dtype; `model.mean` and `model.std` say how to normalise.

    `tta` "none", or "flip": the logits of each image and of its mirror image, averaged (Page 2019). The model's
    training mode is left as it was. Raises ValueError for any other `tta`.
    """
    if tta not in ("none", "flip"):
        raise ValueError(f"tta is {tta!r}; allowed: none, flip")
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.dim() > 1)
    was_training = model.training
    model.eval()
    flips = (False, True) if tta == "flip" else (False,)
    parts = []
    for indices in torch.arange(len(split), device=split.images.device).split(batch_size):
        parts.append(torch.stack([_logits(model, split.images, indices, dtype, flip=flip) for flip in flips]))
    model.train(was_training)
    views = torch.cat(parts, dim=1)
    logits = views.mean(0)
    return Evaluation(
        _accuracy(logits, split.labels),
        F.cross_entropy(logits, split.labels).item(),
        logits.cpu(),
        _accuracy(views[0], split.labels),
    )


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def _logits(
    model: nn.Module, images: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype, *, flip: bool
) -> torch.Tensor:
    offsets = torch.zeros(len(indices), 2, dtype=torch.int32, device=images.device)
    flips = torch.ones(len(indices), dtype=torch.bool, device=images.device) if flip else None
    batch = augment(images, indices, offsets, flips, mean=model.mean, std=model.std, out_dtype=dtype)
    return model(batch).float()
