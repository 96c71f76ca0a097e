"""One training step as a function of tensors on the device alone, so that a CUDA graph of it can be replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import record_function

from fastcifar.data import Dataset, EpochPlan
from fastcifar.kernels import cross_entropy_step
from fastcifar.optim import FlatModel, FlatOptimizer
from fastcifar.recipes import Recipe

PART = "fastcifar: "
"""What the names of a step's parts begin with in a profile."""


class TrainingStep:
    """Augment, forward, backward, optimiser and moving average of one batch; call it `steps_per_epoch` times after each
    `begin_epoch`.

    Which batch comes next, the learning rate and the metrics are read from and written to the device: `losses`, float32
    `[steps_per_epoch]`, summed over each batch; `correct`, int64 `[1]`, the right answers of the epoch so far; and
    `image_losses`, float32 `[N]`, the loss of every training image at its last visit, infinite before the first (None
    where the recipe selects nothing by it). `steps_per_epoch` is that of the longest epoch.
    `network` is what is called in place of `flat.model`, such as that model compiled.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        flat: FlatModel,
        optimizer: FlatOptimizer,
        steps_per_epoch: int,
        network: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.recipe, self.dataset, self.flat, self.optimizer = recipe, dataset, flat, optimizer
        self._network = network or flat.model
        device = dataset.train.device
        self.losses = torch.zeros(steps_per_epoch, device=device)
        self.correct = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        selects = recipe.select.keep < 1
        self.image_losses = torch.full((len(dataset.train),), torch.inf, device=device) if selects else None
        self._plan: EpochPlan | None = None
        self._size = 0

    def reset(self) -> None:
        """Forget the losses of the images, as before a training."""
        if self.image_losses is not None:
            self.image_losses.fill_(torch.inf)

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Take the choices of a new epoch, copied into the buffers that a captured step reads, and clear the metrics.
        The first plan is one of all images; the size of its crops is fixed in a step that is captured."""
        if self._plan is None:
            self._plan = plan.to(self.losses.device)
        else:
            self._plan.copy_(plan)
        self._size = plan.size
        for tensor in (self.losses, self.correct, self._position):
            tensor.zero_()
        self.flat.model.train()

    def __call__(self) -> None:
        recipe, train, flat, plan = self.recipe, self.dataset.train, self.flat, self._plan
        batch = plan.batch(self._position, recipe.batch_size)
        with record_function(PART + "augment"):
            images = batch.augment(
                train.images, mean=self.dataset.mean, std=self.dataset.std, dtype=flat.dtype, size=self._size
            )
        with record_function(PART + "forward"):
            logits = self._network(images, scaled=False)
            gradient = cross_entropy_step(
                *(logits, train.labels, plan.indices, batch.position, self.losses, self.correct, self.image_losses),
                smoothing=recipe.label_smoothing,
                scale=flat.model.logit_scale,
            )
        with record_function(PART + "backward"):
            flat.backward(logits, gradient, halfway=self._step_above)
        with record_function(PART + "optimiser"):
            self.optimizer.step()

    def _step_above(self, copy_gradients: Callable[[], None]) -> None:
        with record_function(PART + "optimiser"):
            self.optimizer.step_above(copy_gradients)
