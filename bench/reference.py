"""Fixed work that every benchmark is set beside, so that a result is a ratio and outlives the machine it was made on.

A matrix product is bound by arithmetic, a copy by memory, a convolution by the library of convolutions. They are timed
just before and just after every round of a benchmark, so that a clock that drifts, or another program on the machine,
slows both alike. Their sizes must stay: a change breaks the comparison with every result before it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

WORKLOADS = ("product", "copy", "convolution")


class Reference:
    """The three workloads on one device; `seconds()` times each once.

    Some milliseconds each on a CPU core (float32; a product of 768 x 768 matrices, a copy of 64 MiB, a 3x3
    convolution of 32 images of 32 channels) and on a GPU (float16; 4096 x 4096, 256 MiB, 512 images of 64 channels).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        side, size, batch, channels = (4096, 256 << 20, 512, 64) if on_gpu else (768, 64 << 20, 32, 32)
        options = {"device": device, "dtype": torch.float16 if on_gpu else torch.float32}
        left, right = torch.randn(side, side, **options), torch.randn(side, side, **options)
        source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        shapes = (batch, channels, 32, 32), (channels, channels, 3, 3)
        images, filters = (
            torch.randn(shape, **options).contiguous(memory_format=torch.channels_last) for shape in shapes
        )
        self._calls: dict[str, Callable[[], object]] = {
            "product": lambda: left @ right,
            "copy": lambda: target.copy_(source),
            "convolution": lambda: torch.conv2d(images, filters, padding=1),
        }
        for _ in range(3):
            self.seconds()

    def seconds(self) -> dict[str, float]:
        """Seconds of one call of each workload, the device synchronized around it."""
        return {name: seconds_of(call, self._device) for name, call in self._calls.items()}


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device synchronized around it."""
    synchronize(device)
    start = perf_counter()
    call()
    synchronize(device)
    return perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
