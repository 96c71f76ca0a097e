"""Cross-entropy of smoothed targets, with the gradient, each image's loss and the number of right answers in one pass.

Roofline. Logits [B, K] in half precision, labels [B] int64: reads 2BK + 8B bytes, writes the float32 gradient 4BK, the
images' losses 4B and two scalars; the backward pass reads 4BK and writes 2BK. B 512, K 10 (DavidNet): 68 KB, 16 ns at
4.3 TB/s; B 2000 (SpeedrunNet): 264 KB, 61 ns. Some 20 operations a logit, 0.1 and 0.4 MFLOP: below 1 ns at 790 TFLOP/s.
Neither binds: a launch (2 to 5 microseconds) does, so what counts is that loss, gradient and count are one launch; a
training's step (`cross_entropy_step`) also has its labels looked up and its metrics noted in it, and its gradient, 2BK
bytes in the logits' dtype, is what a backward pass would give. In it a program waits for memory four times, some 0.7
microseconds each: position, indices, labels, and the count of the programs that are done, of which the last waits once
more, for the sums of all. It adds them in their order, so that the loss is the same from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.kernels.augment import rows_of_batch
from fastcifar.kernels.launch import use_triton
from fastcifar.kernels.operators import autograd, needs_plain_torch, operator

# ---------------------------------------------------------------------------------------------------------- reference


def cross_entropy_by_image_reference(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cross_entropy_by_image` in plain torch with torch's own gradient: its specification."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = torch.log_softmax(wide * scale, dim=1)
    nll = -log_p.gather(1, labels[:, None]).squeeze(1)
    # Without smoothing the mean, which one masked class (a logit of -inf) makes -inf, is no part of the loss.
    losses = (1 - smoothing) * nll - smoothing * log_p.mean(dim=1) if smoothing else nll
    return losses.sum(), (logits.argmax(dim=1) == labels).sum(), losses.detach()


def cross_entropy_reference(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute `cross_entropy` in plain torch with torch's own gradient: its specification."""
    return cross_entropy_by_image_reference(logits, labels, smoothing, scale)[:2]


def _forward_reference(
    logits: Tensor, labels: Tensor, smoothing: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return loss, number of right answers, dloss/dlogits [B, K] and each image's loss [B]. All but the number are
    float32, or float64 for float64 logits."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss, correct, losses = cross_entropy_by_image_reference(wide, labels, smoothing, scale)
    return loss, correct, _gradient(wide, labels, smoothing, scale), losses


def _gradient(logits: Tensor, labels: Tensor, smoothing: float, scale: float) -> Tensor:
    """Return dloss/dlogits [B, K], which has derivatives itself."""
    gradient = torch.softmax(logits * scale, dim=1) - smoothing / logits.shape[1]
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), smoothing - 1))
    return gradient.mul_(scale)


# ----------------------------------------------------------------------------------------------------------- operator


def _cross_entropy(logits, *rest):
    if use_triton(logits):
        from fastcifar.kernels.cross_entropy_triton import forward_triton

        return forward_triton(logits, *rest)
    return _forward_reference(logits, *rest)


def _cross_entropy_fake(logits, labels, smoothing, scale):
    wide = torch.promote_types(logits.dtype, torch.float32)
    gradient = torch.empty(logits.shape, dtype=wide, device=logits.device)
    return gradient.new_empty(()), labels.new_empty(()), gradient, gradient.new_empty(labels.shape)


def _cross_entropy_backward(upstream: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `upstream * gradient` in the logits' dtype, multiplied before the cast, for a scaled float16 loss."""
    return torch.mul(gradient, upstream, out=_cross_entropy_backward_fake(upstream, gradient, dtype))


def _cross_entropy_backward_fake(upstream, gradient, dtype):
    return torch.empty(gradient.shape, dtype=dtype, device=gradient.device)


def _save(ctx, inputs, output) -> None:
    logits, labels, *ctx.constants = inputs
    ctx.save_for_backward(output[2], logits, labels)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, upstream, *_):
    if upstream is None:
        return None, None, None, None
    gradient, logits, _ = ctx.saved_tensors
    return torch.ops.fastcifar.cross_entropy_backward(upstream, gradient, logits.dtype), None, None, None


def _differentiable_backward(ctx, upstream, *_):
    if upstream is None:
        return None, None, None, None
    gradient, logits, labels = ctx.saved_tensors
    gradient = _gradient(logits.to(gradient.dtype), labels, *ctx.constants)
    return (upstream * gradient).to(logits.dtype), None, None, None


