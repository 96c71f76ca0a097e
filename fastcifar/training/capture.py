"""CUDA graphs: a step recorded once and replayed, without Python between its kernels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from fastcifar.errors import is_out_of_memory

_WARM_UP_STEPS = 3


def capture(
    step: Callable[[], None], warm_up: Callable[[], None], pool: Any = None, raises_full: bool = False
) -> tuple[Callable[[], None], str | None]:
    """Return a replay of `step` and None; where CUDA cannot record it, warn and return `step` and the reason in a line.

    step: reads and writes only device tensors. It is recorded and not run.
    warm_up: a step of the same shapes on other data. It runs first, on a side stream, so that nothing is tuned, loaded
        or compiled while recording.
    pool: memory from `torch.cuda.graph_pool_handle()` for graphs that are never replayed at the same time and read
        nothing that another left in that memory.
    raises_full: raise what says that memory ran out.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    # cuDNN keeps what it found fastest by thread. The backward pass ran in this one when kernels were compiled (see
    # `compile_ahead`): in autograd's own it would search for all gradients again, for seconds.
    with torch.autograd.set_multithreading_enabled(False):
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                warm_up()
        torch.cuda.current_stream().wait_stream(side)
        try:
            return record(step, pool).replay, None
        except RuntimeError as error:
            if raises_full and is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(f"the training step runs without a CUDA graph, slower: {reason}", stacklevel=2)
            return step, reason


def record(run: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """Record all that `run()` queues on the device, without running it. Raises what `run` raises, and RuntimeError
    where CUDA cannot record it; the device is then left as it was."""
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    broke_off: list[Exception] = []
    try:
        with _recording(graph, pool):
            try:
                run()
            except Exception as error:
                broke_off.append(error)
                raise
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # a failed recording leaves its own stream as the current one
        torch.cuda.synchronize()
        with contextlib.suppress(RuntimeError), _recording(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=before.device)  # and torch's random numbers as while recording: a whole one resets it
        raise (broke_off or [error])[0] from None  # what `run` raised; the error at the end of recording says nothing
    return graph


def _recording(graph: torch.cuda.CUDAGraph, pool: Any = None) -> torch.cuda.graph:
    """Return the block that records `graph`. Other threads, such as those that read another training's images, may wait
    for the device and allocate memory meanwhile."""
    return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
