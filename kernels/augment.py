"""A training batch from the resident uint8 images: gather, crop, flip, rescale, normalize, jitter, cut out, cast, all
in one pass.

Roofline. An image of side S (32) out of [N, 32, 32, 3]: reads S²·3 bytes (3 KB) and writes them in the compute dtype (6
KB in half precision); choices are 13 to 37 bytes. B 512 (DavidNet): 4.7 MB, 1.1 microseconds at 4.3 TB/s; B 2000
(SpeedrunNet): 18.4 MB, 4.3 microseconds. Some 30 integer and floating operations a value, 0.05 and 0.18 GFLOP: 0.1 and
0.2 microseconds at 790 TFLOP/s (more on the integer units that do them, still hidden). The bytes bind, and at B 512 the
launch itself. Rescaled to a side of 24, an image is read whole, and each value made of four: 3 KB of cached bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastcifar.kernels.launch import TRITON_DTYPES, use_triton
from fastcifar.kernels.operators import operator

# ---------------------------------------------------------------------------------------------------------- reference


def reflect(places: Tensor, size: int) -> Tensor:
    """Mirror places outside [0, size) at the border pixels, which are not repeated; clamp beyond one reflection."""
    places = places.abs()
    return torch.minimum(places, 2 * (size - 1) - places).clamp_(min=0)


def vector(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Return `numbers` as a tensor made on the device: a CUDA graph cannot capture a copy from the host."""
    return torch.cat([like.new_full((1,), number) for number in numbers])


def rows_of_batch(position: Tensor, batch: int) -> Tensor:
    """Return the rows from `position * batch` to before `(position + 1) * batch`: int64 [batch], on position's
    device."""
    return position * batch + torch.arange(batch, device=position.device)


def in_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return bool [B, height, width]: the pixels in each image's box, [B, 4] of top, left, height and width."""
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, dtype=torch.int32, device=boxes.device) for side in (height, width))
    cut_rows = (rows >= top) & (rows < top + tall)
    cut_columns = (columns >= left) & (columns < left + wide)
    return cut_rows[:, :, None] & cut_columns[:, None, :]


def _check_depth(offsets: Tensor, crop: int, height: int, width: int) -> None:
    """Raise ValueError for crops that reach beyond the mirror image at the border. A GPU is not waited for."""
    if offsets.device.type != "cpu" or not len(offsets):
        return
    for name, side, places in zip(("top", "left"), (height, width), offsets.unbind(1), strict=True):
        first, last = (int(place) for place in torch.aminmax(places))
        most = 2 * side - 1 - crop
        if first < 1 - side or last > most:
            raise ValueError(
                f"offsets are {first} to {last} ({name}); allowed: {1 - side} to {most} for a crop of {crop}"
            )


def augment_reference(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    flips: Tensor | None = None,
    cutouts: Tensor | None = None,
    jitter: Tensor | None = None,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    out_dtype: torch.dtype = torch.float32,
    size: int | None = None,
    position: Tensor | None = None,
    batch: int | None = None,
    crop: int | None = None,
) -> Tensor:
    """Compute `augment` in plain torch: its specification and the CPU's path.

    Pixels are gathered as rows of 3 bytes by one `index_select`, and normalized over whole rows of the image (means
    repeated along it), because torch's vectorized loops are slow over a last dimension of 3. Rescaling goes before
    that, which then has fewer pixels; the result is the same, for the shares of the four pixels sum to 1.
    """
    if position is not None and batch is not None:
        rows = rows_of_batch(position, batch)
        indices, offsets = indices[rows], offsets[rows]
        flips, cutouts, jitter = (None if choice is None else choice[rows] for choice in (flips, cutouts, jitter))
    batch, (height, width, channels) = len(indices), images.shape[1:]
    side = height if size is None else size
    crop = side if crop is None else crop
    _check_depth(offsets, crop, height, width)
    steps = torch.arange(crop, dtype=torch.int32, device=images.device)
    rows = reflect(offsets[:, :1] + steps, height)
    columns = reflect(offsets[:, 1:] + steps, width)
    if flips is not None:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    pixels = ((indices[:, None] * height + rows) * width)[:, :, None] + columns[:, None, :]
    values = images.view(-1, channels).index_select(0, pixels.view(-1)).view(batch, crop, crop * channels).float()
    if crop != side:
        planes = values.view(batch, crop, crop, channels).permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, size=side, mode="bilinear", align_corners=False)
        values = planes.permute(0, 2, 3, 1).reshape(batch, side, side * channels)
    values.sub_(vector(mean, values).repeat(side)).mul_(vector([1 / s for s in std], values).repeat(side))
    if jitter is not None:
        values.mul_(jitter[:, 1, None, None]).add_(jitter[:, 0, None, None])
    values = values.view(batch, side, side, channels)
    if cutouts is not None:
        values.masked_fill_(in_boxes(cutouts, side, side)[..., None], 0)
    return values.to(out_dtype).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------------- operator


