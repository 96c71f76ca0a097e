"""Programmatic dependent launch: GPUs of compute capability 9.0 and newer set a kernel up while the one before runs.

`launch` launches every kernel so, which takes away the order in which kernels run one after another; `wait_for_inputs`
gives it back, inside the kernel. It is each kernel's first statement: before it there is index arithmetic at most.

Why that is right:
- Whatever a kernel reads or writes, tables and parameters too, the one before may have written or may still read. So
  the wait comes before every access, stores too. It ends when all of the one before has ended and its writes are seen.
- A kernel lets the next be set up right after its own wait. That asks of the next no more than its wait: torch's and
  cuDNN's, launched without the attribute, start when all of this one has ended; those launched with it have to wait.
- In a chain A, B, C, kernel C waits for B alone. B ends after the waits of its programs, and these end after A: so A
  has ended when C's wait ends. Hence every program waits, also one that finds nothing to do. C is set up when A has
  ended and all programs of B are on the GPU: it takes no place from them.
- A kernel of a graph waits for all kernels that the graph's edges come from, those of its own stream and those of
  another one, which come by an event. Recording may make an edge between kernels programmatic; one from a copy or a
  fill stays full. A full edge holds the launch back, a programmatic one the wait: with two into one kernel it does not
  matter which CUDA makes of each. Events and the host wait for a kernel's end, whatever it let be set up before.
- Memory that one kernel frees and another takes, in a graph's pool or not, is ordered as before, by streams and events:
  what takes it writes after its wait.

The first kernel of a graph, or one after a copy, starts as ever, and its wait ends at once.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def _is_dependent(_semantic: Any = None) -> Any:
    """Return whether the kernel that is being compiled is one that `launch` launches as a dependent; interpreted, it is
    none. Asked of the launch's option and not of a GPU: a kernel launched so without a wait would read too early."""
    return tl.constexpr(_semantic is not None and getattr(_semantic.builder.options, "launch_pdl", False))


_is_dependent.__triton_builtin__ = True  # pyright: ignore[reportFunctionMemberAccess]  (called while a kernel is compiled)


@triton.jit
def wait_for_inputs():
    """Wait until the kernel before has ended, and let the next be set up."""
    if _is_dependent():
        gdc_wait()
        gdc_launch_dependents()
