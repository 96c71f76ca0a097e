"""Operations of whole trainings, ours and four peers', counted by one tool on the networks themselves.

    python -m bench.peers.flops --checkouts DIR [--recipe speedrun94] [--save FILE]

Theirs are built from their own code, on the meta device. Stated here are facts of their programs: batch, steps, image
sizes, the steps in which the whitening's bias has a gradient, how the optimizer pads filters, and the evaluated views.
A multiply-add is two operations; elementwise work is not counted.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.peers.adapt import load_module, replace_torchvision
from bench.program import add_save_option, new_parser, run_program
from bench.record import append
from fastcifar.costs.flops import count_recipe
from fastcifar.costs.products import count_module
from fastcifar.recipes import get_recipe

_TRAIN_IMAGES, _TEST_IMAGES = 50_000, 10_000
_FILTERS = ((64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304))
_PADDED = ((256, 2304),) * 6
"""Every filter bank padded to the largest."""
_NEWTON_SCHULZ_STEPS = 3


@dataclass(frozen=True)
class Training:
    """Facts of a peer's training that its network does not hold."""

    file: str
    batch_size: int
    epochs: float
    bias_epochs: float
    """Epochs in which the whitening's bias has a gradient."""
    filters: Sequence[tuple[int, int]]
    """The matrices that its optimizer orthogonalizes, as it lays them out."""
    passes: float
    """Views of a test image that are evaluated."""
    sizes: Sequence[int] = (32,)
    """Side in pixels of the images in each epoch, the last one's in all further epochs."""
    resamples: bool = False
    """Its network is given whole images and the size, and makes them smaller itself."""


TRAININGS = {
    "airbench94_muon": Training("cifar10-airbench/airbench94_muon.py", 2000, 8, 3, _FILTERS, 6),
    # A quarter of the images gets six views more.
    "cifar10-speedrun": Training("cifar10-speedrun/cifar10_speedrun.py", 1536, 7.59, 0.19, _PADDED, 1 + 0.25 * 6),
    "fulcrum-e1": Training(
        *("cifar-10-speedrun/runners/recipes/e1.py", 1536, 8.875, 0.2, _FILTERS, 6),
        sizes=(24, 24, 24, 28, 28, 28, 32),
        resamples=True,
    ),
    "fulcrum-e5": Training(
        *("cifar-10-speedrun/runners/recipes/e5.py", 1536, 8.125, 0.2, _PADDED, 6), sizes=(28, 28, 28, 28, 28, 32)
    ),
}


def count_peer(training: Training, checkouts: Path) -> tuple[float, float]:
    """Return the operations of its training, optimizer included, and of its last evaluation. Raises UserError if the
    checkout is not the one meant."""
    replace_torchvision()
    sys.argv = [str(checkouts / training.file)]  # they keep the text of the file named here
    network = load_module(checkouts / training.file, ()).CifarNet()

    def loss(logits: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def step_macs(size: int, trains_bias: bool) -> int:
        side, further = (32, (size,)) if training.resamples else (size, ())
        shape = (training.batch_size, 3, side, side)
        return count_module(network, shape, loss, call=lambda model, x: model(x, trains_bias, *further)).macs

    view = count_module(network, (1, 3, 32, 32), training=False).macs
    steps_per_epoch = _TRAIN_IMAGES // training.batch_size
    steps = math.ceil(training.epochs * steps_per_epoch)
    bias_steps = math.ceil(training.bias_epochs * steps_per_epoch)
    last = len(training.sizes) - 1
    kinds = Counter((training.sizes[min(step // steps_per_epoch, last)], step < bias_steps) for step in range(steps))
    orthogonalizing = _NEWTON_SCHULZ_STEPS * sum(2 * rows**2 * columns + rows**3 for rows, columns in training.filters)
    macs = sum(count * step_macs(*kind) for kind, count in kinds.items()) + steps * orthogonalizing
    return 2.0 * macs, 2.0 * view * training.passes * _TEST_IMAGES


def main() -> int:
    parser = new_parser("bench.peers.flops", __doc__)
    parser.add_argument("--checkouts", type=Path, required=True, help="folder with the peers' checkouts")
    parser.add_argument("--recipe", default="speedrun94")
    add_save_option(parser)
    arguments = parser.parse_args()
    ours = count_recipe(get_recipe(arguments.recipe), _TRAIN_IMAGES, _TEST_IMAGES)
    counts = {f"fastcifar {arguments.recipe}": (float(ours.training_flop), float(ours.evaluation_flop))}
    for name, training in TRAININGS.items():
        counts[name] = count_peer(training, arguments.checkouts)
    for name, (training_flop, evaluation_flop) in counts.items():
        together = training_flop + evaluation_flop
        print(
            f"{name:24s} training {training_flop:.3e}  evaluation {evaluation_flop:.2e}  together {together:.3e} FLOP"
        )
    if arguments.save:
        totals = {name: sum(flop) for name, flop in counts.items()}
        mine = f"fastcifar {arguments.recipe}"
        others = ", ".join(f"{name} {totals[name]:.2e}" for name in TRAININGS)
        append(
            arguments.save,
            {
                "what": f"operations of a whole `{arguments.recipe}`, evaluation included, by our own count",
                "value": f"{totals[mine]:.2e} FLOP ({others})",
                "n": 1,
                "spread": "exact",
                "command": "python -m bench.peers.flops --checkouts DIR",
                "counts": {name: {"training": flop[0], "evaluation": flop[1]} for name, flop in counts.items()},
            },
            "cpu",
        )
    return 0


if __name__ == "__main__":
    run_program("bench.peers.flops", main)
