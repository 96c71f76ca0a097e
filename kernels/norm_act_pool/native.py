"""`norm_act_pool` and its gradient in torch's native operations, group by group: the path of CPUs
without C++ kernels.

It differs from `norm_act_pool_reference`, the specification, for speed and memory alone. Ghost batch norm as native
batch norms on contiguous slices works in the input's dtype with float32 statistics, and the few megabytes of a group
stay in the cache from one operation to the next, each writing straight into its part of the result. The gradient needs
the (pooled) input, one byte of argmax where torch keeps eight, and, for activations whose slope can be told from their
result, that result, which the next layer keeps anyway. The gradient of max-pool is made by integer masks: torch's
scatter needs those eight bytes. In half precision every stage rounds its result, as separate torch layers would.

Inside, images are [N, C, H, W] with channels-last strides. Where CUDA has no Triton, the same code serves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcifar.kernels.norm_act_pool.reference import unbiased

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_POOL_VALUES = 1 << 18
"""Input values that max-pool takes at a time, so that its 8-byte indices stay in the cache."""

aten = torch.ops.aten


def dense(*tensors: Tensor | None) -> list[Any]:
    """Return each without gaps, images channels-last: as kernels read them, by pointer (torch's batch norm too)."""
    return [
        t if t is None else t.contiguous(memory_format=torch.channels_last if t.ndim == 4 else torch.contiguous_format)
        for t in tensors
    ]


def empty_images(like: Tensor, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return unwritten channels-last images, as many and with as many channels as `like`; its dtype unless given."""
    shape = (*like.shape[:2], height, width)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def out_size(x: Tensor, pool: bool) -> tuple[int, int]:
    """Return height and width of the output."""
    height, width = x.shape[2:]
    return (height // 2, width // 2) if pool else (height, width)


def empty_out(x: Tensor, pool: bool, border: bool) -> Tensor:
    """Return the unwritten output for x."""
    height, width = out_size(x, pool)
    return empty_images(x, height + int(border), width + int(border))


def inside(images: Tensor, border: bool) -> Tensor:
    """Return the images without their border, if they have one: a view."""
    return images[:, :, 1:, 1:] if border else images


def clear_border(images: Tensor) -> None:
    """Write the zeros above and to the left."""
    images[:, :, 0] = 0
    images[:, :, 1:, 0] = 0


def empty_pooled(x: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
    """Return unwritten pooled images and argmax bytes for x; both empty without `pool`."""
    if not pool:
        return x.new_empty(0), x.new_empty(0, dtype=torch.uint8)
    return empty_images(x, *out_size(x, pool)), empty_images(x, *out_size(x, pool), torch.uint8)


def _parts(images: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, images)) for start in range(0, images, step)]


def _max_pool(x: Tensor, pooled: Tensor, argmax: Tensor | None) -> None:
    """Write the 2x2 max-pool of x to `pooled` and each maximum's place in its window (0 to 3, row-major; of equals the
    first) to `argmax`."""
    height, width = x.shape[2:]
    # torch's index is the place in the image; in one byte its distance from the window's first pixel: 0, 1, W or W + 1.
    narrow = torch.uint8 if width < 255 else torch.int64
    rows, columns = (torch.arange(0, size - 1, 2, device=x.device) for size in (height, width))
    corners = (rows[:, None] * width + columns).to(narrow)[:, :, None].expand(-1, -1, x.shape[1]).contiguous()
    corners = corners.permute(2, 0, 1)
    step = max(1, _POOL_VALUES // x[0].numel())
    indices = torch.empty_like(pooled[:step], dtype=torch.int64)
    for part in _parts(len(x), step):
        found = indices[: part.stop - part.start]
        aten.max_pool2d_with_indices.out(x[part], [2, 2], out=pooled[part], indices=found)
        if argmax is not None:
            distance = found.to(narrow).sub_(corners)
            argmax[part] = distance.clamp_max(2).add_(distance).sub_(distance.clamp_max_(width))


def _unpool(gradient: Tensor, argmax: Tensor, out: Tensor) -> None:
    """Write `gradient` at the maxima and zeros elsewhere to `out` [N, C, H, W]."""
    bits = _BITS[gradient.element_size()]
    height, width = gradient.shape[2:]
    windows = out[:, :, : 2 * height, : 2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2)).view(bits)
    for part in _parts(len(out), max(1, _POOL_VALUES // out[0].numel())):
        values, place = gradient[part].view(bits), argmax[part].to(bits)
        mask = torch.empty_like(place)
        for number in range(4):
            corner = windows[part, :, :, number // 2, :, number % 2]
            torch.mul(torch.eq(place, number, out=mask), values, out=corner)
    out[:, :, 2 * height :] = 0
    out[:, :, :, 2 * width :] = 0


def activate(values: Tensor, activation: str, alpha: float, out: Tensor) -> None:
    """Write the values' activation to `out`, which may be `values`."""
    if activation == "celu":
        aten.elu.out(values, alpha, 1.0, 1 / alpha, out=out)
    elif activation == "relu":
        aten.clamp_min.out(values, 0, out=out)
    elif activation == "gelu" and values.is_contiguous() and out is not values:
        out.copy_(aten.gelu(values))  # torch 2.13 loses the result if `out` then has gaps or another order
    elif activation == "gelu":
        aten.gelu.out(values, out=out)
    elif activation == "silu":
        aten.silu.out(values, out=out)
    elif out is not values:
        out.copy_(values)


def _activate_and_add(values: Tensor, activation: str, alpha: float, residual: Tensor | None, out: Tensor) -> None:
    """Write the values' activation plus `residual`, with `sum_relu` the ReLU of that sum, to `out`."""
    if activation != "sum_relu":
        activate(values, activation, alpha, out)
    if residual is not None:
        torch.add(values if activation == "sum_relu" else out, residual, out=out)
    if activation == "sum_relu":
        activate(values if residual is None else out, "relu", alpha, out)


def _slope(gradient: Tensor, values: Tensor, activation: str, alpha: float, is_result: bool, out: Tensor) -> Tensor:
    """Return `gradient` times the activation's slope, given its input or, for CELU and ReLU, its result."""
    if activation == "celu":
        return aten.elu_backward.grad_input(gradient, alpha, 1.0, 1 / alpha, is_result, values, grad_input=out)
    if activation == "relu":
        return aten.threshold_backward.grad_input(gradient, values, 0, grad_input=out)
    if activation == "gelu":
        return aten.gelu_backward.grad_input(gradient, values, grad_input=out)
    return aten.silu_backward.grad_input(gradient, values, grad_input=out)


def native_forward(
    x: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    groups: int,
    activation: str,
    alpha: float,
    pool: bool,
    eps: float,
    residual: Tensor | None,
    border: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `(out, mean [groups, C], var, pooled, argmax)`; the last two are empty without `pool`."""
    x, bias, scale = dense(x, bias, scale)
    pooled, argmax = empty_pooled(x, pool)
    inputs = pooled if pool else x
    out = empty_out(x, pool, border)
    pixels = inside(out, border)
    # torch's batch norm writes dense images alone; the activation then goes from these into the border's inside.
    normal = torch.empty_like(inputs[: len(x) // groups]) if border else None
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, deviation = (x.new_empty((groups, x.shape[1]), dtype=wide) for _ in range(2))
    scale = torch.ones_like(bias) if scale is None else scale
    for group, part in enumerate(_parts(len(x), len(x) // groups)):
        if pool:
            _max_pool(x[part], pooled[part], argmax[part])
        images = pixels[part]
        values = images if normal is None else normal
        aten.native_batch_norm.out(
            *(inputs[part], scale, bias, None, None, True, 0.0, eps),
            out=values,
            save_mean=mean[group],
            save_invstd=deviation[group],
        )
        _activate_and_add(values, activation, alpha, None if residual is None else residual[part], images)
    if border:
        clear_border(out)
    var = deviation.pow_(-2).sub_(eps).clamp_(min=0)
    move_running(running_mean, running_var, mean, var, inputs.numel(), momentum)
    return out, mean, var, pooled, argmax


def move_running(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, values: int, momentum: float
) -> None:
    """Move the running statistics, if any, towards those of the groups: of `values` values in all."""
    if running_mean is not None and running_var is not None:
        count = values // mean.numel()
        mean, var = (statistic[0] if len(statistic) == 1 else statistic.mean(0) for statistic in (mean, var))
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * unbiased(count), momentum)


def native_inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    activation: str,
    alpha: float,
    pool: bool,
    eps: float,
    residual: Tensor | None,
    border: bool,
) -> Tensor:
    """Return the output, normalized by given statistics [C]."""
    x, mean, var, bias, scale = dense(x, mean, var, bias, scale)
    out = empty_out(x, pool, border)
    pixels = inside(out, border)
    scale = torch.ones_like(bias) if scale is None else scale
    saved = [mean.new_empty(0) for _ in range(2)]
    for part in _parts(len(x), max(1, 4 * _POOL_VALUES // x[0].numel())):
        inputs = x[part]
        if pool:
            inputs = empty_images(inputs, *out_size(x, pool))
            _max_pool(x[part], inputs, None)
        images = pixels[part]
        values = torch.empty_like(inputs) if border else images
        aten.native_batch_norm.out(
            *(inputs, scale, bias, mean, var, False, 0.0, eps), out=values, save_mean=saved[0], save_invstd=saved[1]
        )
        _activate_and_add(values, activation, alpha, None if residual is None else residual[part], images)
    if border:
        clear_border(out)
    return out


def native_backward(
    gradient: Tensor,
    inputs: Tensor,
    argmax: Tensor | None,
    result: Tensor | None,
    masked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    activation: str,
    alpha: float,
    eps: float,
    x_gradient: Tensor,
    border: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of bias and scale [C], and write that of x to `x_gradient` [N, C, H, W].

    gradient: of the output, whose border, if it has one, is not read.
    inputs: the tensor that was normalized: x, or the pooled x.
    result: the activation's, or None.
    masked: with `sum_relu` the gradient of the residual, which is written, else None.
    """
    groups = len(mean)
    gradient, bias, scale = dense(gradient, bias, scale)
    gradient, result = inside(gradient, border), None if result is None else inside(result, border)
    if masked is not None and result is not None:
        gradient = aten.threshold_backward.grad_input(gradient, result, 0, grad_input=masked)
        activation, border = "none", False
    scale = torch.ones_like(bias) if scale is None else scale
    deviation = torch.rsqrt(var + eps)
    sums = torch.zeros_like(bias), torch.zeros_like(bias)
    slopes = torch.empty_like(inputs[: len(inputs) // groups])
    for group, part in enumerate(_parts(len(inputs), len(inputs) // groups)):
        slope = gradient[part]
        if activation != "none":
            values = None if result is None else result[part]
            if values is None:
                values = aten.native_batch_norm(inputs[part], scale, bias, mean[group], var[group], False, 0.0, eps)[0]
            slope = _slope(slope, values, activation, alpha, result is not None, slopes)
        elif border:
            slope = slopes.copy_(slope)  # torch's batch norm reads dense images
        normal, scale_sum, bias_sum = aten.native_batch_norm_backward(
            *(slope, inputs[part], scale, None, None, mean[group], deviation[group], True, eps, [True, True, True])
        )
        sums[0].add_(bias_sum)
        sums[1].add_(scale_sum)
        if argmax is None:
            x_gradient[part] = normal
        else:
            _unpool(normal, argmax[part], x_gradient[part])
    return sums
