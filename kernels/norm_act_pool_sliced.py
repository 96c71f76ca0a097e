"""`norm_act_pool` and its gradient in plain torch, a slice of images at a time: the CPU's fast path.

It differs from `norm_act_pool_reference`, the specification, for speed alone. On a CPU the tensors of a training batch are
30 to 130 MB, and what costs is passing over them in main memory, so every slice goes through all its operations while it
lies in the L2 cache. It also avoids what torch does slowly there: `expm1` (CELU), float comparisons that give booleans,
`where`, the scatter behind the gradient of max-pool, vectors broadcast over a short last dimension, and fresh large
temporaries. Where CUDA has no Triton, and for float64, the same code serves, with whole groups as slices.

Layout inside: [N, H, W, C] contiguous, and for the arithmetic [rows, W * C], vectors over C being repeated W times.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

_SLICE_ELEMENTS = 1 << 16
"""Elements of a slice per thread: each of three float32 work buffers is then 256 KB of a core's L2 cache."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

ARGMAX_BITS = "0, 1: top left and right of the window; 2, 3: bottom left and right"


def _slices(images: int, pixels: int, groups: int, device: torch.device) -> Iterator[list[tuple[int, int]]]:
    """The slices of every group as `(first, last + 1)` image, for images of `pixels` values each."""
    per_group = images // groups
    step = per_group
    if device.type == "cpu":
        step = min(per_group, max(1, _SLICE_ELEMENTS * torch.get_num_threads() // pixels))
    for first in range(0, images, per_group):
        stop = first + per_group
        yield [(start, min(start + step, stop)) for start in range(first, stop, step)]


def _windows(values: Tensor) -> list[Tensor]:
    """The four corners of the 2x2 windows of [N, H, W, C], each a view [N, H // 2, W // 2, C], in row-major order."""
    height, width = values.shape[1] // 2, values.shape[2] // 2
    split = values[:, : 2 * height, : 2 * width].unflatten(2, (width, 2)).unflatten(1, (height, 2))
    return [split[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]


def _max_pool(values: Tensor, pooled: Tensor, argmax: Tensor | None) -> None:
    """2x2 max-pool of [N, H, W, C] into `pooled` and, unless None, the place of the first maximum into `argmax`.

    The place is found by comparing bit patterns as integers: the maximum is one of the four, and integer comparisons are
    ten times faster here. (Only a tie between 0.0 and -0.0 can so be given to a later one.)
    """
    corners = _windows(values)
    bottom = torch.maximum(corners[2], corners[3])
    torch.maximum(torch.maximum(corners[0], corners[1], out=pooled), bottom, out=pooled)
    if argmax is None:
        return
    bits = _BITS[values.element_size()]
    best = pooled.view(bits)
    place = torch.ne(corners[0].view(bits), best, out=bottom.view(bits))  # 1 where the maximum is not the first
    after = place.clone()
    for corner in corners[1:3]:
        after.bitwise_and_(torch.ne(corner.view(bits), best, out=torch.empty_like(after)))
        place.add_(after)
    argmax.copy_(place)


def _unpool(gradient: Tensor, argmax: Tensor, out: Tensor) -> None:
    """The gradient [N, H // 2, W // 2, C] at the maxima, zeros elsewhere, into `out` [N, H, W, C]."""
    bits = _BITS[gradient.element_size()]
    place, mask = argmax.to(bits), torch.empty_like(gradient, dtype=bits)
    for number, corner in enumerate(_windows(out)):
        torch.mul(torch.eq(place, number, out=mask), gradient.view(bits), out=corner.view(bits))
    out[:, gradient.shape[1] * 2 :] = 0
    out[:, :, gradient.shape[2] * 2 :] = 0


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but the last dimension of [M, H, W, C], in float32 (float64 for float64)."""
    wide = torch.promote_types(values.dtype, torch.float32)
    if values.is_cuda:
        var, mean = torch.var_mean(values.to(wide), dim=(0, 1, 2), correction=0)
        return mean, var
    zeros = torch.zeros(values.shape[3], dtype=wide)
    return torch.batch_norm_update_stats(values.permute(0, 3, 1, 2), zeros, torch.ones_like(zeros), 0.0)


class _Affine:
    """`shift + factor * value` over rows of W * C values, `shift` and `factor` being given over C."""

    def __init__(self, shift: Tensor, factor: Tensor, width: int) -> None:
        self.shift, self.factor = shift.repeat(width), factor.repeat(width)

    def __call__(self, values: Tensor, out: Tensor) -> Tensor:
        return torch.addcmul(self.shift, values, self.factor, out=out)


class _NormAct:
    """Normalisation by given statistics [C] and the activation, on float32 rows [rows, W * C]."""

    def __init__(self, mean, var, bias, scale, activation: str, alpha: float, eps: float, width: int) -> None:
        factor = torch.rsqrt(var + eps)
        factor = factor if scale is None else factor * scale
        shift = bias - mean * factor
        self.activation, self.alpha = activation, alpha
        if activation == "celu":
            # max(y, 0) - alpha + alpha * exp(min(y, 0) / alpha): the constants go into two affine maps.
            self.affine = _Affine(shift - alpha, factor, width)
            self.exponent = _Affine(shift / alpha, factor / alpha, width)
        else:
            self.affine = _Affine(shift, factor, width)

    def forward(self, values: Tensor, out: Tensor, work: Tensor) -> Tensor:
        self.affine(values, out)
        if self.activation == "celu":
            exponentials = self.exponent(values, work).clamp_max_(0).exp_()
            out.clamp_min_(-self.alpha).add_(exponentials, alpha=self.alpha)
        elif self.activation == "relu":
            out.relu_()
        elif self.activation == "gelu":
            torch.ops.aten.gelu_(out)
        elif self.activation == "silu":
            functional.silu(out, inplace=True)
        return out

    def backward(self, gradient: Tensor, values: Tensor, work: Tensor) -> Tensor:
        """`gradient`, multiplied in place by the activation's slope at the normalised `values`."""
        if self.activation == "none":
            return gradient
        if self.activation == "celu":
            return gradient.mul_(self.exponent(values, work).clamp_max_(0).exp_())
        inputs = self.affine(values, work)
        if self.activation == "relu":
            return torch.ops.aten.threshold_backward.grad_input(gradient, inputs, 0, grad_input=gradient)
        if self.activation == "gelu":
            return torch.ops.aten.gelu_backward.grad_input(gradient, inputs, grad_input=gradient)
        return torch.ops.aten.silu_backward.grad_input(gradient, inputs, grad_input=gradient)


def _buffers(count: int, slices: list[tuple[int, int]], shape: torch.Size, dtype: torch.dtype, device) -> list[Tensor]:
    rows = (slices[0][1] - slices[0][0]) * shape[1]
    return [torch.empty((rows, shape[2] * shape[3]), dtype=dtype, device=device) for _ in range(count)]


def sliced_forward(
    x: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    groups: int,
    activation: str,
    alpha: float,
    pool: bool,
    eps: float,
    residual: Tensor | None,
    given: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`(out, mean [groups, C], var, pooled, argmax)`, images as [N, H, W, C]; the last two are empty without `pool`.

    `given`: mean and variance [C] to use in place of the batch's own, for inference; then there is no argmax either.
    """
    x = x.permute(0, 2, 3, 1).contiguous()
    residual = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    images, height, width, channels = x.shape
    if pool:
        height, width = height // 2, width // 2
    shape = torch.Size((images, height, width, channels))
    wide = torch.promote_types(x.dtype, torch.float32)
    pooled = x.new_empty(shape if pool else 0)
    argmax = x.new_empty(shape if pool and given is None else 0, dtype=torch.uint8)
    out = x.new_empty(shape)
    mean, var = (x.new_empty((groups, channels), dtype=wide) for _ in range(2))
    sources = pooled if pool else x
    for group, slices in enumerate(_slices(images, shape[1:].numel(), groups, x.device)):
        if pool:
            for start, stop in slices:
                _max_pool(x[start:stop], pooled[start:stop], argmax[start:stop] if given is None else None)
        mean[group], var[group] = given or _moments(sources[slices[0][0] : slices[-1][1]])
        norm = _NormAct(mean[group], var[group], bias, scale, activation, alpha, eps, width)
        buffers = _buffers(3, slices, shape, wide, x.device)
        for start, stop in slices:
            values, result, work = (buffer[: (stop - start) * height] for buffer in buffers)
            values.view(-1).copy_(sources[start:stop].view(-1))
            norm.forward(values, result, work)
            if residual is not None:
                result.view(-1).add_(residual[start:stop].view(-1))
            out[start:stop].view(-1).copy_(result.view(-1))
    return out, mean, var, pooled, argmax


def sliced_backward(
    gradient: Tensor,
    inputs: Tensor,
    argmax: Tensor | None,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    activation: str,
    alpha: float,
    eps: float,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of bias and scale [C]; that of x is written into `out` [N, H, W, C].

    gradient, inputs: of the operation's output, and what was normalised (x, or the pooled x), both [N, H', W', C].
    """
    images, height, width, channels = inputs.shape
    groups = len(mean)
    count = images // groups * height * width
    wide = mean.dtype
    bias_gradient, scale_gradient = (torch.zeros_like(bias, dtype=wide) for _ in range(2))
    for group, slices in enumerate(_slices(images, inputs.shape[1:].numel(), groups, inputs.device)):
        first = slices[0][0]
        norm = _NormAct(mean[group], var[group], bias, scale, activation, alpha, eps, width)
        values_buffer, work_buffer = _buffers(2, slices, inputs.shape, wide, inputs.device)
        slopes = inputs.new_empty((images // groups * height, width * channels), dtype=wide)
        sums, products = (slopes.new_zeros(width * channels) for _ in range(2))
        for start, stop in slices:
            values, work = (buffer[: (stop - start) * height] for buffer in (values_buffer, work_buffer))
            values.view(-1).copy_(inputs[start:stop].view(-1))
            slope = slopes[(start - first) * height : (stop - first) * height]
            slope.view(-1).copy_(gradient[start:stop].view(-1))
            norm.backward(slope, values, work)
            sums += slope.sum(0)
            products += torch.mul(slope, values, out=work).sum(0)
        deviation = torch.rsqrt(var[group] + eps)
        total = sums.view(width, channels).sum(0)
        # The sum of slope * normalised value, from that of slope * value.
        correlation = (products.view(width, channels).sum(0) - mean[group] * total) * deviation
        bias_gradient += total
        scale_gradient += correlation
        # d/dvalue = factor * (slope - total / count - normalised * correlation / count), an affine map of value.
        factor = deviation if scale is None else deviation * scale
        tilt = -factor * deviation * correlation / count
        rest = _Affine(-factor * total / count - tilt * mean[group], tilt, width)
        factor = factor.repeat(width)
        for start, stop in slices:
            values, work = (buffer[: (stop - start) * height] for buffer in (values_buffer, work_buffer))
            values.view(-1).copy_(inputs[start:stop].view(-1))
            rest(values, work).addcmul_(slopes[(start - first) * height : (stop - first) * height], factor)
            if argmax is None:
                out[start:stop].view(-1).copy_(work.view(-1))
            else:
                narrow = work.to(out.dtype).view(inputs[start:stop].shape)
                _unpool(narrow, argmax[start:stop], out[start:stop])
    return bias_gradient, scale_gradient
