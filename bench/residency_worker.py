"""The process of `bench.residency` that trains on images of one place. Not for calling by hand."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.residency import BATCH
from bench.resident import Answer, serve
from fastcifar.data import hdf5
from fastcifar.data.residency import place_images
from fastcifar.kernels import keep_freed_memory
from fastcifar.recipes import Recipe
from fastcifar.training import Trainer, resolve_device


def one_convolution(classes: int) -> nn.Module:
    """Return a network that costs next to nothing, for images of 8 x 8 pixels or more."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)
    ).to(memory_format=torch.channels_last)


def peak_bytes() -> int:
    """Return the most memory that this process had at a time."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def load(arguments: dict[str, Any]) -> tuple[dict[str, object], Answer]:
    """Return the facts of this process, and what answers with a training's images/s (`rate`), share of waiting
    (`waited`) and `peak_bytes`."""
    keep_freed_memory()  # as the command line does
    device, path = resolve_device(arguments["device"]), Path(arguments["path"])
    torch.zeros(1, device=device)
    before = peak_bytes()
    hdf5.user_cache = lambda: path.parent  # which is removed
    dataset = place_images(hdf5.load_hdf5(path), arguments["resident"], device)
    loaded, images = peak_bytes(), len(dataset.train)
    recipe = Recipe(name="residency", batch_size=BATCH, dtype="float32", epochs=arguments["steps"] * BATCH / images)
    trainer = Trainer(recipe, dataset, device, model=one_convolution)

    def answer(request: dict[str, Any]) -> dict[str, object]:
        if request.get("drops"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        record = trainer.run(0, eval_every=0).record
        waited = (record.waited_seconds or 0.0) / record.train_seconds
        return {"rate": record.images_per_second, "waited": waited, "peak_bytes": peak_bytes()}

    answer({})  # makes what is made at a first call
    return {
        "image_bytes": dataset.train.nbytes,
        "side": dataset.train.side,
        "threads": torch.get_num_threads(),
        "before_bytes": before,
        "loaded_bytes": loaded,
    }, answer


if __name__ == "__main__":
    serve(load)
