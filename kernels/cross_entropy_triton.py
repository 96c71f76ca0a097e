"""The Triton kernel of `cross_entropy` and `cross_entropy_step`, and its launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch

# Triton annotates a maximum or a sum as what may be a tuple or a constexpr:
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false


@dataclass(frozen=True)
class Sizes:
    values: int
    """Logits, padded to a power of two of classes, that a program takes."""
    warps: int


SIZES = LaunchSizes({(8, 0): Sizes(values=256, warps=8)}, interpreted=Sizes(values=16384, warps=1))


@triton.jit(do_not_specialize=["batch", "classes"])
def _cross_entropy_kernel(
    logits_ptr,  # [batch, classes], any floating dtype
    labels_ptr,  # int64 [batch]; with indices of all images
    position_ptr,  # int64 [1], the batch's number in the indices and the loss's place; becomes one more
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
    targets = tl.where(columns[None, :] == labels[:, None], 1 - smoothing, 0.0) + smoothing / classes
    # 0 in the padding, and for what is no target: a masked class has a log of -inf there.
    log_p = tl.where(real & (targets != 0), shifted - tl.log(total)[:, None], 0.0)
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


def forward_triton(
    logits: Tensor, labels: Tensor, smoothing: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = logits.new_empty((), dtype=torch.float32)
    counts = labels.new_zeros(2)
    position, correct = counts[0], counts[1]
    gradient = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    losses = gradient.new_empty((len(logits),))
    tensors = (logits, labels.contiguous(), position, None, loss, correct, gradient, losses)
    launch_cross_entropy(*tensors, smoothing, scale)
    return loss, correct, gradient, losses


def launch_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    position: Tensor,
    indices: Tensor | None,
    loss: Tensor,
    correct: Tensor,
    gradient: Tensor,
    losses: Tensor | None,
    smoothing: float,
    scale: float,
) -> None:
    batch, classes = logits.shape
    sizes = SIZES.of(logits)
    padded = 1 << (classes - 1).bit_length()
    rows = max(1, sizes.values // padded)
    programs = max(1, -(-batch // rows))  # of no images one, for the loss
    partial = gradient.new_empty(programs, dtype=torch.float32)
    launch(
        _cross_entropy_kernel,
        (programs,),
        *(logits.contiguous(), labels, position, indices, loss, correct, gradient, losses, partial),
        *(batch, classes, smoothing, scale),
        ROWS=rows,
        CLASSES=padded,
        PARTIALS=32 * sizes.warps,
        num_warps=sizes.warps,
    )
