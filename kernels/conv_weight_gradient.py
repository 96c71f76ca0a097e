"""The gradient of a 3x3 convolution's filters on CPUs: in bfloat16 with AVX512-BF16, and in float32 without a stride by
winograd.py; elsewhere torch's.

Method in bfloat16 (conv_weight_gradient.cpp). For each of the nine places (taps) of a filter the gradient is a product
of x, shifted, with the gradient of the output, summed over all pixels of all images. AVX512-BF16 multiplies pairs of
bfloat16 and adds both products to a float32. The pairs are two *images'* values of one pixel, so that one packed copy
does for every shift: a chunk of some 256 pixels of a pair, x in panels of 6 channels and the gradient in panels of 64.
A tile of 6 x 64 float32 sums stays in registers through a chunk: for each pixel 4 loads, 6 broadcasts and 24 multiply
instructions. Of 32 outputs a tile is 8 x 32, of 16 it is 16 x 16. Pixels whose neighbor is padding, or the zero border
of x, are left out. Packing is 1% to 5% of the time, with so few outputs more.

Sums are float32 over all images, in an order that does not depend on the number of threads (each has tiles of its
own), and are rounded once.

Taken where `python -m bench.weight_gradients` found it faster than torch's, which is at every shape that it computes:
1.25 to 2.1 times on Zen 4, at 86% of the peak and more; 1.15 times at 16 channels to 16, 1.3 at 32 to 32; 3.8 to 4.1
times with stride 2 at 16 to 32, 32 to 64 and 64 to 128 (`--batch 128`). An image's 3 channels to 16 stay with torch
(0.6). Not where the CPU has AMX, whose products are four times as fast and torch's: there it is unmeasured
(`FASTCIFAR_KERNELS=cpp` forces it).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fastcifar.kernels import winograd
from fastcifar.kernels.cpp import call, use_cpp
from fastcifar.kernels.launch import forced_path
from fastcifar.kernels.operators import operator, refuse_gradients

SOURCE = "conv_weight_gradient.cpp"
_WIDE, _NARROW = 64, (16, 32)
"""Output channels of a panel, and of the narrower panels that are all there is."""


def conv_weight_gradient_reference(x: Tensor, gradient: Tensor, padding: int, border: bool, stride: int = 1) -> Tensor:
    """The specification of `conv_weight_gradient`: torch's own."""
    if border:
        x = x.clone()
        x[:, :, 0] = x[:, :, :, 0] = 0
    weight, mask = _empty(x, gradient, padding, border, stride), [False, True, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1, mask
    )[1]


def has_instructions() -> bool:
    """Return True if the kernel is for this CPU, and not slower than torch's there, unless it is forced."""
    return _has_instructions(forced_path() == "cpp")


@functools.cache
def _has_instructions(forced: bool) -> bool:
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # by `ATEN_CPU_CAPABILITY`, whatever the CPU has
        return False
    return torch.cpu._is_avx512_bf16_supported() and (forced or not torch.cpu._is_amx_tile_supported())


def has_kernel(x: Tensor, outputs: int, stride: int = 1) -> bool:
    """Return True if `conv_weight_gradient` of x, and of a gradient with so many `outputs`, takes a C++ kernel."""
    if x.dtype == torch.float32:
        return stride == 1 and winograd.has_kernel(x, outputs)
    panels = outputs % _WIDE == 0 or (outputs in _NARROW and x.shape[1] >= min(_NARROW))
    return x.dtype == torch.bfloat16 and panels and x.numel() > 0 and has_instructions() and use_cpp(SOURCE, x)


def _conv_weight_gradient(x: Tensor, gradient: Tensor, padding: int, border: bool, stride: int) -> Tensor:
    if gradient.dtype != x.dtype or not gradient.numel() or not has_kernel(x, gradient.shape[1], stride):
        return conv_weight_gradient_reference(x, gradient, padding, border, stride)
    if x.dtype == torch.float32:
        return winograd.weight_gradient(x, gradient, padding, border)
    out = _empty(x, gradient, padding, border, stride)
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    sizes = (len(x), x.shape[1], *gradient.shape[1:], *x.shape[2:], stride, padding, border, torch.get_num_threads())
    call(SOURCE, "conv_weight_gradient", x, gradient, out, *sizes)
    return out


def _empty(x: Tensor, gradient: Tensor, padding: int, border: bool, stride: int) -> Tensor:
    return torch.empty(
        (gradient.shape[1], x.shape[1], 3, 3), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _products(x: Tensor, gradient: Tensor, padding: int, border: bool, stride: int) -> list[tuple[int, int]]:
    weight = gradient.shape[1] * x.shape[1] * 9
    size = (x.numel() + gradient.numel() + weight) * x.element_size()
    return [(len(gradient) * math.prod(gradient.shape[2:]) * weight, size)]


operator("conv_weight_gradient", _conv_weight_gradient, _empty, products=_products)


def conv_weight_gradient(x: Tensor, gradient: Tensor, *, padding: int, border: bool = False, stride: int = 1) -> Tensor:
    """Return the gradient `[outputs, C, 3, 3]`, channels-last, of the filters of `conv2d(x, filters, None, stride,
    padding)`.

    x: `[N, C, H, W]`, best channels-last.
    gradient: that of the convolution's output, `[N, outputs, (H - 3 + 2 * padding) // stride + 1, ...]`, like x.
    padding: 0 or 1.
    border: the first row and column of every image of x count as zeros, whatever they hold; their products are spared.
    stride: 1 or more.

    Raises ValueError for other shapes or another padding or stride, and for tensors that want a gradient.
    """
    refuse_gradients(x=x, gradient=gradient)
    if padding not in (0, 1) or stride < 1 or x.dim() != 4 or gradient.dim() != 4 or len(x) != len(gradient):
        raise ValueError(
            f"x is {list(x.shape)}, gradient {list(gradient.shape)}, padding {padding}, stride {stride}; allowed: two "
            "batches of as many images [N, C, H, W], padding 0 or 1, and a stride of 1 or more"
        )
    sides = [(side - 3 + 2 * padding) // stride + 1 for side in x.shape[2:]]
    if list(gradient.shape[2:]) != sides:
        raise ValueError(f"gradient is {list(gradient.shape)}; allowed: images of {sides} for x {list(x.shape)}")
    return torch.ops.fastcifar.conv_weight_gradient(x, gradient, padding, border, stride)
