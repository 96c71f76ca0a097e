"""`Snapshot`: a network of its own with the present weights of a training, and a fixed batch, to be measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fastcifar.errors import UserError
from fastcifar.host import TURN, is_ours
from fastcifar.kernels import plain_batch
from fastcifar.models import OwnNetwork, memory_format

if TYPE_CHECKING:
    from fastcifar.data import Split
    from fastcifar.training.train import Trainer


class Snapshot:
    """A copy of the network that `trainer` trains, in float32 and training mode but for dropout, and the first `images`
    of its training images, not augmented; fewer, where there are fewer or ghost batches do not divide them.

    network, batch, labels: these.
    norms: the batch norms that take the statistics of their batch.
    whole: the images of a ghost batch; of several kinds, of the least number that all of them divide.

    Raises UserError where the images do not fill a ghost batch.
    """

    def __init__(self, trainer: Trainer, images: int) -> None:
        self._trainer, data = trainer, trainer.dataset
        self.network = trainer.new_network(trainer.state.seed).to(trainer.device)
        for module in self.network.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        batch_norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        self.norms = [norm for norm in batch_norms if norm.track_running_stats and norm.training]
        ghosts = [getattr(module, "ghost_batch", 0) or 1 for module in self.network.modules()]
        count, self.whole = min(images, len(data.train)), math.lcm(*ghosts)
        if count < self.whole:
            raise UserError(f"the diagnosis has {count} images; allowed: {self.whole}, a ghost batch, or more")
        indices = torch.arange(count - count % self.whole, device=trainer.device)
        self.batch, self.labels = self.take(data.train, indices)

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, split: Split, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images at `places`, int64 `[N]`, of `split`, normalized, and their labels."""
        data = self._trainer.dataset
        batch = plain_batch(*split.at(places), data.mean, data.std, torch.float32)
        return batch.contiguous(memory_format=memory_format(self.network)), split.labels[places]

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters that train at first, by their names in `network`; the same memory, without a gradient."""
        return {name: each.detach() for name, each in self.network.named_parameters() if each.requires_grad}

    def loss(self, parameters: Mapping[str, torch.Tensor], images: int | None = None) -> torch.Tensor:
        """Return the mean loss of the first `images`, by default all, with `parameters` in place of the network's own:
        the recipe's cross-entropy with label smoothing, as a loss of the user's own is not looked at."""
        logits = functional_call(self.network, dict(parameters), (self.batch[:images],))
        smoothing = self._trainer.recipe.label_smoothing
        return F.cross_entropy(logits, self.labels[:images].clamp(min=0), label_smoothing=smoothing)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Load the present weights; the program's random numbers are as before after the block."""
        device = self._trainer.device
        draws = isinstance(self.network, OwnNetwork) or not is_ours(type(self.network))
        devices = [device] if device.type == "cuda" else []
        with TURN if draws else contextlib.nullcontext(), torch.random.fork_rng(devices, enabled=draws):
            module = self.network.module
            module.load_state_dict({**module.state_dict(), **self._trainer.state.flat.state_dict()})
            yield
