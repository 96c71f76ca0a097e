"""How long a network remembers its images: what limits the learning rate of small batches (Page, How to train your
ResNet 2: Mini-batches, 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from fastcifar.diagnose.diagnosis import Diagnosis, Found, known
from fastcifar.diagnose.snapshot import Snapshot
from fastcifar.host import TORCH
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.record import EpochRow
from fastcifar.report import Figure, Line

if TYPE_CHECKING:
    from fastcifar.data import Split
    from fastcifar.training.train import Trainer

PARTS = 4
"""The parts of an epoch whose images are looked at apart."""
_BATCH = 512


@dataclass(frozen=True, eq=False, repr=False)
class Forgetting(Found):
    """Log-loss on training images by the time since they were trained on, and on fresh ones, in nats.

    Images are not augmented, and batch norms are in training mode. An epoch's images, in the order in which it visits
    them, are `PARTS` parts, of which the newest was trained on last; before the first step there are none, and a part
    with fewer images than a ghost batch has NaN. A network with members of orders of their own has the first one's.
    """

    kind: ClassVar[str] = "forgetting"
    axes: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **Found.axes,
        "rate": ("moments",),
        "age": ("moments", PARTS),
        "seen": ("moments", PARTS),
        "fresh": ("moments",),
    }
    rate: np.ndarray
    """float64 `[M]`: the optimizer's learning rate of weights in the last step."""
    age: np.ndarray
    """float64 `[M, PARTS]`: images trained on since an image of a part was, itself counted, on average; the newest part
    first."""
    seen: np.ndarray
    """float64 `[M, PARTS]`: mean log-loss on a part."""
    fresh: np.ndarray
    """float64 `[M]`: mean log-loss on images of the test split, which are never trained on."""

    @property
    def forgotten(self) -> np.ndarray:
        """What the network has lost of an image in most of an epoch: the mean log-loss on the oldest part less that on
        the newest, float64 `[M]`. `fresh` less that on the newest is what there is to lose."""
        return self.seen[:, -1] - self.seen[:, 0]

    def figures(self) -> dict[str, Figure]:
        steps = self.steps.tolist()
        named = {"last quarter": self.seen[:, 0], "first quarter": self.seen[:, -1], "fresh": self.fresh}
        lines = (Line(steps, known(values), color, name) for color, (name, values) in enumerate(named.items()))
        age = self.age[-1].tolist()
        by_age = (Line(age, known(self.seen[-1]), 0, "seen"), Line(age, known(self.fresh[[-1] * PARTS]), 2, "fresh"))
        loss = "log-loss (nats)"
        return {
            "loss": Figure("step", loss, tuple(lines), title="Log-loss on seen and on fresh images"),
            "age": Figure(
                "images trained on since", loss, by_age, title="Log-loss by the time since an image was seen"
            ),
        }


class DiagnoseForgetting(Diagnosis[Forgetting]):
    """A listener that measures how the loss on training images grows again: `forgetting.found` is `Forgetting`.

    images: how many images of each part of an epoch the loss is of, spread evenly over it; and `PARTS` times as many
        fresh ones, the first that have labels. Fewer, where there are fewer.

    It looks before the first step and at the ends of epochs, with a network of its own: a forward pass of all these
    images. The other arguments are those of `Diagnosis`. Raises UserError for a number out of range.
    """

    found_class = Forgetting
    fewest = 1  # before the first step nothing was learned

    def __init__(self, file: str | Path | None = None, moments: int = 32, images: int = 1024) -> None:
        super().__init__(file, moments)
        self.images = checked("images", images, int, Declaration(at_least=1))

    @TORCH.applied()
    def on_start(self, trainer: Trainer) -> None:
        self._trainer, self._snapshot = trainer, Snapshot(trainer, _BATCH)
        for norm in self._snapshot.norms:
            norm.track_running_stats = False  # the statistics of the batch, which are not kept
        test = trainer.dataset.test
        self._fresh = test.labeled.nonzero().flatten()[: PARTS * self.images]
        self.begin(trainer, (), images=self.images, fresh=len(self._fresh))
        self._dues = {*self.dues(trainer.timeline)}
        if not self._found:
            unknown = np.full(PARTS, np.nan)
            with self._snapshot.loaded():
                self.note(
                    trainer.state.step, rate=np.nan, age=unknown, seen=unknown, fresh=self._loss(test, self._fresh)
                )

    @TORCH.applied()
    def on_epoch(self, row: EpochRow) -> None:
        trainer, step = self._trainer, self._trainer.state.step
        if step not in self._dues or step == self._found[-1][0] or trainer.state.visited is None:
            return
        visits = trainer.state.visited.flip(0)
        places = torch.arange(len(visits), device=visits.device)
        parts = [_spread(part, self.images) for part in places.tensor_split(PARTS)]
        with self._snapshot.loaded():
            seen = [self._loss(trainer.dataset.train, visits[part]) for part in parts]
            fresh = self._loss(trainer.dataset.test, self._fresh)
        age = [part.double().mean().item() + 1 for part in parts]
        rate = trainer.state.optimizer.learning_rate(step - 1)
        self.note(step, rate=rate, age=np.array(age), seen=np.array(seen), fresh=fresh)

    @torch.no_grad()
    def _loss(self, split: Split, places: torch.Tensor) -> float:
        """Return the mean log-loss on the images at `places`, but for those that do not fill a ghost batch; NaN for one
        alone, of which a norm may know no variance."""
        snapshot, total = self._snapshot, 0.0
        count = len(places) - len(places) % snapshot.whole
        if count < 2:
            return np.nan
        # As many in each pass, as norms take the statistics of its images.
        wholes = places[:count].view(-1, snapshot.whole)
        for part in wholes.tensor_split(-(-count // len(snapshot))):
            batch, labels = snapshot.take(split, part.flatten())
            total += F.cross_entropy(snapshot.network(batch).float(), labels, reduction="sum").item()
        return total / count


def _spread(places: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` of `places`, evenly spread; all where there are no more."""
    if len(places) <= count:
        return places
    return places[torch.linspace(0, len(places) - 1, count, device=places.device, dtype=torch.float64).round().long()]
