"""One training step, a function of device tensors alone, so that a CUDA graph of it can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.profiler import record_function

from fastcifar.data import Dataset, EpochPlan
from fastcifar.data.feed import Feed
from fastcifar.data.plan import checked_batch
from fastcifar.kernels import cross_entropy_step
from fastcifar.models import Network
from fastcifar.optim import FlatOptimizer
from fastcifar.recipes import Recipe
from fastcifar.training.loss import Loss, LossScale, loss_step
from fastcifar.training.timeline import Stage

PART = "fastcifar: "
"""The beginning of the names of a step's parts in a profile."""

Transform = Callable[[torch.Tensor], torch.Tensor]
"""A function of images `[B, 3, H, W]`, normalized, in the compute type, that returns as many images."""


class EpochTensors:
    """The device tensors that steps read and write in an epoch.

    plan: the epoch's, in its first rows.
    position: int64 `[1]`, the next batch's number.
    losses: float32 `[steps]`, of the epoch's steps, summed over each batch.
    correct: int64 `[1]`, right answers so far.
    image_losses: float32 `[N]`, of every training image at its last visit, infinite before the first; None where the
        recipe selects nothing by it.
    visit_counts: int32 `[N]`, the visits of every training image, with those of the epoch; None where flips do not
        depend on it.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, steps_per_epoch: int) -> None:
        count, device = len(dataset.train), dataset.train.device
        self.plan = EpochPlan.empty(count, recipe.augment, dataset.train.side, device, recipe.transforms, recipe.mix)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(steps_per_epoch, dtype=torch.float32, device=device)
        self.correct = torch.zeros(1, dtype=torch.int64, device=device)
        unknown = {"fill_value": torch.inf, "dtype": torch.float32, "device": device}
        self.image_losses = torch.full((count,), **unknown) if recipe.select.keep < 1 else None
        by_visit = recipe.augment.flip == "by-visit"
        self.visit_counts = torch.zeros(count, dtype=torch.int32, device=device) if by_visit else None

    def reset(self) -> None:
        """Forget the losses and the visits of the images, as before a training."""
        if self.image_losses is not None:
            self.image_losses.fill_(torch.inf)
        if self.visit_counts is not None:
            self.visit_counts.zero_()

    def begin(self, plan: EpochPlan) -> None:
        """Copy the plan of a new epoch into the buffers that a captured step reads, and clear the metrics."""
        self.plan.copy_(plan)
        for tensor in (self.losses, self.correct, self.position):
            tensor.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, with the plan's; not copies."""
        everything = {**vars(self.plan), **vars(self)}
        return {name: tensor for name, tensor in everything.items() if isinstance(tensor, torch.Tensor)}


class TrainingStep:
    """Augmentation, forward pass, backward pass, optimizer and moving average for the next batch; called with a stage.

    recipe, dataset: the batch size, the loss and the augmentation; the images.
    network: computes the logits.
    optimizer: updates the network.
    tensors: hold the plan and the next batch's number, and take the metrics.
    compiled: called in place of `network`.
    loss: takes the place of the smoothed cross-entropy.
    transform: is applied to each batch after the recipe's augmentation.
    loss_scale: scales the gradients.
    feed: holds the batch's images where the training images do not lie on the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        network: Network,
        optimizer: FlatOptimizer,
        tensors: EpochTensors,
        *,
        compiled: Callable[..., torch.Tensor] | None = None,
        loss: Loss | None = None,
        transform: Transform | None = None,
        loss_scale: LossScale | None = None,
        feed: Feed | None = None,
    ) -> None:
        self.recipe, self.dataset, self.optimizer, self.tensors = recipe, dataset, optimizer, tensors
        self._network, self._logit_scale = compiled or network, network.logit_scale
        self._transform, self._loss_scale, self._feed = transform, loss_scale, feed
        # The kernel rounds gradients to the compute type before they could be scaled, and takes one label an image.
        in_float32 = partial(F.cross_entropy, reduction="none", label_smoothing=recipe.label_smoothing)
        self._loss = loss or (in_float32 if loss_scale or recipe.mix.active else None)

    def __call__(self, stage: Stage) -> None:
        recipe, train, flat = self.recipe, self.dataset.train, self.optimizer.flat
        plan, position, losses = self.tensors.plan, self.tensors.position, self.tensors.losses
        if stage.part:  # a last batch that is not full, at a known place
            start, stop = stage.part
            batch, position = plan.rows(start, stop).batch(0, stop - start), torch.zeros_like(position)
            losses = losses[start // stage.batch :]
        else:
            batch = plan.batch(position, stage.batch)

        with record_function(PART + "augment"):
            normalization = {"mean": self.dataset.mean, "std": self.dataset.std}
            changes, images = (batch.alone(), self._feed.images) if self._feed else (batch, train.images)
            images = changes.augment(images, **normalization, dtype=flat.dtype, size=stage.size)
            if self._transform:
                images = checked_batch(self._transform(images), images, "augment", sides=False)
            images, mixed = batch.mix(images, train.labels)

        with record_function(PART + "forward"):
            logits = self._network(images, scaled=False)
            metrics = position, losses, self.tensors.correct, self.tensors.image_losses
            # Optimizers divide by the images of a full batch.
            gradient_scale = recipe.batch_size / batch.images * (self._loss_scale.scale if self._loss_scale else 1)
            if self._loss:
                gradient = loss_step(
                    *(self._loss, logits, batch.labels(train.labels), batch.indices, *metrics),
                    scale=self._logit_scale,
                    gradient_scale=gradient_scale,
                    mixed=mixed,
                )
            else:
                gradient = cross_entropy_step(
                    *(logits, train.labels, batch.plan.indices, *metrics),
                    smoothing=recipe.label_smoothing,
                    scale=self._logit_scale,
                )
                if gradient_scale != 1:
                    gradient.mul_(gradient_scale)

        with record_function(PART + "backward"):
            flat.backward(logits, gradient, halfway=self._step_above)
        with record_function(PART + "optimizer"):
            if self._loss_scale:
                self._loss_scale.step(self.optimizer)
            else:
                self.optimizer.step()

    def _step_above(self, copy_gradients: Callable[[], None]) -> None:
        with record_function(PART + "optimizer"):
            if self._loss_scale:  # whether all gradients are finite is not known yet
                copy_gradients()
            else:
                self.optimizer.step_above(copy_gradients)
