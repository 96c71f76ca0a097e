"""3x3 convolution that on a CPU becomes a matrix product where oneDNN's own convolution is slow: on small images."""

from __future__ import annotations

import torch
from torch import nn

# On images of 4x4 pixels oneDNN's bfloat16 weight gradient of 512 to 512 channels runs at an eighth of the rate of a
# matrix product, and its forward pass at half; from 8x8 pixels on, gathering the patches costs more than it saves.
_MOST_PIXELS = 16


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, padding 1, stride 1, without bias: `[N, C, H, W]` to `[N, out, H, W]`, channels-last.

    Training on a CPU with images of at most 16 pixels it gathers the patches once, for the forward pass and for the
    weight gradient, and multiplies matrices; everywhere else it is torch's convolution. The two agree to rounding.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__(before, width, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.shape[2] * x.shape[3] <= _MOST_PIXELS:
            return _MatmulConvolution.apply(x, self.weight)
        return super().forward(x)


class _MatmulConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        images, _, height, width = x.shape
        patches = gather_patches(x)
        ctx.save_for_backward(x, weight, patches)
        out = patches @ weight.permute(0, 2, 3, 1).reshape(len(weight), -1).T
        return out.view(images, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight, patches = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=1)
        if ctx.needs_input_grad[1]:
            rows = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
            grad_weight = (rows.T @ patches).view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        return grad_x, grad_weight


def gather_patches(x: torch.Tensor) -> torch.Tensor:
    """The zero-padded 3x3 neighbourhood of every pixel: `[N, C, H, W]` to `[N * H * W, 9 * C]`, in the order (row,
    column, channel)."""
    images, channels, height, width = x.shape
    padded = x.new_zeros(images, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    image, row, column, _ = padded.stride()
    # Three neighbouring pixels of a row lie side by side: 3 * C values in one piece.
    windows = padded.as_strided((images, height, width, 3, 3 * channels), (image, row, column, row, 1))
    return windows.reshape(images * height * width, 9 * channels)
