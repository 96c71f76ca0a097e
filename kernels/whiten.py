"""A whitened image's activations: a convolution of few channels without padding, bias (optional) and activation, fused.

Roofline. n pixels out of O outputs each, from images of C channels by k x k filters: reads the images once (their
pixels again from the caches), writes O n values and a border's. SpeedrunNet, batch 512, half precision: [512, 3, 32,
32] to [512, 24, 31, 31] with a border, 3 MB and 25 MB: 7 microseconds at 4.3 TB/s. The convolution is 142 million
multiply-adds, 0.4 microseconds at 790 TFLOP/s. But GELU is 15 instructions a value, as compiled, 5.5 million of a warp,
and all else 3.4 million, most of it to gather the patches and to lay out the result: 132 multiprocessors issue them in
10 microseconds at 1.75 GHz. They bind, the bytes nearly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastcifar.kernels.cpp import use_cpp
from fastcifar.kernels.launch import use_triton
from fastcifar.kernels.norm_act_pool.cpp import SOURCE, cpp_inference
from fastcifar.kernels.norm_act_pool.native import activate, clear_border, inside
from fastcifar.kernels.norm_act_pool.reference import with_border
from fastcifar.kernels.operators import needs_plain_torch, operator, wants_gradient

ACTIVATIONS = ("gelu", "silu", "relu")
_MOST_TAPS, _MOST_OUTPUTS = 32, 64
"""Taps of a filter, and filters, that the kernel takes at most: 3x3 pixels of 3 channels, and twice as many filters.
More would not fit into registers, and torch's convolutions are not slow there."""

# ---------------------------------------------------------------------------------------------------------- reference


def whiten_reference(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu", border: bool = False
) -> Tensor:
    """Compute `whiten` in plain torch: its specification."""
    return with_border(getattr(functional, activation)(_convolved(images, weight, bias)), border)


def _convolved(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv2d(images, weight, None if bias is None else bias.to(images.dtype))


# ----------------------------------------------------------------------------------------------------------- operator


def _whiten(images: Tensor, weight: Tensor, bias: Tensor | None, activation: str, border: bool) -> Tensor:
    small = weight[0].numel() <= _MOST_TAPS and len(weight) <= _MOST_OUTPUTS
    if small and use_triton(images):
        from fastcifar.kernels.whiten_triton import whiten_triton

        out = _whiten_fake(images, weight, bias, activation, border)
        whiten_triton(images, weight, bias, activation, out, border)
        return out
    convolved = _convolved(images, weight, bias)
    if use_cpp(SOURCE, images):
        zeros, ones = (convolved.new_full((len(weight),), value, dtype=torch.float32) for value in (0.0, 1.0))
        return cpp_inference(convolved, zeros, ones, zeros, None, activation, 1.0, False, 0.0, None, border)
    out = _whiten_fake(images, weight, bias, activation, border)
    activate(convolved, activation, 1.0, inside(out, border))
    if border:
        clear_border(out)
    return out


def _whiten_fake(images, weight, bias, activation, border) -> Tensor:
    height, width = (size - weight.shape[2] + 1 + int(border) for size in images.shape[2:])
    shape = (images.shape[0], weight.shape[0], height, width)
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


def _products(images, weight, bias, activation, border) -> list[tuple[int, int]]:
    """Return multiply-adds and bytes of the one launch."""
    out = _whiten_fake(images, weight, bias, activation, border)
    tensors = [tensor for tensor in (images, weight, bias, out) if tensor is not None]
    macs = inside(out, border).numel() * weight[0].numel()
    return [(macs, sum(tensor.numel() * tensor.element_size() for tensor in tensors))]


operator("whiten", _whiten, _whiten_fake, products=_products)


def whiten(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu", border: bool = False
) -> Tensor:
    """Return `activation(conv2d(images, weight, bias))`, without padding and gradient: [N, O, H - k + 1, W - k + 1] in
    the images' dtype, channels-last. Meant for few channels, where torch's convolutions are slow.

    images: [N, C, H, W], channels-last (else they are copied), float32, float16, bfloat16 or float64.
    weight: [O, C, k, k], likewise.
    bias: [O], float32 (float64 for float64 images), rounded to the images' dtype, or in it.
    activation: gelu (exact), silu or relu.
    border: put a row of zeros above each image of the result and a column of zeros to its left, [N, O, H - k + 2,
        W - k + 2], as `norm_act_pool` does.

    The reference rounds the convolution to the images' dtype before the activation; the kernel keeps it in float32, and
    its GELU is exact to 1e-7. So they differ by a rounding of the convolution, and one of the result.

    Raises ValueError for shapes or dtypes that do not fit, an unknown activation, and if a gradient is wanted.
    """
    fits = images.ndim == 4 and images.is_floating_point() and 0 not in images.shape[1:]
    if not fits:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; allowed: floating [N, C, H, W] with pixels")
    channels, *sides = images.shape[1:]
    fits = weight.ndim == 4 and weight.dtype == images.dtype and 0 not in weight.shape and weight.shape[1] == channels
    if not fits or not weight.shape[2] == weight.shape[3] <= min(sides):
        raise ValueError(
            f"weight is {weight.dtype} {list(weight.shape)}; allowed: {images.dtype} [O, {channels}, k, k] with k "
            f"up to {min(sides)}, as images"
        )
    wide = torch.promote_types(images.dtype, torch.float32)
    if bias is not None and (bias.dtype not in (wide, images.dtype) or bias.shape != weight.shape[:1]):
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; allowed: {wide} [{len(weight)}]")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if needs_plain_torch():
        return whiten_reference(images, weight, bias, activation, border)
    if wants_gradient(images, weight, bias):
        raise ValueError("images, weight or bias want a gradient; allowed: none, or torch.no_grad()")
    return torch.ops.fastcifar.whiten(images, weight, bias, activation, border)
