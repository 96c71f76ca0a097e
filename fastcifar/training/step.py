"""One training step as a function of tensors on the device alone, so that a CUDA graph of it can be replayed."""

from __future__ import annotations

import torch

from fastcifar.data import Dataset, EpochPlan
from fastcifar.kernels import augment, cross_entropy
from fastcifar.optim import SGD, FlatModel, TorchOptimizer
from fastcifar.recipes import Recipe


class TrainingStep:
    """Augment, forward, backward, optimiser and moving average of one batch; call it `steps_per_epoch` times after each
    `begin_epoch`.

    Which batch comes next, the learning rate and the metrics are read from and written to the device: `losses`, float32
    `[steps_per_epoch]`, summed over each batch, and `correct`, int64 `[1]`, the right answers of the epoch so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        flat: FlatModel,
        optimizer: SGD | TorchOptimizer,
        steps_per_epoch: int,
    ) -> None:
        self.recipe, self.dataset, self.flat, self.optimizer = recipe, dataset, flat, optimizer
        device = dataset.train.device
        self.losses = torch.zeros(steps_per_epoch, device=device)
        self.correct = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._places = torch.arange(recipe.batch_size, device=device)
        self._plan: EpochPlan | None = None

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Take the choices of a new epoch, copied into the buffers that a captured step reads, and clear the
        metrics."""
        if self._plan is None:
            self._plan = plan.to(self.losses.device)
        else:
            self._plan.copy_(plan)
        for tensor in (self.losses, self.correct, self._position):
            tensor.zero_()
        self.flat.model.train()

    def __call__(self) -> None:
        recipe, data, flat = self.recipe, self.dataset, self.flat
        batch = self._plan.take(self._position * recipe.batch_size + self._places)
        images = augment(
            data.train.images,
            batch.indices,
            batch.offsets,
            batch.flips,
            batch.cutouts,
            mean=data.mean,
            std=data.std,
            out_dtype=flat.dtype,
        )
        flat.zero_grad()
        labels = data.train.labels[batch.indices]
        loss, correct = cross_entropy(flat.model(images), labels, recipe.label_smoothing)
        loss.backward()
        self.optimizer.step()
        self.losses.index_copy_(0, self._position, loss.detach().float().view(1))
        self.correct.add_(correct)
        self._position.add_(1)
