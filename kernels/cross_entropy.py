"""Cross-entropy of smoothed targets, with the gradient, each image's loss and the number of right answers in the same
pass.

Roofline. Logits [B, K] in half precision, labels [B] int64: reads 2BK + 8B bytes, writes the float32 gradient 4BK, the
images' losses 4B and two scalars; the backward pass reads 4BK and writes 2BK. B 512, K 10 (DavidNet): 68 KB, 16 ns at
4.3 TB/s; B 2000 (speedrun): 264 KB, 61 ns. Some 20 operations a logit, 0.1 and 0.4 MFLOP: below 1 ns at 790 TFLOP/s.
Neither binds: a launch (2 to 5 microseconds) does, so what counts is that loss, gradient and count are one launch; a
training's step (`cross_entropy_step`) also has its labels looked up and its metrics noted in it, and its gradient, 2BK
bytes in the logits' dtype, is what a backward pass would give. In it a program waits for memory four times, some 0.7
microseconds each: position, indices, labels, and the count of the programs that are done, of which the last waits once
more, for the sums of all. It adds them in their order, so that the loss is the same from run to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcifar.kernels.augment import rows_of_batch
from fastcifar.kernels.launch import kernel, launch, use_triton
from fastcifar.kernels.launch_sizes import launch_sizes
from fastcifar.kernels.operators import autograd, operator

if TYPE_CHECKING:
    import triton.language as tl  # given to this module when Triton is loaded

_Results = tuple[Tensor, Tensor, Tensor, Tensor]
"""What the operator gives: loss, correct, dloss/dlogits [B, K] and each image's loss [B]."""

# ---------------------------------------------------------------------------------------------------------- reference


