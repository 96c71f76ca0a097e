"""`resolve_device`: a device by its name, refused where there is none."""

from __future__ import annotations

import torch

from fastcifar.errors import UserError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device for "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "cuda:1". Raises UserError
    where there is no such device, and for others that torch knows, such as Apple's "mps": no kernel, stopwatch or
    random number here is for them."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device is {device!r}; allowed: auto, cpu, cuda") from None
    if resolved.type not in ("cpu", "cuda"):
        raise UserError(f"device is {device!r}; allowed: auto, cpu, cuda")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device is {device!r}, but torch finds {count or 'no'} CUDA device{'s' * (count != 1)} here")
    return resolved
