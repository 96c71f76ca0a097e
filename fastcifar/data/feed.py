"""`Feed`: the images of the next batches, read ahead of time from where a `KeptSplit` keeps them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from fastcifar.data.kept import KeptSplit

_SLOTS = 4
"""Batches in memory: the one that is trained on, and those that are read meanwhile."""


class _Slot:
    """The memory of one batch: `host`, which images are read into, and on CUDA `device`, which they are copied to."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.host = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_cuda)
        self.device = torch.zeros(shape, dtype=torch.uint8, device=device) if on_cuda else self.host
        self.copied = torch.cuda.Event() if on_cuda else None
        """The images are on the device: `host` may be written again."""
        self.used = torch.cuda.Event() if on_cuda else None
        """They are in the step's buffer: `device` may be written again."""


class Feed:
    """The images of one batch after the other, in the order of an epoch's plan; threads read those of the next ones
    meanwhile.

    split: where they are kept.
    batch: images of the largest batch.

    On CUDA the images of a batch go from pinned memory by a stream of their own, and from there into one buffer that a
    captured step reads. The host waits until a batch has been read; the device waits until it has been copied to it.
    The host's wait is for the threads, not for the device, unless it is ahead of the device by more batches than lie in
    memory.
    """

    def __init__(self, split: KeptSplit, batch: int) -> None:
        self._split, self._device = split, split.device
        shape = (min(batch, len(split)), *split.image_shape)
        self._slots = [_Slot(shape, self._device) for _ in range(_SLOTS)]
        self._on_cuda = self._device.type == "cuda"
        self.images = torch.zeros_like(self._slots[0].device) if self._on_cuda else self._slots[0].host
        """The present batch's images, in its first rows: uint8 `[batch, H, W, 3]` on the device, on CUDA always in the
        same memory."""
        self._stream = torch.cuda.Stream(self._device) if self._on_cuda else None
        self._pool = ThreadPoolExecutor(_SLOTS - 1 if self._on_cuda else 1, thread_name_prefix="fastcifar-feed")
        self._pending: deque[tuple[_Slot, Future[None]]] = deque()
        self._batches: Iterator[tuple[int, int]] = iter(())
        self._present: _Slot | None = None
        self._order = torch.zeros(len(split), dtype=torch.int64, pin_memory=self._on_cuda)
        self._ordered = torch.cuda.Event() if self._on_cuda else None
        self.waited = Waits(self._device)
        self.epoch: int | None = None
        """The number of the epoch that it was begun for."""

    def begin(self, indices: torch.Tensor, batches: Iterable[tuple[int, int]], epoch: int = 0) -> None:
        """Begin with the batches of an epoch that are left.

        indices: places in the split of the epoch's images, int64 `[n]` on the device.
        batches: start and stop in `indices` of each batch, in order.
        epoch: its number.
        """
        self.end()
        self._order[: len(indices)].copy_(indices, non_blocking=True)
        if self._ordered:
            self._ordered.record(torch.cuda.current_stream(self._device))
        self._batches, self.epoch = iter(batches), epoch
        for slot in self._slots:
            if slot is not self._present:
                self._read_next(slot)

    def end(self) -> None:
        """Drop the batches that are not trained on."""
        self.epoch = None
        while self._pending:
            _, reading = self._pending.popleft()
            if not reading.cancel():
                reading.exception()  # waits: the memory may then be written again

    def next(self) -> None:
        """Make the next batch the present one. Raises what reading it raised, and IndexError after the last."""
        if not self._pending:
            raise IndexError("the epoch has no more batches")
        slot, reading = self._pending[0]
        with self.waited:
            reading.result()
            if slot.copied:
                torch.cuda.current_stream(self._device).wait_event(slot.copied)
        self._pending.popleft()  # after an interrupt `end` still waits for the thread
        if slot.used:
            self.images.copy_(slot.device)
            slot.used.record(torch.cuda.current_stream(self._device))
            self._read_next(slot)
            return
        before, self._present, self.images = self._present, slot, slot.host
        if before:
            self._read_next(before)

    def _read_next(self, slot: _Slot) -> None:
        part = next(self._batches, None)
        if part:
            self._pending.append((slot, self._pool.submit(self._read, slot, *part)))

    def _read(self, slot: _Slot, start: int, stop: int) -> None:
        """Read a batch into `slot`; runs in a thread."""
        if self._ordered and slot.copied:
            self._ordered.synchronize()
            slot.copied.synchronize()
        rows = stop - start
        self._split.read_into(self._order.numpy()[start:stop], slot.host.numpy()[:rows])
        if self._stream and slot.copied and slot.used:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(slot.used)
                slot.device[:rows].copy_(slot.host[:rows], non_blocking=True)
                slot.copied.record()


class Waits:
    """The seconds for which steps waited for their images, summed over `with` blocks: on CUDA the device's, from the
    end of the step before, read without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._on_cuda, self._before = device, device.type == "cuda", 0.0
        self._blocks: deque[tuple[Any, Any]] = deque()

    def __enter__(self) -> None:
        if not self._on_cuda:
            self._since = time.perf_counter()
            return
        while self._blocks and self._blocks[0][1].query():
            self._sum_up()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(self._device))
        self._blocks.append((start, stop))

    def __exit__(self, *exc: object) -> None:
        if self._on_cuda:
            self._blocks[-1][1].record(torch.cuda.current_stream(self._device))
        else:
            self._before += time.perf_counter() - self._since

    def reset(self, seconds: float = 0.0) -> None:
        """Count anew from `seconds`."""
        self._blocks.clear()
        self._before = seconds

    @property
    def seconds(self) -> float:
        """The seconds so far; waits for the device."""
        while self._blocks:
            self._blocks[0][1].synchronize()
            self._sum_up()
        return self._before

    def _sum_up(self) -> None:
        start, stop = self._blocks.popleft()
        self._before += start.elapsed_time(stop) / 1000
