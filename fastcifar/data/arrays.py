"""Conversion of arrays to the tensors of a `Split`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastcifar.errors import UserError


def images_from(values: ArrayLike | torch.Tensor, name: str) -> torch.Tensor:
    """Return a copy of `values` as images uint8 `[N, H, W, 3]` on the CPU.

    `values` are `[N, H, W, 3]`, `[N, 3, H, W]` or, grey, `[N, H, W]`; integers from 0 to 255, or floats from 0 to 1,
    which are rounded to 8 bits. Raises UserError, with their `name`, for others.
    """
    array = _array(values, name)
    shape = f"{name} is {array.dtype} {list(array.shape)}"
    if array.ndim == 3:
        array = array[..., None].repeat(3, axis=3)
    elif array.ndim != 4 or 3 not in (array.shape[1], array.shape[3]):
        raise UserError(f"{shape}; allowed: [N, H, W, 3], [N, 3, H, W] or, grey, [N, H, W]")
    elif array.shape[1] == array.shape[3]:
        raise UserError(f"{shape}: its channels may come first or last; allowed: images other than 3 pixels wide")
    elif array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if not array.size:
        raise UserError(f"{shape}; allowed: one image or more")
    if array.dtype.kind not in "uif":
        raise UserError(f"{shape}; allowed: integers from 0 to 255 or floats from 0 to 1")
    low, high, most = array.min(), array.max(), 1 if array.dtype.kind == "f" else 255
    if not (low >= 0 and high <= most):  # a NaN fails both
        allowed = "integers from 0 to 255" if most == 255 else "floats from 0 to 1, or integers from 0 to 255"
        raise UserError(f"{name} is {array.dtype} from {low:g} to {high:g}; allowed: {allowed}")
    if most == 1:
        array = np.rint(array * array.dtype.type(255))
    return torch.from_numpy(np.array(array, dtype=np.uint8, order="C"))


def labels_from(values: ArrayLike | torch.Tensor | None, count: int, name: str) -> torch.Tensor:
    """Return a copy of `values`, integers `[count]`, as int64 on the CPU, or `count` times -1 for None. Raises
    UserError, with their `name`, for others."""
    if values is None:
        return torch.full((count,), -1)
    array = _array(values, name)
    if array.dtype.kind not in "ui" or array.shape != (count,):
        raise UserError(f"{name} is {array.dtype} {list(array.shape)}; allowed: integers [{count}], one for each image")
    if count and not (array.min() >= -1 and array.max() <= np.iinfo(np.int64).max):
        raise UserError(f"{name} is {array.min()} to {array.max()}; allowed: 0 or more, and -1 for an unlabeled image")
    return torch.from_numpy(array.astype(np.int64))


def _array(values: ArrayLike | torch.Tensor, name: str) -> np.ndarray:
    try:
        if isinstance(values, torch.Tensor):
            # numpy has no bfloat16, and half precision is too narrow to be multiplied by 255
            is_narrow = values.is_floating_point() and values.element_size() < 4
            return (values.float() if is_narrow else values).numpy(force=True)
        if np.ma.is_masked(values):
            raise TypeError("some of its values are masked")
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal lengths; sparse, meta and other tensors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is no array: {reason}; allowed: one shape throughout, of values in memory") from error
    return array.astype(np.float32) if array.dtype == np.float16 else array
