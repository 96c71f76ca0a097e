"""One training step as a function of tensors on the device alone, so that a CUDA graph of it can be replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import record_function

from fastcifar.data import Dataset, EpochPlan
from fastcifar.errors import UserError
from fastcifar.kernels import cross_entropy_step
from fastcifar.models import Network
from fastcifar.optim import FlatModel, FlatOptimizer
from fastcifar.recipes import Recipe
from fastcifar.training.loss_scale import LossScale
from fastcifar.training.timeline import Stage

PART = "fastcifar: "
"""What the names of a step's parts begin with in a profile."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of logits, float32 `[B, classes]`, and labels, int64 `[B]`: the mean loss, or each image's, `[B]`."""

Transform = Callable[[torch.Tensor], torch.Tensor]
"""Of images `[B, 3, H, W]`, normalised, in the compute type: as many images in it."""


class EpochTensors:
    """What steps read and write on the device in the course of an epoch.

    `plan`: the epoch's, in its first rows; `position`: int64 `[1]`, the next batch's number; `losses`: float32
    `[steps]`, those of its steps, summed over each batch; `correct`: int64 `[1]`, its right answers so far; and
    `image_losses`: float32 `[N]`, the loss of every training image at its last visit, infinite before the first (None
    where the recipe selects nothing by it).
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, steps_per_epoch: int) -> None:
        count, device = len(dataset.train), dataset.train.device
        self.plan = EpochPlan.empty(count, recipe.augment, dataset.train.images.shape[1], device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(steps_per_epoch, device=device)
        self.correct = torch.zeros(1, dtype=torch.int64, device=device)
        self.image_losses = torch.full((count,), torch.inf, device=device) if recipe.select.keep < 1 else None

    def reset(self) -> None:
        """Forget the losses of the images, as before a training."""
        if self.image_losses is not None:
            self.image_losses.fill_(torch.inf)

    def begin(self, plan: EpochPlan) -> None:
        """Take the choices of a new epoch, into the buffers that a captured step reads, and clear the metrics."""
        self.plan.copy_(plan)
        for tensor in (self.losses, self.correct, self.position):
            tensor.zero_()


class TrainingStep:
    """Augment, forward, backward, optimiser and moving average of the next batch of `tensors`: call it with the stage.

    Which batch comes next, the learning rate and the metrics are read from and written to the device. `network` is what
    is called, such as `model` compiled; `loss` stands in for the smoothed cross-entropy, and `transform` is applied to
    each batch after the recipe's augmentation.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        model: Network,
        flat: FlatModel,
        optimizer: FlatOptimizer,
        tensors: EpochTensors,
        *,
        network: Callable[..., torch.Tensor] | None = None,
        loss: Loss | None = None,
        transform: Transform | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.recipe, self.dataset, self.flat, self.optimizer, self.tensors = recipe, dataset, flat, optimizer, tensors
        self._model, self._network = model, network or model
        self._loss, self._transform, self._loss_scale = loss, transform, loss_scale

    def __call__(self, stage: Stage) -> None:
        recipe, data, now, flat = self.recipe, self.dataset, self.tensors, self.flat
        position, losses, batch = now.position, now.losses, now.plan.batch(now.position, recipe.batch_size)
        if stage.part:  # a last batch that is not full, whose place is known
            start, stop = stage.part
            position, losses = torch.zeros_like(position), losses[start // recipe.batch_size :]
            batch = now.plan.rows(start, stop).batch(0, stop - start)
        with record_function(PART + "augment"):
            images = batch.augment(
                data.train.images, mean=data.mean, std=data.std, dtype=flat.dtype, size=stage.size
            ).contiguous(memory_format=self._memory_format)
            if self._transform:
                images = self._transform(images)
        with record_function(PART + "forward"):
            logits = self._network(images, scaled=False)
            metrics = (position, losses, now.correct, now.image_losses)
            if self._loss:
                labels = batch.labels(data.train.labels)
                gradient = loss_step(self._loss, logits, labels, *metrics, batch.indices, self._model.logit_scale)
            else:
                gradient = cross_entropy_step(
                    *(logits, data.train.labels, batch.plan.indices, *metrics),
                    smoothing=recipe.label_smoothing,
                    scale=self._model.logit_scale,
                )
        if stage.part:  # an optimiser divides by the images of a full batch
            gradient.mul_(recipe.batch_size / len(images))
        if self._loss_scale:
            self._loss_scale.step(self.flat, self.optimizer, logits, gradient)
            return
        with record_function(PART + "backward"):
            flat.backward(logits, gradient, halfway=self._step_above)
        with record_function(PART + "optimiser"):
            self.optimizer.step()

    def _step_above(self, copy_gradients: Callable[[], None]) -> None:
        with record_function(PART + "optimiser"):
            self.optimizer.step_above(copy_gradients)