def _cross_entropy_step(
    logits: Tensor,
    labels: Tensor,
    indices: Tensor,
    position: Tensor,
    losses: Tensor,
    correct: Tensor,
    image_losses: Tensor | None,
    smoothing: float,
    scale: float,
) -> Tensor:
    if use_triton(logits):
        from fastcifar.kernels.cross_entropy_triton import launch_cross_entropy

        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        tensors = (logits, labels, position, indices, losses, correct, gradient, image_losses)
        launch_cross_entropy(*tensors, smoothing, scale)
        return gradient
    images = indices[rows_of_batch(position, len(logits))]
    loss, right, gradient, by_image = _forward_reference(logits, labels[images], smoothing, scale)
    losses.index_copy_(0, position, loss.to(losses.dtype).view(1))
    correct.add_(right)
    if image_losses is not None:
        image_losses.index_copy_(0, images, by_image.to(image_losses.dtype))
    position.add_(1)
    return gradient.to(logits.dtype)


operator("cross_entropy", _cross_entropy, _cross_entropy_fake, signature=_forward_reference)
operator("cross_entropy_backward", _cross_entropy_backward, _cross_entropy_backward_fake)
autograd("cross_entropy", _backward, _save, _differentiable_backward)
operator(
    "cross_entropy_step",
    _cross_entropy_step,
    lambda logits, *_: torch.empty(logits.shape, dtype=logits.dtype, device=logits.device),
    mutates=("position", "losses", "correct", "image_losses"),
)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return `(loss, correct)`: summed cross-entropy of `logits * scale`, and the number of right answers.

    logits: [B, K] floating; a class of -inf is masked.
    labels: int64 [B], each in [0, K).
    smoothing: 0 to 1: the targets are `1 - smoothing` on the label plus `smoothing / K` on every class (Szegedy 2016).

    loss: float32 scalar (float64 for float64 logits), its gradient in the logits' dtype. correct: int64 scalar; of
    equal logits the first counts as the answer.

    Raises ValueError for other shapes and smoothing, TypeError for other dtypes.
    """
    return cross_entropy_by_image(logits, labels, smoothing, scale)[:2]


def cross_entropy_by_image(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(loss, correct, losses)`: as `cross_entropy`, and each image's part of the loss, [B] in its dtype,
    without a gradient."""
    _check(logits, labels, logits.shape[:1], smoothing)
    if needs_plain_torch():
        return cross_entropy_by_image_reference(logits, labels, smoothing, scale)
    loss, correct, _, losses = torch.ops.fastcifar.cross_entropy(logits, labels, smoothing, scale)
    return loss, correct, losses


@torch.no_grad()
def cross_entropy_step(
    logits: Tensor,
    labels: Tensor,
    indices: Tensor,
    position: Tensor,
    losses: Tensor,
    correct: Tensor,
    image_losses: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Return the gradient of `cross_entropy` in the logits, [B, K] in their dtype, for a step of a training. Write the
    loss and the right answers on the device, and move the position to the next batch.

    labels: int64 [N], of all training images.
    indices: int64 [at least (position + 1) * B], the images of an epoch in their order.
    position: int64 [1], the number of the batch of B indices, from 0; it becomes one more.
    losses: float32 [batches]: the entry at the position becomes the loss.
    correct: int64 [1]: the number of right answers is added.
    image_losses: float32 [N], or None: the entries of the batch's images become their parts of the loss.
    smoothing, scale: as in `cross_entropy`.

    Raises ValueError for other shapes and smoothing, TypeError for other dtypes.
    """
    _check(logits, labels, labels.shape[:1], smoothing)
    for name, tensor, dtype, shape in (
        ("labels", labels, torch.int64, labels.shape),
        ("indices", indices, torch.int64, indices.shape[:1]),
        ("position", position, torch.int64, (1,)),
        ("losses", losses, torch.float32, losses.shape[:1]),
        ("correct", correct, torch.int64, (1,)),
        ("image_losses", image_losses, torch.float32, labels.shape),
    ):
        if tensor is not None and (tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous()):
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; allowed: contiguous {dtype} {list(shape)}"
            )
    return torch.ops.fastcifar.cross_entropy_step(
        logits, labels, indices, position, losses, correct, image_losses, smoothing, scale
    )


def _check(logits: Tensor, labels: Tensor, shape: torch.Size, smoothing: float) -> None:
    if logits.ndim != 2 or labels.shape != shape or labels.ndim != 1:
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} do not fit; allowed: [B, K] and [B]"
        )
    if labels.dtype != torch.int64 or not logits.is_floating_point():
        raise TypeError(f"labels are {labels.dtype} and logits {logits.dtype}; allowed: int64 and a floating dtype")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing}; allowed: 0 to 1")
