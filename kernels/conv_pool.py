"""3x3 convolution of few channels and 2x2 max-pool, fused, with the gradient of the filters.

For a first block, whose images need no gradient: whitened ones. The convolution's full-size result is never written,
nor is its gradient, three quarters of which are zeros.

Roofline, half precision. SpeedrunNet, batch 512, [512, 24, 32, 32] with the border to [512, 64, 15, 15]: 25 MB of x, 15
MB of pooled values and 7 MB of their places, read or written in the forward pass and read for the gradient: 47 MB, 11
microseconds at 4.3 TB/s, 16 at 2.9. Either is 6.4 G multiply-adds, 16 microseconds at 790 TFLOP/s, as compiled 8.5 G
forward and 7.5 G for the gradient (zeros beside the filters, conv_pool_triton.py), 21 and 19. So both bind. The
gradient's partial sums are 55 KB a program, 11 MB for 198, written and read once. Apart, the convolution writes 59 MB
which the pool reads, and the pool's gradient 59 MB which the filters' reads: 27 and 19 microseconds more at 4.3 TB/s,
besides what a library's convolution loses where there are 24 channels.

| crop, batch 512 | x | bytes, each pass | multiply-adds |
| --- | --- | --- | --- |
| 24 pixels | [512, 24, 24, 24] | 26 MB | 3.4 G |
| 28 pixels | [512, 24, 28, 28] | 36 MB | 4.8 G |
| 32 pixels | [512, 24, 32, 32] | 47 MB | 6.4 G |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastcifar.kernels.launch import is_older_than, use_triton
from fastcifar.kernels.operators import autograd, needs_plain_torch, operator, refuse_gradients, wants_gradient

_MOST_CHANNELS, _MOST_OUTPUTS = 32, 128

# ---------------------------------------------------------------------------------------------------------- reference


def conv_pool_reference(x: Tensor, weight: Tensor, bordered: bool = False) -> Tensor:
    """Compute `conv_pool` in plain torch, with torch's own gradients: its specification."""
    return functional.max_pool2d(functional.conv2d(x, weight, padding=0 if bordered else 1), 2)


