"""The network's forward and backward pass through torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings

import torch
from torch import nn


class CompiledNetwork:
    """`model`, compiled at its first call with images of a shape; its parameters stay where they are.

    Where there is no C++ compiler (CPU) or no Triton (CUDA), or torch.compile fails, one warning says so, `active` is
    False and the model is called as it is.
    """

    def __init__(self, model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
        self.model, self.active = model, True
        missing = missing_compiler(device) if backend == "inductor" else None
        if missing:
            self._give_up(missing)
        else:
            self._forward = torch.compile(model, backend=backend, dynamic=False)

    def __call__(self, images: torch.Tensor, **options: bool) -> torch.Tensor:
        if not self.active:
            return self.model(images, **options)
        from torch._dynamo.exc import TorchDynamoException  # torch._dynamo takes a second to import

        try:
            return self._forward(images, **options)
        except TorchDynamoException as error:
            self._give_up(" ".join(str(error).split())[:200])
            return self.model(images, **options)

    def _give_up(self, reason: str) -> None:
        self.active = False
        warnings.warn(f"compile is 'step', but the step stays as it is: {reason}", stacklevel=3)


def missing_compiler(device: torch.device) -> str | None:
    """Return in a few words what torch.compile needs for `device` and does not find; None: nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "there is no Triton"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler}"
