"""A 3x3 convolution by kernels of its own on a CPU, where there are some, and of small images laid side by side where
there are none, since oneDNN's work along rows of pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.kernels import conv3x3, conv_pool, wants_gradient
from fastcifar.kernels.conv3x3 import has_kernel
from fastcifar.kernels.conv_pool import has_kernel as pools_at_once
from fastcifar.kernels.operators import autocast_dtype, needs_plain_torch

# oneDNN takes 16 to 64 neighboring pixels of a row at a time, and computes with zeros where the image is narrower.
# Forward pass and both gradients on one core with AMX, seconds with strips / without: 512 images in bfloat16 at 8x8
# (256 to 512 channels) 0.63, at 7x7 (256 to 256) 0.65, at 4x4 (512 to 512) 0.30, at 3x3 (256 to 256) 0.32. At 11x11 the
# copies cost as much as they save. Without AMX (Zen 4, AVX512-BF16) a pass takes 1.23 times as long with strips at 7x7,
# 1.3 times at 6x6 and 1.45 times at 3x3.
_WIDEST = 8 if torch.cpu._is_amx_tile_supported() else 0
_STRIP = 64


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, padding 1, without bias: `[N, C, H, W]` to `[N, out, H, W]`, or with a `stride` to every
    stride-th row and column of that, channels-last.

    `bordered` input is `[N, C, H + 1, W + 1]`, with a row of zeros above and a column of zeros to the left: the result
    is then `[N, out, H - 1, W - 1]`, without the last row and column. Where H and W are odd, a 2x2 pool reads no more.

    On a CPU it is `conv3x3` where that has a kernel. Without one, images up to 8 pixels wide in half precision, where
    it has AMX, are convolved as strips of several, unless there is a stride; all others by torch's convolution, and all
    where plain torch is needed (`needs_plain_torch`). All agree to rounding.

    With `pool` the result is max-pooled 2x2, in one pass with the convolution, where `pools(x)`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=False)

    def pools(self, x: torch.Tensor) -> bool:
        """Return True if `forward` may be asked to pool: where `conv_pool` has a kernel for x, which needs no gradient,
        without a stride, outside of autocast and torch.compile, and where plain torch need not be."""
        kind = x.device.type
        if self.stride != (1, 1) or kind == "meta" or x.dtype != self.weight.dtype or torch.compiler.is_compiling():
            return False
        plain = autocast_dtype(kind) is not None or needs_plain_torch()
        return not (plain or wants_gradient(x)) and pools_at_once(x, self.weight)

    def forward(self, x: torch.Tensor, bordered: bool = False, pool: bool = False) -> torch.Tensor:
        if pool:
            return conv_pool(x, self.weight, bordered)
        padding, stride = 0 if bordered else 1, self.stride[0]
        if x.device.type == "cpu" and not needs_plain_torch():
            # torch.compile can't follow how a kernel is chosen.
            if not torch.compiler.is_compiling() and has_kernel(x, self.weight, stride):
                return conv3x3(x, self.weight, padding=padding, border=bordered, stride=stride)
            if stride == 1 and x.element_size() == 2 and x.shape[3] <= _WIDEST:
                return strip_convolution(x, self.weight, bordered)
        return F.conv2d(x, self.weight, stride=stride, padding=padding)


def strip_convolution(x: torch.Tensor, weight: torch.Tensor, bordered: bool = False) -> torch.Tensor:
    """Return `conv2d(x, weight, padding=1)`, or `conv2d(x, weight)` of `bordered` images, by way of strips, with
    derivatives of any order; filters are `[out, C, 3, 3]`."""
    if not bordered:
        return _Apart.apply(F.conv2d(_SideBySide.apply(x, 0, 1), weight, padding=1), x.shape, 0, 1)
    # Each image begins with zeros. What comes of its first and last column is another image's, and no result.
    images, channels, height, width = x.shape
    strips = F.conv2d(_SideBySide.apply(x, 0, 0), weight, padding=(0, 1))
    return _Apart.apply(strips, (images, channels, height - 2, width - 2), 1, 1)


class _SideBySide(torch.autograd.Function):
    """`side_by_side(x, before, after)`, whose gradient is taken apart: nothing is learned of the zeros."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, before: int, after: int) -> torch.Tensor:
        ctx.place = (x.shape, before, after)
        return side_by_side(x, before, after)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return (_apart if needs_plain_torch() else _Apart.apply)(grad, *ctx.place), None, None


class _Apart(torch.autograd.Function):
    """`_apart(strips, shape, before, after)`, whose gradient is laid side by side: zeros for what the strips hold
    between images, which is left out."""

    @staticmethod
    def forward(ctx, strips: torch.Tensor, shape: tuple[int, ...], before: int, after: int) -> torch.Tensor:
        ctx.place = (before, after)
        return _apart(strips, shape, before, after)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return (side_by_side if needs_plain_torch() else _SideBySide.apply)(grad, *ctx.place), None, None, None


def side_by_side(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Return images `[N, C, H, W]` as strips `[ceil(N / k), C, H, k * (before + W + after)]`: k images side by side,
    `before` columns of zeros before and `after` after each. The last strip is filled up with zeros."""
    images, channels, height, width = x.shape
    pitch = before + width + after
    per_strip = _STRIP // pitch
    # Of a number of images that is not known, torch.compile has no divmod and steps out; inductor would fail below.
    whole, rest = divmod(images, per_strip)
    x = x.permute(0, 2, 3, 1)
    strips = x.new_empty(whole + (rest > 0), height, per_strip, pitch, channels)
    inside = strips.narrow(3, before, width)
    strips[:, :, :, :before] = 0
    strips[:, :, :, before + width :] = 0
    inside[:whole] = x[: whole * per_strip].view(whole, per_strip, height, width, channels).transpose(1, 2)
    if rest:
        inside[whole, :, :rest] = x[whole * per_strip :].transpose(0, 1)
        strips[whole, :, rest:] = 0
    return strips.view(len(strips), height, per_strip * pitch, channels).permute(0, 3, 1, 2)


def _apart(strips: torch.Tensor, shape: tuple[int, ...], before: int, after: int) -> torch.Tensor:
    """Undo `side_by_side`: return images of `shape`, but with the strips' number of channels."""
    images, _, height, width = shape
    pitch = before + width + after
    per_strip = _STRIP // pitch
    count, channels = strips.shape[:2]
    apart = strips.permute(0, 2, 3, 1).view(count, height, per_strip, pitch, channels).narrow(3, before, width)
    apart = apart.transpose(1, 2).reshape(count * per_strip, height, width, channels)
    return apart[:images].contiguous().permute(0, 3, 1, 2)
