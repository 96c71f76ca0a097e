"""JordanAsh/warm_start, "On Warm-Starting Neural Network Training": the narrow ResNet-18 and its plain loop."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from bench.peers.adapt import Shims, load_module, replace_torchvision
from bench.peers.harness import Enough, Harness

SHIMS: Shims = [
    # A step without their loader, whose datasets are torchvision's and so not here.
    ("        count += 1\n", "        count += 1\n        _harness.step_begins()\n"),
    ("        optimizer.step()\n", "        optimizer.step()\n        _harness.step_done()\n"),
]
ON_CPU: Shims = [(".cuda()", "")]
ARGUMENTS = ["--model", "resnet", "--opt", "adam", "--n_samples", "1"]
"""Their own defaults, from a fresh network, on all images that they train on (1 is all of them, not one)."""


def load(checkout: Path, harness: Harness) -> Callable[[int], None]:
    """Load their program; the function trains from a seed. It is a script, executed at each call. It has no end worth
    timing (it trains until 99% are right), so it is to be called for some steps."""
    datasets = types.ModuleType("torchvision.datasets")
    datasets.CIFAR10 = lambda root, train, download, transform: Images(harness, train, transform)
    replace_torchvision(datasets)
    load_module(checkout / "resnet.py", ())  # their program imports it by this name
    path = checkout / "run.py"
    shims = [*SHIMS, *ON_CPU] if harness.device.type == "cpu" else SHIMS

    def train(seed: int) -> None:
        sys.argv = [str(path), *ARGUMENTS]
        try:
            load_module(path, shims, "warm_start_run", {"_harness": harness})
        except Enough:
            # Their stopwatch is of an epoch, from here on.
            harness.own_seconds = time.time() - sys.modules["warm_start_run"].start
            raise

    return train


class Images:
    """Labeled images as torchvision's CIFAR10 hands them out: one at a time, from the host's memory, transformed."""

    def __init__(self, harness: Harness, train: bool, transform: Callable) -> None:
        split = harness.split(train)
        self.images, self.labels = split["images"].cpu(), split["labels"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), self.labels[index]
