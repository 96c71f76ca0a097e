"""CUDA graphs: a step recorded once and replayed, without Python between its kernels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

_WARM_UP_STEPS = 3


def capture(
    step: Callable[[], None], warm_up: Callable[[], None], pool: Any = None
) -> tuple[Callable[[], None], str | None]:
    """A replay of `step`, which must read and write device tensors alone, and None; where CUDA cannot record it, `step`
    itself and the reason in a line, which a warning says too.

    `warm_up`, a step of the same shapes on other data, is run first, on a side stream: so nothing is tuned, loaded or
    compiled while recording. Recording runs nothing: what `step` changes is as `warm_up` left it. Graphs that are never
    replayed at once, and read nothing that another left in its own memory, may share that: `pool` is
    `torch.cuda.graph_pool_handle()`.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_STEPS):
            warm_up()
    torch.cuda.current_stream().wait_stream(side)
    try:
        return record(step, pool).replay, None
    except RuntimeError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(f"the training step runs without a CUDA graph, slower: {reason}", stacklevel=2)
        return step, reason


def record(run: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
    """What `run()` queues on the device, which a recording does not run. Raises what `run` raises, and RuntimeError
    where CUDA cannot record it; whatever comes next then finds the device as it was."""
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    broke_off: list[Exception] = []
    try:
        with torch.cuda.graph(graph, pool=pool):
            try:
                run()
            except Exception as error:
                broke_off.append(error)
                raise
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # a recording that breaks off leaves its own as the current one
        torch.cuda.synchronize()
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=before.device)  # and torch's random numbers as if it went on: one that ends mends it
        raise (broke_off or [error])[0] from None  # a recording that broke off also fails to end, which says nothing
    return graph