def _augment(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    flips: Tensor | None,
    cutouts: Tensor | None,
    jitter: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    out_dtype: torch.dtype,
    size: int,
    position: Tensor | None,
    batch: int,
    crop: int,
) -> Tensor:
    arguments = (images, indices, offsets, flips, cutouts, jitter, mean, std, out_dtype, size, position, batch, crop)
    if use_triton(images) and out_dtype in TRITON_DTYPES:
        from fastcifar.kernels.augment_triton import augment_triton

        return augment_triton(*arguments)
    return augment_reference(*arguments)


def _augment_fake(
    images, indices, offsets, flips, cutouts, jitter, mean, std, out_dtype, size, position, batch, crop
) -> Tensor:
    out = torch.empty((batch, size, size, 3), dtype=out_dtype, device=images.device)
    return out.permute(0, 3, 1, 2)


operator("augment", _augment, _augment_fake)


def _check(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor is not None and (tensor.dtype != dtype or tensor.shape != shape):
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; allowed: {dtype} {list(shape)}")


def augment(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    flips: Tensor | None = None,
    cutouts: Tensor | None = None,
    jitter: Tensor | None = None,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    out_dtype: torch.dtype = torch.float32,
    size: int | None = None,
    position: Tensor | None = None,
    batch: int | None = None,
    crop: int | None = None,
) -> Tensor:
    """Return `images[indices]` cropped, flipped, rescaled, normalized, jittered and cut out: channels-last [B, 3, size,
    size].

    images: uint8 [N, H, W, 3], contiguous.
    indices: int64 [B], each in [0, N).
    offsets: int32 [B, 2], top and left of the crop, inside the image or beyond its border, where the image is mirrored
        at its edge pixels (reflect-101, computed, not stored) to a depth of H - 1.
    flips: bool [B], mirror left to right after the crop.
    cutouts: int32 [B, 4], top, left, height and width of a box in the output that is set to 0.
    jitter: float32 [B, 2], brightness and contrast: normalized values become `value * contrast + brightness`.
    mean, std: of each channel, on the scale 0 to 255.
    out_dtype: the batch's floating dtype.
    size: side of the output; None: H.
    position: int64 [1] on the device, which a captured graph reads anew: the choices are those of several batches of
        `batch` images, and the batch with this number, from 0, is made.
    crop: side of the crop, which is rescaled to `size` where that is another: bilinear between the centers of pixels,
        not antialiased, as `torch.nn.functional.interpolate` does with `align_corners=False`; None: `size`.

    Raises ValueError for other shapes or dtypes, a size or crop that can't be, and, on a CPU, crops beyond that depth.
    """
    count = len(indices)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.is_contiguous():
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; allowed: contiguous torch.uint8 [N, H, W, 3]"
        )
    _check("indices", indices, torch.int64, (count,))
    _check("offsets", offsets, torch.int32, (count, 2))
    _check("flips", flips, torch.bool, (count,))
    _check("cutouts", cutouts, torch.int32, (count, 4))
    _check("jitter", jitter, torch.float32, (count, 2))
    _check("position", position, torch.int64, (1,))
    fits = batch is None if position is None else batch is not None and 1 <= batch <= count
    if not fits:
        raise ValueError(f"batch is {batch} of {count} choices; allowed: 1 to all with a position, None without")
    side = images.shape[1] if size is None else size
    crop = side if crop is None else crop
    most = 3 * min(images.shape[1:3]) - 2
    if side < 1 or not 1 <= crop <= most:
        raise ValueError(f"size is {side}, crop {crop}; allowed: 1 or more, and 1 to {most}")
    return torch.ops.fastcifar.augment(
        *(images, indices, offsets, flips, cutouts, jitter),
        *([float(m) for m in mean], [float(s) for s in std], out_dtype, side),
        *(position, count if batch is None else batch, crop),
    )


def plain_batch(
    images: Tensor,
    indices: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    shift: int = 0,
    flip: bool = False,
) -> Tensor:
    """Return `images[indices]` as they are, normalized: a channels-last batch [B, C, H, W] of `dtype`, all cropped
    `shift` pixels down and to the right, then mirrored left to right if `flip`. Arguments as in `augment`, but for the
    sides and the number of channels, which are any."""
    height, width, channels = images.shape[1:]
    if height != width or channels != 3:  # the kernel makes square ones of three
        rows, columns = (reflect(torch.arange(side, device=images.device) + shift, side) for side in (height, width))
        values = images[indices][:, rows][:, :, columns.flip(0) if flip else columns].float()
        values.sub_(vector(mean, values)).mul_(vector([1 / s for s in std], values))
        return values.to(dtype).permute(0, 3, 1, 2)
    offsets = torch.full((len(indices), 2), shift, dtype=torch.int32, device=images.device)
    flips = torch.ones(len(indices), dtype=torch.bool, device=images.device) if flip else None
    return augment(images, indices, offsets, flips, mean=mean, std=std, out_dtype=dtype)


def change_pixels(
    change: Callable[[Tensor], Tensor], images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return normalized `images` [B, 3, H, W] with their pixels changed, in their dtype and memory format.

    `change` takes and returns float32 pixels of the scale of `mean` and `std`, in planes: sums over colors are fast."""
    wide = images.float()
    middle, spread = (vector(numbers, wide)[:, None, None] for numbers in (mean, std))
    changed = change(torch.addcmul(middle, wide, spread).contiguous())
    return torch.empty_like(images).copy_(changed.sub(middle).div(spread))
