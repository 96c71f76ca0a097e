"""Measure trainings whose images lie on the device, in host memory and on disk: images/s and memory.

    python -m bench.residency                           # a file of 2 GB of 96 x 96 images, 3 rounds: 6 minutes
    python -m bench.residency --gigabytes 20 --device cuda --save FILE

An HDF5 file of random images is made in a temporary folder (`--folder` names another disk) and removed at the end. Each
way is a process of its own; in each round each trains some steps, in turn. The network is one convolution of stride 8,
so that images bind. "Disk, not cached" begins each round by asking the system to drop the file from its cache.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.program import add_save_option, new_parser, run_program
from bench.record import show
from bench.resident import Resident
from fastcifar.errors import UserError

WAYS = {
    "on the device": ("device", False),
    "in host memory": ("host", False),
    "on disk, cached": ("disk", False),
    "on disk, not cached": ("disk", True),
}
"""Where the images lie, and whether the file is dropped from the system's cache before each round."""
BATCH = 512
_AT_ONCE = 1000


def make_file(path: Path, images: int, side: int) -> None:
    """Write a data set of random images of ten classes, a 50th more of them to test on."""
    import h5py

    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for part, count in (("train", images), ("test", max(1, images // 50))):
            array = file.create_dataset(f"images-{part}", (count, side, side, 3), np.uint8)
            for start in range(0, count, _AT_ONCE):
                some = min(_AT_ONCE, count - start)
                array[start : start + some] = random.integers(256, size=(some, side, side, 3), dtype=np.uint8)
            file[f"labels-{part}"] = random.integers(10, size=count)


def measure(
    path: Path, steps: int, rounds: int, device: str, tell: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Return for each way the `facts` of its process, and of each round the images/s (`rates`) and the share of the
    training in which steps waited for images (`waited`)."""
    request = {"path": str(path), "steps": steps, "device": device}
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(Resident(way, "bench.residency_worker")) for way in WAYS}
        found: dict[str, dict[str, Any]] = {}
        for way, (resident, _) in WAYS.items():
            facts = workers[way].ask({**request, "resident": resident})
            found[way] = {"facts": facts, "rates": [], "waited": []}
        for number in range(1, rounds + 1):
            for way, (_, drops) in WAYS.items():
                reply, each = workers[way].ask({"drops": drops}), found[way]
                each["rates"].append(reply["rate"])
                each["waited"].append(reply["waited"])
                each["facts"]["peak_bytes"] = reply["peak_bytes"]
                tell(f"{way}, round {number} of {rounds}: {reply['rate']:,.0f} images/s, waited {reply['waited']:.1%}")
    return found


def records(found: dict[str, dict[str, Any]], command: str) -> list[dict[str, object]]:
    """Return the results as `bench.record.append` takes them; command: what measured."""
    first = statistics.median(found["on the device"]["rates"])
    made = []
    for way, each in found.items():
        facts, rate = each["facts"], statistics.median(each["rates"])
        loaded, peak = ((facts[name] - facts["before_bytes"]) / 1e9 for name in ("loaded_bytes", "peak_bytes"))
        value = f"{rate:,.0f} images/s, {rate / first:.2f} of those on the device; steps waited "
        value += f"{statistics.median(each['waited']):.1%}; memory {loaded:.2f} GB when loaded, {peak:.2f} GB at most"
        what = f"training on {facts['image_bytes'] / 1e9:.1f} GB of {facts['side']} x {facts['side']} images {way}"
        spread = f"{min(each['rates']):,.0f} to {max(each['rates']):,.0f}"
        made.append(
            {"what": what, "value": value, "n": len(each["rates"]), "spread": spread, "command": command, **each}
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.residency", __doc__ or "")
    parser.add_argument("--gigabytes", type=float, default=2.0, metavar="GB", help="of training images")
    parser.add_argument("--side", type=int, default=96, metavar="N", help="of the images, in pixels")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help=f"in a round, each of {BATCH} images")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the file is made; else the temporary folder")
    add_save_option(parser)
    options = parser.parse_args(arguments)
    images = int(options.gigabytes * 1e9 / (3 * options.side**2)) if options.side > 7 else 0
    if options.rounds < 1 or options.steps < 1 or images < BATCH:
        raise UserError(f"allowed: rounds, steps and a side from 1, 1 and 8 on, and images for a batch of {BATCH}")
    command = f"python -m bench.residency --gigabytes {options.gigabytes:g} --side {options.side}"
    command += f" --steps {options.steps} --device {options.device}"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "images.h5"
        make_file(path, images, options.side)
        for record in records(measure(path, options.steps, options.rounds, options.device), command):
            show(record, options.save, options.device)
    return 0


if __name__ == "__main__":
    run_program("bench.residency", main)