def cross_entropy_by_image_reference(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `cross_entropy_by_image`, in plain torch with torch's own gradient."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = torch.log_softmax(wide * scale, dim=1)
    nll = -log_p.gather(1, labels[:, None]).squeeze(1)
    losses = (1 - smoothing) * nll - smoothing * log_p.mean(dim=1)
    return losses.sum(), (logits.argmax(dim=1) == labels).sum(), losses.detach()


def cross_entropy_reference(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The specification of `cross_entropy`."""
    return cross_entropy_by_image_reference(logits, labels, smoothing, scale)[:2]


def _forward_reference(logits: Tensor, labels: Tensor, smoothing: float, scale: float) -> _Results:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss, correct, losses = cross_entropy_by_image_reference(wide, labels, smoothing, scale)
    gradient = torch.softmax(wide * scale, dim=1).sub_(smoothing / logits.shape[1])
    gradient.scatter_add_(1, labels[:, None], gradient.new_full((len(labels), 1), smoothing - 1))
    return loss, correct, gradient.mul_(scale), losses


# ------------------------------------------------------------------------------------------------------------- Triton
# Triton annotates a maximum or a sum as what may be a tuple or a constexpr:
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false


@kernel(do_not_specialize=["batch", "classes"])
def _cross_entropy_kernel(
    logits_ptr,  # [batch, classes], any floating dtype
    labels_ptr,  # int64 [batch]; with indices of all images
    position_ptr,  # int64 [1], which batch of the indices, moved on by one; the loss's place too
    indices_ptr,  # int64 [batches * batch], or None
    loss_ptr,  # float32 [batches]
    correct_ptr,  # int64 [1], added to
    gradient_ptr,  # any floating dtype [batch, classes]
    losses_ptr,  # float32 [batch], with indices of all images; or None
    partial_ptr,  # float32 [programs]: the sums of their images' losses
    batch,
    classes,
    smoothing,
    scale,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,  # the power of two from `classes` up
    PARTIALS: tl.constexpr,  # how many of them are read at once
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, CLASSES)
    real = (columns < classes)[None, :]
    position = tl.load(position_ptr) & 0xFFFFFFFF  # above are the programs that are done, while some are not
    rows = program * ROWS + tl.arange(0, ROWS)
    inside = rows < batch
    mask = inside[:, None] & real
    places = rows[:, None] * classes + columns[None, :]
    raw = tl.load(logits_ptr + places, mask, other=0.0).to(tl.float32)
    images = rows.to(tl.int64)
    if indices_ptr is not None:
        images = tl.load(indices_ptr + position * batch + rows, inside, other=0)
    labels = tl.load(labels_ptr + images, inside, other=0)
    values = tl.where(real, raw * scale, -float("inf"))
    shifted = values - tl.max(values, axis=1)[:, None]
    exponentials = tl.exp(shifted)  # 0 in the padding
    total = tl.sum(exponentials, axis=1)
    log_p = tl.where(real, shifted - tl.log(total)[:, None], 0.0)
    targets = tl.where(columns[None, :] == labels[:, None], 1 - smoothing, 0.0) + smoothing / classes
    losses = -tl.sum(targets * log_p, axis=1)
    if losses_ptr is not None:
        tl.store(losses_ptr + images, losses, inside)
    gradient = (exponentials / total[:, None] - targets) * scale
    tl.store(gradient_ptr + places, gradient, mask)
    logits = tl.where(real, raw, -float("inf"))
    first = tl.min(tl.where(logits == tl.max(logits, axis=1)[:, None], columns[None, :], CLASSES), axis=1)
    correct = tl.sum(tl.where(inside & (first == labels), 1, 0), axis=0)
    tl.store(partial_ptr + program, tl.sum(tl.where(inside, losses, 0.0), axis=0))
    tl.atomic_add(correct_ptr, correct.to(tl.int64), sem="relaxed")
    done = tl.atomic_add(position_ptr, 1 << 32) >> 32
    if done == programs - 1:  # the last finds the sums of all, and every program has read the position
        sums = tl.zeros([PARTIALS], tl.float32)
        for start in range(0, programs, PARTIALS):
            parts = start + tl.arange(0, PARTIALS)
            sums += tl.load(partial_ptr + parts, parts < programs, other=0.0)
        tl.store(loss_ptr + position, tl.sum(sums, axis=0))
        tl.store(position_ptr, position + 1)


def _forward_triton(logits: Tensor, labels: Tensor, smoothing: float, scale: float) -> _Results:
    loss = logits.new_empty((), dtype=torch.float32)
    counts = labels.new_zeros(2)
    position, correct = counts[0], counts[1]
    gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    losses = gradient.new_empty((len(logits),))
    _launch(logits, labels.contiguous(), position, None, loss, correct, gradient, losses, smoothing, scale)
    return loss, correct, gradient, losses


def _launch(logits, labels, position, indices, loss, correct, gradient, losses, smoothing, scale) -> None:
    batch, classes = logits.shape
    sizes, _ = launch_sizes(logits)
    padded = 1 << (classes - 1).bit_length()
    rows = max(1, sizes.entropy_values // padded)
    programs = max(1, -(-batch // rows))  # of no images one, for the loss
    partial = gradient.new_empty(programs, dtype=torch.float32)
    launch(
        _cross_entropy_kernel,
        (programs,),
        *(logits.contiguous(), labels, position, indices, loss, correct, gradient, losses, partial),
        *(batch, classes, smoothing, scale),
        ROWS=rows,
        CLASSES=padded,
        PARTIALS=32 * sizes.entropy_warps,
        num_warps=sizes.entropy_warps,
    )


# ----------------------------------------------------------------------------------------------------------- operator


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, scale: float) -> _Results:
    """See `_Results`: float32 but for the count; float64 where the logits are."""
    forward = _forward_triton if use_triton(logits) else _forward_reference
    return forward(logits, labels, smoothing, scale)


def _cross_entropy_fake(logits: Tensor, labels: Tensor, smoothing: float, scale: float) -> _Results:
    wide = torch.promote_types(logits.dtype, torch.float32)
    gradient = torch.empty(logits.shape, dtype=wide, device=logits.device)
    return gradient.new_empty(()), labels.new_empty(()), gradient, gradient.new_empty(labels.shape)


def _cross_entropy_backward(upstream: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """`upstream * gradient` in the logits' dtype: float32 until after the multiplication, for a scaled float16 loss."""
    return torch.mul(gradient, upstream, out=_cross_entropy_backward_fake(upstream, gradient, dtype))


def _cross_entropy_backward_fake(upstream: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(gradient.shape, dtype=dtype, device=gradient.device)


def _save(ctx, inputs, output) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, upstream, *_):
    if upstream is None:
        return None, None, None, None
    return torch.ops.fastcifar.cross_entropy_backward(upstream, ctx.saved_tensors[0], ctx.dtype), None, None, None


def _cross_entropy_step(logits, labels, indices, position, losses, correct, image_losses, smoothing, scale) -> Tensor:
    if use_triton(logits):
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        _launch(logits, labels, position, indices, losses, correct, gradient, image_losses, smoothing, scale)
        return gradient
    images = indices[rows_of_batch(position, len(logits))]
    loss, right, gradient, by_image = _forward_reference(logits, labels[images], smoothing, scale)
    losses.index_copy_(0, position, loss.to(losses.dtype).view(1))
    correct.add_(right)
    if image_losses is not None:
        image_losses.index_copy_(0, images, by_image.to(image_losses.dtype))
    position.add_(1)
    return gradient.to(logits.dtype)


operator(
    "cross_entropy(Tensor logits, Tensor labels, float smoothing, float scale) -> (Tensor, Tensor, Tensor, Tensor)",
    _cross_entropy,
    _cross_entropy_fake,
)
operator(
    "cross_entropy_backward(Tensor upstream, Tensor gradient, ScalarType dtype) -> Tensor",
    _cross_entropy_backward,
    _cross_entropy_backward_fake,
)
autograd("cross_entropy", _backward, _save)
operator(
    "cross_entropy_step(Tensor logits, Tensor labels, Tensor indices, Tensor(a!) position, Tensor(b!) losses, "
    "Tensor(c!) correct, Tensor(d!)? image_losses, float smoothing, float scale) -> Tensor",
    _cross_entropy_step,
    lambda logits, *_: torch.empty(logits.shape, dtype=logits.dtype, device=logits.device),
)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """`(loss, correct)`: cross-entropy of `logits * scale` summed over the batch, and how many answers are right.

    logits: [B, K] floating; labels: int64 [B], each in [0, K). The targets are `1 - smoothing` on the label plus
    `smoothing / K` on every class (Szegedy 2016). loss: float32 scalar (float64 for float64 logits), its gradient in
    the logits' dtype. correct: int64 scalar; of equal logits the first counts as the answer.

    Raises ValueError for other shapes, TypeError for other dtypes.
    """
    return cross_entropy_by_image(logits, labels, smoothing, scale)[:2]


def cross_entropy_by_image(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """`(loss, correct, losses)`: as `cross_entropy`, and what each image adds to the loss, [B] in its dtype, which is
    without a gradient."""
    _check(logits, labels, logits.shape[:1])
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
    """The gradient of `cross_entropy` in the logits, [B, K] in their dtype, for a step of a training; what the loss
    tells is noted on the device, and the position moved on to the next batch.

    labels: int64 [N], of all training images; indices: int64 [at least (position + 1) * B], the images of an epoch in
    their order; position: int64 [1], which batch of B of them. losses: float32 [batches]: that of the position becomes
    the loss. correct: int64 [1]: the right answers are added to it. image_losses: float32 [N], or None: those of the
    batch's images become what each adds to the loss.

    Raises ValueError for other shapes, TypeError for other dtypes.
    """
    _check(logits, labels, labels.shape[:1])
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


def _check(logits: Tensor, labels: Tensor, shape: torch.Size) -> None:
    if logits.ndim != 2 or labels.shape != shape or labels.ndim != 1:
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} do not fit; allowed: [B, K] and [B]"
        )
    if labels.dtype != torch.int64 or not logits.is_floating_point():
        raise TypeError(f"labels are {labels.dtype} and logits {logits.dtype}; allowed: int64 and a floating dtype")
