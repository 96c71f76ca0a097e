"""Evaluation with test-time augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.data import Split
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.kernels import plain_batch
from fastcifar.models import memory_format, normalization
from fastcifar.models.modes import in_evaluation
from fastcifar.recipes import EvaluateConfig

_DEFAULT = EvaluateConfig()
_UNLABELED = -1
"""The label of an image without one."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a network on a split: with test-time augmentation and, as `plain_*`, without.

    Accuracies are fractions, losses mean log-losses in nats, both over the labeled images, and None where there are
    none; logits are float32 `[N, classes]` on the CPU, ordinary tensors, each of its own memory.
    """

    accuracy: float | None
    loss: float | None
    logits: torch.Tensor
    plain_accuracy: float | None
    plain_loss: float | None
    plain_logits: torch.Tensor

    def __repr__(self) -> str:
        scores = {"accuracy": self.accuracy, "loss": self.loss, "plain accuracy": self.plain_accuracy}
        found = [f"{name} {value:.4f}" for name, value in scores.items() if value is not None]
        return f"Evaluation({', '.join([*found, f'{len(self.logits):,} images'])})"


@TORCH.applied()
def evaluate(
    model: nn.Module,
    split: Split,
    how: EvaluateConfig = _DEFAULT,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Evaluation:
    """Evaluate `model` on `split`, in the model's own dtype.

    model: gets channels-last images, or contiguous ones if its filters are; each module's mode is left as it was.
    split: images, and labels; images labeled -1 count in no accuracy and no loss.
    how: `tta` names the views whose logits are averaged: "none", the image alone; "flip", it and its mirror image (Page
        2019); "flip-crop", these and both shifted by a pixel to the upper left and to the lower right, the border
        reflected (Jordan 2024), the four shifted views together weighing `tta_shifted`. Only the `tta_share` of the
        images whose plain view has the lowest top probability gets further views (hiverge 2025).
    mean, std: normalize the images, 0 to 255 units; by default those that the model was trained with.

    Raises UserError where it is unknown how to normalize, and for labels that the model does not know.
    """
    if not isinstance(split, Split) or not isinstance(how, EvaluateConfig):
        given = f"{type(split).__name__} and {type(how).__name__}"
        raise UserError(f"evaluate was given {given}; allowed: a Split, such as data.test, and an EvaluateConfig")
    if mean is None or std is None:
        known = normalization(model)
        if known is None:
            what = f"what images {type(model).__name__} was trained on is not known"
            raise UserError(f"{what}; allowed: mean= and std=, or a network that this library trained")
        mean, std = known[0] if mean is None else mean, known[1] if std is None else std
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.dim() > 1), torch.float32)
    form = memory_format(model)

    seen: list[torch.Tensor] = [torch.empty(0)]

    def view(indices: torch.Tensor, shift: int = 0, flip: bool = False) -> torch.Tensor:
        if seen[0] is not indices:  # the images of all views of a batch are read once
            seen[:] = indices, *split.at(indices)
        batch = plain_batch(seen[1], seen[2], mean, std, dtype, shift, flip)
        return model(batch.contiguous(memory_format=form)).float()

    with in_evaluation(model), torch.inference_mode():
        logits, plain = _logits(view, len(split), how, split.device)
        if split.label_range[1] >= (classes := logits.shape[1]):
            low, high = split.label_range
            raise UserError(f"labels are {low} to {high}; allowed: up to {classes - 1}, as the model knows {classes}")
        labeled = int(split.labeled.sum())
        accuracy, loss = scores(logits, split.labels, labeled)
        plain_accuracy, plain_loss = scores(plain, split.labels, labeled)
    # Copied outside of inference mode they are ordinary tensors: gradients may flow from them.
    logits, plain = logits.to("cpu", copy=True), plain.to("cpu", copy=True)
    return Evaluation(accuracy, loss, logits, plain_accuracy, plain_loss, plain)


def _logits(
    view: Callable[..., torch.Tensor], count: int, how: EvaluateConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of `count` images with test-time augmentation and without.

    `view(indices, shift, flip)` returns the float32 logits of the images at `indices`, cropped `shift` pixels down and
    to the right, then mirrored.
    """
    every = torch.arange(count, device=device)
    plain = torch.cat([view(part) for part in every.split(how.batch_size)])
    unsure = every
    if how.tta_share < 1:  # with a known number of images nothing waits for the device
        confidence = plain.softmax(1).amax(1)
        unsure = confidence.topk(round(how.tta_share * count), largest=False, sorted=False).indices
    if how.tta == "none" or not len(unsure):
        return plain, plain
    plain_weight, views = _views(how)
    parts = []
    for part in unsure.split(how.batch_size):
        mean = plain_weight * plain[part]
        for weight, shift, flip in views:
            mean += weight * view(part, shift, flip)
        parts.append(mean)
    return plain.index_copy(0, unsure, torch.cat(parts)), plain


def _views(how: EvaluateConfig) -> tuple[float, list[tuple[float, int, bool]]]:
    """Return the weight of the plain view, and `(weight, shift, flip)` of each further one."""
    if how.tta == "flip":
        return 0.5, [(0.5, 0, True)]
    shifted = how.tta_shifted
    crops = [(shifted / 4, shift, flip) for shift in (-1, 1) for flip in (False, True)]
    return (1 - shifted) / 2, [((1 - shifted) / 2, 0, True), *crops]


def scores(logits: torch.Tensor, labels: torch.Tensor, labeled: int) -> tuple[float | None, float | None]:
    """Return accuracy and loss of the labeled images; `labeled` is their number."""
    if not labeled:
        return None, None
    loss = F.cross_entropy(logits, labels, ignore_index=_UNLABELED)
    return (logits.argmax(1) == labels).sum().item() / labeled, loss.item()
