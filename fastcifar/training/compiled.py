"""The network's forward and backward pass through torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable

import torch
from torch import nn

_RIGHT_FROM = "2.13"
"""The version from which inductor is right. Up to 2.11 it reads a tensor that an operator writes, and that is part of a
larger one, from a wrong place: the running variances in their flat buffer."""


class CompiledNetwork:
    """`model`, compiled at its first call with images of a shape; its parameters stay where they are.

    Where there is no C++ compiler (CPU) or no Triton (CUDA), or the step that `attempt` makes fails, one warning says
    so, `active` is False and the model is called as it is.
    """

    def __init__(self, model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
        self.model, self.active = model, True
        missing = missing_compiler(device) if backend == "inductor" else None
        if missing:
            self._give_up(missing)
        else:
            self._forward = torch.compile(model, backend=backend, dynamic=False)

    def __call__(self, images: torch.Tensor, **options: bool) -> torch.Tensor:
        return (self._forward if self.active else self.model)(images, **options)

    def attempt(self, new_step: Callable[[], Callable[[], None]]) -> None:
        """Make the step that `new_step` returns, forward and backward through this network. Where that fails, make a
        new one with the model as it is, which raises what torch.compile is not to blame for."""
        try:
            new_step()()
        except Exception as error:  # its compilers, its cache and its own code raise any kind
            if not self.active:
                raise
            self.active = False
            new_step()()
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _give_up(self, reason: str) -> None:
        self.active = False
        warnings.warn(f"compile is 'step', but the step stays as it is: {reason}", stacklevel=3)


def missing_compiler(device: torch.device) -> str | None:
    """Return in a few words what torch.compile needs for `device` and does not find; None: nothing."""
    if torch.__version__ < _RIGHT_FROM:
        return f"torch is {torch.__version__}, and before {_RIGHT_FROM} its running variances would be wrong"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "there is no Triton"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler}"
