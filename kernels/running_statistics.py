"""Batch norm's running statistics follow those of a batch: an operator apart, since `norm_act_pool` changes nothing.

Roofline: 8 (groups + 2) bytes a channel, some kB: a launch takes longer than its work, so it is one, where plain torch
makes five.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.kernels.launch import kernel, launch, use_triton
from fastcifar.kernels.operators import operator

_CHANNELS, _GROUPS = 32, 16
"""Of a program, and read at once: 16 programs for the widest layer of DavidNet, which has 16 groups."""

# ---------------------------------------------------------------------------------------------------------- reference


def running_statistics_reference(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, unbiased: float
) -> None:
    """The specification of `update_running_statistics`, in plain torch; `unbiased` is count / (count - 1)."""
    running_mean.lerp_(mean.mean(0), momentum)
    running_var.lerp_(var.mean(0) * unbiased, momentum)


# ------------------------------------------------------------------------------------------------------------- Triton
# ruff: noqa: F821  (`tl` is given to this module when Triton is loaded)


@kernel(do_not_specialize=["groups", "channels"])
def _running_kernel(
    running_mean_ptr,  # float32 [channels]
    running_var_ptr,  # float32 [channels]
    mean_ptr,  # float32 [groups, channels]
    var_ptr,  # float32 [groups, channels]
    groups,
    channels,
    momentum,
    unbiased,
    GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask = columns < channels
    means = tl.zeros([GROUPS, CHANNELS], tl.float32)
    variances = tl.zeros([GROUPS, CHANNELS], tl.float32)
    for first in range(0, groups, GROUPS):
        rows = first + tl.arange(0, GROUPS)
        places = rows[:, None] * channels + columns[None, :]
        real = (rows < groups)[:, None] & mask[None, :]
        means += tl.load(mean_ptr + places, real, other=0.0)
        variances += tl.load(var_ptr + places, real, other=0.0)
    mean, var = tl.sum(means, axis=0) / groups, tl.sum(variances, axis=0) / groups
    before = tl.load(running_mean_ptr + columns, mask, other=0.0)
    tl.store(running_mean_ptr + columns, before + momentum * (mean - before), mask)
    before = tl.load(running_var_ptr + columns, mask, other=0.0)
    tl.store(running_var_ptr + columns, before + momentum * (var * unbiased - before), mask)


# ----------------------------------------------------------------------------------------------------------- operator


def _update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, unbiased: float
) -> None:
    if not use_triton(running_mean):
        running_statistics_reference(running_mean, running_var, mean, var, momentum, unbiased)
        return
    groups, channels = mean.shape
    launch(
        _running_kernel,
        (-(-channels // _CHANNELS),),
        *(running_mean, running_var, mean.contiguous(), var.contiguous(), groups, channels, momentum, unbiased),
        GROUPS=_GROUPS,
        CHANNELS=_CHANNELS,
        num_warps=4,
    )


operator(
    "update_running_statistics(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
    "float momentum, float unbiased) -> ()",
    _update,
    lambda *_: None,
)


def update_running_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, *, momentum: float, count: int
) -> None:
    """Move the running statistics [C], in place, by `momentum` of the way towards those of a batch.

    mean, var: [G, C] of equal groups of `count` values a channel each, as `norm_act_pool` gives them. The groups' mean
    is taken, the variance made unbiased, count / (count - 1), as torch's batch norm does.
    Raises ValueError for tensors of other shapes.
    """
    channels = len(running_mean)
    for name, tensor, shape in (
        ("running_mean", running_mean, (channels,)),
        ("running_var", running_var, (channels,)),
        ("mean", mean, (len(mean), channels)),
        ("var", var, (len(mean), channels)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; allowed: {list(shape)}")
    torch.ops.fastcifar.update_running_statistics(
        running_mean, running_var, mean, var, momentum, count / max(count - 1, 1)
    )
