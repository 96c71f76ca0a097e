"""Networks as ONNX files."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from fastcifar.errors import UserError
from fastcifar.output import write_whole


def export_onnx(
    network: nn.Module, file: Path, side: int, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]
) -> None:
    """Write a network in evaluation mode, float32 on the CPU, as an ONNX file, in place of one that is there or that a
    link points to.

    network: takes normalized images.
    side: of the images, in pixels.
    mean, std: normalize them, 0 to 255 units. The file does it itself: its input `images`, float32 `[batch, 3, side,
        side]`, holds pixels of 0 to 255.
    classes: their names, a JSON list in the file's metadata.

    Raises UserError without the packages that torch writes such files with, and where the file cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"an ONNX file needs {' and '.join(missing)}, not installed here"
        raise UserError(f"{what}: pip install 'fastcifar[export]'")
    try:
        path = file.resolve()
    except (OSError, RuntimeError):  # links in a circle
        path = file
    special = os.path.lexists(path) and not path.is_file()
    if special or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {file}; allowed: a file in a folder that can be written to")
    images = torch.zeros(2, 3, side, side, dtype=torch.float32, device="cpu")
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # not: torchvision is not installed
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            program = torch.onnx.export(
                _OfPixels(network, mean, std).eval(),
                (images,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(list(classes))
    write_whole(path, program.save)


class _OfPixels(nn.Module):
    """`network`, for pixels of 0 to 255."""

    mean: torch.Tensor
    factor: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("factor", [1 / s for s in std])):
            vector = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, vector[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) * self.factor)
