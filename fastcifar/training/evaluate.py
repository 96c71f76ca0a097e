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
def evaluate(
    model: nn.Module,
    split: Split,
    tta: str = "flip",
    batch_size: int = 1000,
    share: float = 1.0,
    shifted: float = 0.5,
) -> Evaluation:
    """Evaluate `model` on `split`, in the model's own dtype; `model.mean` and `model.std` say how to normalise.

    `tta` names the views whose logits are averaged: "none", the image alone; "flip", it and its mirror image (Page
    2019); "flip-crop", these and both shifted by a pixel to the upper left and to the lower right, the border reflected
    (Jordan 2024), the four shifted views together weighing `shifted`. Only that `share` of the images whose plain view
    has the lowest top probability gets further views; the others keep the plain view's logits (hiverge,
    cifar10-speedrun, 2025). The model's training mode is left as it was. Raises ValueError for any other `tta`.
    """
    if tta not in ("none", "flip", "flip-crop"):
        raise ValueError(f"tta is {tta!r}; allowed: none, flip, flip-crop")
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.dim() > 1)
    was_training = model.training
    model.eval()
    every = torch.arange(len(split), device=split.images.device)
    plain = torch.cat([_logits(model, split.images, part, dtype) for part in every.split(batch_size)])
    logits = plain
    unsure = every
    if share < 1:  # their number is known ahead: nothing waits for the device
        confidence = plain.softmax(1).amax(1)
        unsure = confidence.topk(round(share * len(split)), largest=False, sorted=False).indices
    if tta != "none" and len(unsure):
        plain_weight, views = _views(tta, shifted)
        parts = []
        for part in unsure.split(batch_size):
            mean = plain_weight * plain[part]
            for weight, shift, flip in views:
                mean += weight * _logits(model, split.images, part, dtype, shift, flip)
            parts.append(mean)
        logits = plain.index_copy(0, unsure, torch.cat(parts))
    model.train(was_training)
    return Evaluation(
        _accuracy(logits, split.labels),
        F.cross_entropy(logits, split.labels).item(),
        logits.cpu(),
        _accuracy(plain, split.labels),
    )


def _views(tta: str, shifted: float) -> tuple[float, list[tuple[float, int, bool]]]:
    """The weight of the plain view, and weight, shift and flip of each further one."""
    if tta == "flip":
        return 0.5, [(0.5, 0, True)]
    crops = [(shifted / 4, shift, flip) for shift in (-1, 1) for flip in (False, True)]
    return (1 - shifted) / 2, [((1 - shifted) / 2, 0, True), *crops]


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(1) == labels).sum().item() / len(labels)


def _logits(
    model: nn.Module,
    images: torch.Tensor,
    indices: torch.Tensor,
    dtype: torch.dtype,
    shift: int = 0,
    flip: bool = False,
) -> torch.Tensor:
    """Float32 logits of the images at `indices`, cropped `shift` pixels down and to the right, then mirrored."""
    offsets = torch.full((len(indices), 2), shift, dtype=torch.int32, device=images.device)
    flips = torch.ones(len(indices), dtype=torch.bool, device=images.device) if flip else None
    batch = augment(images, indices, offsets, flips, mean=model.mean, std=model.std, out_dtype=dtype)
    return model(batch).float()