def _with_argmax(x: Tensor, weight: Tensor, bordered: bool) -> tuple[Tensor, Tensor]:
    """Return `conv_pool_reference`'s result, and each maximum's place in its window."""
    convolved = functional.conv2d(x, weight, padding=0 if bordered else 1)
    pooled, index = functional.max_pool2d(convolved, 2, return_indices=True)
    width = convolved.shape[3]
    return pooled, (index // width % 2 * 2 + index % width % 2).to(torch.uint8)


def _unpooled(gradient: Tensor, argmax: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient of images of `height` x `width` pixels before the pool."""
    full = gradient.new_zeros((*gradient.shape[:2], height, width))
    tall, wide = (side // 2 * 2 for side in (height, width))
    for place in range(4):
        window = full[:, :, place // 2 : tall : 2, place % 2 : wide : 2]
        window.copy_(torch.where(argmax == place, gradient, 0))
    return full


# ----------------------------------------------------------------------------------------------------------- operator


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Return True if `conv_pool` takes its Triton kernel: half precision, 8, 16, 24 or 32 channels, and a multiple of
    16 outputs, up to 128. GPUs before Ampere have too few registers and too little shared memory for it."""
    outputs, channels = weight.shape[:2]
    fits = channels % 8 == 0 and 0 < channels <= _MOST_CHANNELS and outputs % 16 == 0 and outputs <= _MOST_OUTPUTS
    return fits and x.element_size() == 2 and x.numel() > 0 and not is_older_than((8, 0), x) and use_triton(x)


def _conv_pool(x: Tensor, weight: Tensor, bordered: bool) -> tuple[Tensor, Tensor]:
    if not has_kernel(x, weight):
        pooled, argmax = _with_argmax(x, weight, bordered)
        return _channels_last(pooled), _channels_last(argmax)
    from fastcifar.kernels.conv_pool_triton import conv_pool_triton

    pooled, argmax = _conv_pool_fake(x, weight, bordered)
    conv_pool_triton(x, weight, bordered, pooled, argmax)
    return pooled, argmax


def _conv_pool_fake(x, weight, bordered) -> tuple[Tensor, Tensor]:
    pooled = _conv_pool_inference_fake(x, weight, bordered)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


def _conv_pool_inference(x: Tensor, weight: Tensor, bordered: bool) -> Tensor:
    if not has_kernel(x, weight):
        return _channels_last(conv_pool_reference(x, weight, bordered))
    from fastcifar.kernels.conv_pool_triton import conv_pool_triton

    pooled = _conv_pool_inference_fake(x, weight, bordered)
    conv_pool_triton(x, weight, bordered, pooled, None)
    return pooled


def _conv_pool_inference_fake(x, weight, bordered) -> Tensor:
    height, width = (side // 2 for side in _convolved_sides(x, bordered))
    shape = (len(x), len(weight), height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _conv_pool_backward(gradient: Tensor, argmax: Tensor, x: Tensor, bordered: bool) -> Tensor:
    """Return the filters' gradient, from that of the result."""
    out = _conv_pool_backward_fake(gradient, argmax, x, bordered)
    if has_kernel(x, out):
        from fastcifar.kernels.conv_pool_triton import conv_pool_backward_triton

        conv_pool_backward_triton(gradient, argmax, x, bordered, out)
        return out
    full = _unpooled(gradient, argmax, *_convolved_sides(x, bordered))
    padding, mask = [0, 0] if bordered else [1, 1], [False, True, False]
    rest = ([1, 1], padding, [1, 1], False, [0, 0], 1, mask)
    return _channels_last(torch.ops.aten.convolution_backward(full, x, out, None, *rest)[1])


def _conv_pool_backward_fake(gradient, argmax, x, bordered) -> Tensor:
    shape = (gradient.shape[1], x.shape[1], 3, 3)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _convolved_sides(x: Tensor, bordered: bool) -> list[int]:
    return [side - 2 if bordered else side for side in x.shape[2:]]


def _products(x, weight, bordered) -> list[tuple[int, int]]:
    """Return multiply-adds and bytes of the one launch."""
    pooled, argmax = _conv_pool_fake(x, weight, bordered)
    return _product(x, pooled, argmax)


def _inference_products(x, weight, bordered) -> list[tuple[int, int]]:
    return _product(x, _conv_pool_inference_fake(x, weight, bordered))


def _backward_products(gradient, argmax, x, bordered) -> list[tuple[int, int]]:
    return _product(x, gradient, argmax)


def _product(x: Tensor, pooled: Tensor, *others: Tensor) -> list[tuple[int, int]]:
    weights = pooled.shape[1] * x.shape[1] * 9
    size = sum(tensor.numel() * tensor.element_size() for tensor in (x, pooled, *others))
    return [(4 * len(pooled) * pooled.shape[2] * pooled.shape[3] * weights, size + weights * x.element_size())]


operator("conv_pool", _conv_pool, _conv_pool_fake, products=_products)
operator("conv_pool_inference", _conv_pool_inference, _conv_pool_inference_fake, products=_inference_products)
operator("conv_pool_backward", _conv_pool_backward, _conv_pool_backward_fake, products=_backward_products)


def _save(ctx, inputs, output) -> None:
    x, _, bordered = inputs
    _, argmax = output
    ctx.save_for_backward(argmax, x)
    ctx.bordered = bordered
    ctx.mark_non_differentiable(argmax)
    ctx.set_materialize_grads(False)


def _gradients(ctx, gradient, _):
    if gradient is None:
        return None, None, None
    return None, torch.ops.fastcifar.conv_pool_backward(gradient, *ctx.saved_tensors, ctx.bordered), None


autograd("conv_pool", _gradients, _save)


def conv_pool(x: Tensor, weight: Tensor, bordered: bool = False) -> Tensor:
    """Return the 2x2 max-pool, stride 2, of `conv2d(x, weight, padding=1)`, without an odd last row or column:
    [N, O, H // 2, W // 2] in x's dtype, channels-last. Filters get a gradient, a second derivative raises RuntimeError.

    x: [N, C, H, W], channels-last (else it is copied), float32, float16, bfloat16 or float64; it gets no gradient.
    weight: [O, C, 3, 3], likewise.
    bordered: x is [N, C, H + 1, W + 1], with a row of zeros above and a column of zeros to the left, and is convolved
        without padding: for odd H and W that is all that the pool reads.

    The convolution is rounded to x's dtype before it is pooled. Of equal values the first in row-major order gets the
    gradient, which is summed in float32.

    Raises ValueError for shapes or dtypes that do not fit, and where x wants a gradient.
    """
    least = 2 + 2 * bordered
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:2] or min(x.shape[2:]) < least:
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)}; allowed: floating [N, C, H, W] of {least} by {least} or more pixels"
        )
    fits = weight.ndim == 4 and weight.dtype == x.dtype and len(weight) > 0
    if not fits or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight is {weight.dtype} {list(weight.shape)}; allowed: {x.dtype} [O, {x.shape[1]}, 3, 3], as x"
        )
    refuse_gradients(x=x)
    if needs_plain_torch():
        return conv_pool_reference(x, weight, bordered)
    if wants_gradient(weight):
        return torch.ops.fastcifar.conv_pool(x, weight, bordered)[0]
    return torch.ops.fastcifar.conv_pool_inference(x, weight, bordered)
