"""DASH: weights shrink by how far they point along the gradient (Shin et al. 2024, arXiv 2410.23495)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.plasticity.layers import trained
from fastcifar.recipes.declare import Declaration, checked


@TORCH.applied()
def dash(
    module: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
    floor: float = 0.3,
    alpha: float = 0.3,
) -> None:
    """Shrink the weights and biases of all linear layers and convolutions in `module` that train, in place.

    Over the batches, with the weights as they are, g <- (1 - alpha) g + alpha * (-dloss/dw), from 0. Then each kernel
    `weight[o, i]` of a convolution (all its taps), each row of a linear layer's matrix, and each bias as a whole is
    multiplied by its cosine with its part of g, at least `floor`: what points along the negative gradient stays, and
    what does not shrinks (Shin et al. 2024, arXiv 2410.23495).

    module: in the mode that it is in, for the authors in training mode. Its running statistics are as before
        afterwards, and its parameters' `grad` is not touched.
    batches: images and labels, as `module` and `loss` take them; the authors' are the training images, not augmented,
        the oldest first, in batches as large as one of the chunks in which data arrive (1,000 images of CIFAR-10).
    loss: a function of the module's outputs and the labels that returns the mean loss, or the loss of each image.
    floor: the least factor, 0 to 1; the authors' lambda.
    alpha: the share of each batch in the moving average, above 0, up to 1. With 0.3 the last 10 batches are 97% of it:
        with the authors' 10 chunks, the newest.

    Averages and factors are in float32 or wider; weights keep their dtype. The cosine of a part shrinks with its norm
    below 1e-8, and with its gradient's, as torch.cosine_similarity divides by 1e-8 then. Left as they are: norms,
    parameters that do not train, and layers of other kinds.

    Raises UserError for numbers out of range, for a weight or bias that is computed from other parameters, and where
    there is no batch or one with gradients that are not finite, before anything is changed.
    """
    floor = checked("floor", floor, float, Declaration(at_least=0, at_most=1))
    alpha = checked("alpha", alpha, float, Declaration(above=0, at_most=1))
    parameters = trained(module, "weight", "bias")
    averages = _averages(module, parameters, batches, loss, alpha) if parameters else []
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            dim = 2 if parameter.dim() == 4 else parameter.dim() - 1
            wide = parameter.to(average.dtype)
            cosine = F.cosine_similarity(average.flatten(dim), wide.flatten(dim), dim=-1)
            parameter.copy_(wide * cosine.clamp(floor, 1).view(*cosine.shape, *(1,) * (wide.dim() - cosine.dim())))


def _averages(
    module: nn.Module,
    parameters: Sequence[torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    alpha: float,
) -> list[torch.Tensor]:
    """Return the moving average of the negative gradient for each parameter."""
    averages = [torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in parameters]
    statistics, seen = [(buffer, buffer.clone()) for buffer in module.buffers()], False
    try:
        for images, labels in batches:
            value, seen = loss(module(images), labels).mean(), True
            for average, gradient in zip(
                averages, torch.autograd.grad(value, parameters, materialize_grads=True), strict=True
            ):
                average.mul_(1 - alpha).sub_(gradient.to(average.dtype), alpha=alpha)
    finally:
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
    if not seen:
        raise UserError("batches has none; allowed: one or more, of images and labels")
    if not all(average.isfinite().all() for average in averages):
        raise UserError("the loss of a batch has gradients that are not finite; allowed: batches whose gradients are")
    return averages
