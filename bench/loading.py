"""Measure the ways to make batches that a recipe's `loading` names: a plain DataLoader, the steps by which Page's posts
made it faster, and today's, on the device.

    python -m bench.loading                             # 10,000 images, 3 epochs, 5 rounds: 4 minutes
    python -m bench.loading --images 50000 --workers 4 --device cuda --save FILE

In each round each way trains, in turn. The network is one convolution of stride 8, so that the loading binds; a
training's seconds are `train_seconds`, with all that the way does for it. The images are random ones of 32 x 32 pixels,
the changes Page's: crop, flip and cutout.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.program import add_save_option, new_parser, run_program
from bench.record import show
from bench.residency_worker import one_convolution
from fastcifar.data import Dataset, resolve_device
from fastcifar.data.plan import CROP_FLIP_CUTOUT
from fastcifar.errors import UserError
from fastcifar.recipes import LoadingConfig, Recipe
from fastcifar.training import Trainer

BATCH = 512
RESIDENT = "the device"


def ways(workers: int) -> dict[str, LoadingConfig]:
    """Return the ways by what makes the batches, each a step of the posts after the one before; workers: of the
    first."""
    return {
        f"a DataLoader, workers {workers}": LoadingConfig("host", workers),
        "the same, images preprocessed once, workers 1": LoadingConfig("host", 1, "image", "host"),
        "the same, random numbers by epoch": LoadingConfig("host", 1, "epoch", "host"),
        "the same, on the main thread": LoadingConfig("host", 0, "epoch", "host"),
        "the same, images preprocessed on the device": LoadingConfig("host", 0, "epoch", "device"),
        RESIDENT: LoadingConfig(),
    }


def random_images(count: int) -> Dataset:
    """Return so many random images of ten classes, and a batch to test on."""
    random = torch.Generator().manual_seed(0)
    parts = []
    for images in (count, BATCH):
        parts.append(torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8, generator=random))
        parts.append(torch.randint(10, (images,), generator=random))
    return Dataset.from_arrays(*parts)


def measure(
    images: int, epochs: float, found: dict[str, LoadingConfig], rounds: int, device: str, tell: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return for each way the images/s of each round."""
    recipe = Recipe(name="loading", batch_size=BATCH, dtype="float32", epochs=epochs, augment=CROP_FLIP_CUTOUT)
    data = random_images(images).to(resolve_device(device))
    trainers = {
        way: Trainer(dataclasses.replace(recipe, loading=config), data, device, model=one_convolution)
        for way, config in found.items()
    }
    trainers[RESIDENT].run(0, eval_every=0)  # makes what is made at a first call
    rates: dict[str, list[float]] = {way: [] for way in found}
    for number in range(1, rounds + 1):
        for way, trainer in trainers.items():
            record = trainer.run(number, eval_every=0).record
            rates[way].append(record.images_per_second)
            tell(f"{way}, round {number} of {rounds}: {record.images_per_second:,.0f} images/s")
    return rates


def records(rates: dict[str, list[float]], command: str) -> list[dict[str, Any]]:
    """Return the results as `bench.record.append` takes them, with the ratios to the device and to the way before, each
    the median of those of the rounds."""
    made, before = [], ""
    for way, each in rates.items():
        value = f"{statistics.median(each):,.0f} images/s, {_ratio(each, rates[RESIDENT])} of the device's"
        value += f", {_ratio(each, rates[before])} of the way before" if before else ""
        spread = f"{min(each):,.0f} to {max(each):,.0f}"
        what = f"training on batches made by {way}"
        made.append({"what": what, "value": value, "n": len(each), "spread": spread, "command": command, "rates": each})
        before = way
    return made


def _ratio(rates: Sequence[float], others: Sequence[float]) -> str:
    return f"{statistics.median(one / other for one, other in zip(rates, others, strict=True)):.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.loading", __doc__ or "")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help=f"of an epoch, in batches of {BATCH}")
    parser.add_argument("--epochs", type=float, default=3.0, metavar="E", help="of a training")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the DataLoader at first")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_save_option(parser)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.images < BATCH:
        raise UserError(f"allowed: 1 or more rounds, and images for a batch of {BATCH}")
    command = f"python -m bench.loading --images {options.images} --epochs {options.epochs:g}"
    command += f" --workers {options.workers} --device {options.device}"
    found = ways(options.workers)
    rates = measure(options.images, options.epochs, found, options.rounds, options.device, print)
    for record in records(rates, command):
        show(record, options.save, options.device)
    return 0


if __name__ == "__main__":
    run_program("bench.loading", main)
