"""Pictures by Pillow: files and objects of it to pixels."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

from fastcifar.errors import Unequipped, UserError

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""The forms that are read, by Pillow's names, with the endings of their files. Others may run programs, as EPS does."""
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
_WIDE = ("I", "F")
"""The beginnings of the modes of pictures with more than 8 bits a channel, which Pillow would cut at 255."""
_LARGEST = 1 << 26
"""Pixels that a picture may have; a small file can claim any number."""
_ORIENTATION = 0x0112
"""The number of that field of EXIF."""


def pillow() -> Any:
    """Return the module `PIL.Image`. Raises UserError where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise Unequipped("images are read by Pillow, which is not installed: pip install 'fastcifar[images]'") from None
    return Image


def is_picture(value: object) -> bool:
    """Return whether `value` is an image of Pillow's."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def pixels(picture: Any, name: str, side: int = 0) -> np.ndarray:
    """Return an image of Pillow's as uint8 `[H, W, 3]`; grey ones get three equal channels, transparency is dropped.
    It is turned as its EXIF says.

    side: bring it to side x side pixels as torchvision's Resize(side) and CenterCrop(side) do: the shorter side by
        bilinear interpolation with antialiasing, the longer one cropped; 0: as it is.

    Raises UserError, with its `name`, for one with more than 8 bits a channel, and for one that claims too many pixels.
    """
    width, height = picture.size
    if width * height > _LARGEST:
        raise UserError(f"{name} is {height} x {width} pixels; allowed: up to {_LARGEST:,}")
    if picture.mode.startswith(_WIDE):
        raise UserError(f"{name} has more than 8 bits a channel (mode {picture.mode}); allowed: 8, grey or in color")
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # as it is shown
        picture = importlib.import_module("PIL.ImageOps").exif_transpose(picture)
        width, height = picture.size
    if picture.mode == "P" and "transparency" in picture.info:  # which Pillow complains of otherwise
        picture = picture.convert("RGBA")
    picture = picture.convert("RGB")
    if side and picture.size != (side, side):
        shorter = min(width, height)
        sizes = side * width // shorter, side * height // shorter
        starts = [round((size - side) / 2) for size in sizes]
        if sizes[0] * sizes[1] <= _LARGEST:
            picture = picture.resize(sizes, pillow().Resampling.BILINEAR)
            picture = picture.crop((*starts, *(start + side for start in starts)))
        else:  # a thin one, 1 x 400,000, would grow to gigabytes; the same, but for the rounding of some values
            edges = [[place * shorter / side for place in (start, start + side)] for start in starts]
            (left, right), (top, bottom) = edges
            box = (left, top, min(right, width), min(bottom, height))
            picture = picture.resize((side, side), pillow().Resampling.BILINEAR, box=box)
    return np.asarray(picture)
