"""One training step, a function of device tensors alone, so that a CUDA graph of it can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.profiler import record_function

from fastcifar.data import Dataset, EpochPlan
from fastcifar.data.feed import Feed
from fastcifar.data.host_loader import HostLoader
from fastcifar.data.plan import Batch, Mixed, checked_batch
from fastcifar.kernels import cross_entropy_step
from fastcifar.models import Network
from fastcifar.optim import FlatOptimizer
from fastcifar.recipes import Recipe
from fastcifar.training.features import FrozenFeatures
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
    others: the same for each further output of a network of several `outputs`, on the first one's plan unless outputs
        have orders of their own.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        steps_per_epoch: int,
        outputs: int = 1,
        plan: EpochPlan | None = None,
    ) -> None:
        count, side, device = len(dataset.train), dataset.train.side, dataset.train.device
        self.plan = plan or EpochPlan.empty(count, recipe.augment, side, device, recipe.transforms, recipe.mix)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(steps_per_epoch, dtype=torch.float32, device=device)
        self.correct = torch.zeros(1, dtype=torch.int64, device=device)
        unknown = {"fill_value": torch.inf, "dtype": torch.float32, "device": device}
        self.image_losses = torch.full((count,), **unknown) if recipe.select.keep < 1 else None
        by_visit = recipe.augment.flip == "by-visit"
        self.visit_counts = torch.zeros(count, dtype=torch.int32, device=device) if by_visit else None
        shared = self.plan if recipe.ensemble.orders == 1 else None
        further = (recipe, dataset, steps_per_epoch, 1, shared)
        self.others = [EpochTensors(*further) for _ in range(outputs - 1)]

    @property
    def every(self) -> list[EpochTensors]:
        """These, and those of all further outputs."""
        return [self, *self.others]

    def reset(self) -> None:
        """Forget the losses and the visits of the images, as before a training."""
        for each in self.every:
            if each.image_losses is not None:
                each.image_losses.fill_(torch.inf)
            if each.visit_counts is not None:
                each.visit_counts.zero_()

    def begin(self, plan: EpochPlan, *others: EpochPlan) -> None:
        """Copy the plan of a new epoch into the buffers that a captured step reads, and clear the metrics. `others`:
        the plans of further outputs; without them all have the first."""
        plans = [plan, *(others or [plan] * len(self.others))]
        for each, own in zip(self.every, plans, strict=True):
            each.plan.copy_(own)
            for tensor in (each.losses, each.correct):
                tensor.zero_()
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first batch."""
        for each in self.every:
            each.position.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, with the plan's; not copies. Names of a further output begin with its number."""
        everything = {**vars(self.plan), **vars(self)}
        state = {name: tensor for name, tensor in everything.items() if isinstance(tensor, torch.Tensor)}
        for number, each in enumerate(self.others, start=1):
            state |= {f"{number}.{name}": tensor for name, tensor in each.state().items()}
        return state


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
    features: what the classifier takes, in place of images, where it alone is computed.
    feed: holds the batch's images where the training images do not lie on the device, or are changed on the host.
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
        feed: Feed | HostLoader | None = None,
        features: FrozenFeatures | None = None,
    ) -> None:
        self.recipe, self.dataset, self.optimizer, self.tensors = recipe, dataset, optimizer, tensors
        self._network: Callable[..., torch.Tensor] = features.logits if features else compiled or network
        self._features, self._logit_scale = features, network.logit_scale
        self._outputs, self._loss_weights = network.outputs, network.loss_weights
        self._transform, self._loss_scale, self._feed = transform, loss_scale, feed
        # The kernel rounds gradients to the compute type before they could be scaled, and takes one label an image.
        in_float32 = partial(F.cross_entropy, reduction="none", label_smoothing=recipe.label_smoothing)
        self._loss = loss or (in_float32 if loss_scale or recipe.mix.active else None)

    def __call__(self, stage: Stage) -> None:
        outputs, orders = self.tensors.every, self.recipe.ensemble.orders
        batches = [_batch(each, stage) for each in outputs]  # each reads a position of its own, which its loss moves
        with record_function(PART + "augment"):
            drawn = [self._images(batch, stage.size) for batch in batches[:orders]]
            images = drawn[0][0] if orders == 1 else torch.cat([own for own, _ in drawn])
            mixed = [with_what for _, with_what in drawn]

        with record_function(PART + "forward"):
            if self._outputs == 1:
                logits = self._network(images, scaled=False)
                gradient = self._gradient(logits, batches[0], self.tensors, stage, mixed[0])
            else:
                logits, weights = self._network(images, every=True), self._loss_weights()
                gradients = [
                    self._gradient(logits[place], batch, each, stage, mixed[place % orders], weights[place])
                    for place, (batch, each) in enumerate(zip(batches, outputs, strict=True))
                ]
                gradient = torch.stack(gradients)

        with record_function(PART + "backward"):
            self.optimizer.flat.backward(logits, gradient, halfway=self._step_above)
        with record_function(PART + "optimizer"):
            if self._loss_scale:
                self._loss_scale.step(self.optimizer)
            else:
                self.optimizer.step()

    def images(self, stage: Stage) -> torch.Tensor:
        """Return the images of the next batch as the network takes them, `[B, 3, H, W]`, normalized; where outputs have
        orders of their own, those of the first."""
        return self._images(_batch(self.tensors, stage), stage.size)[0]

    def _images(self, batch: Batch, size: int) -> tuple[torch.Tensor, Mixed | None]:
        """Return the images of a batch, and what they are mixed with."""
        if self._features:
            return self._features.images(batch.indices), None
        train, normalization = self.dataset.train, {"mean": self.dataset.mean, "std": self.dataset.std}
        feed, dtype = self._feed, self.optimizer.flat.dtype
        if isinstance(feed, HostLoader):
            images = feed.images[: batch.images].to(dtype, memory_format=torch.channels_last)
            images = batch.transform(images, **normalization)
        else:
            changes, images = (batch.alone(), feed.images) if feed else (batch, train.images)
            images = changes.augment(images, **normalization, dtype=dtype, size=size)
        if self._transform:
            images = checked_batch(self._transform(images), images, "augment", sides=False)
        return batch.mix(images, train.labels)

    def _gradient(
        self,
        logits: torch.Tensor,
        batch: Batch,
        tensors: EpochTensors,
        stage: Stage,
        mixed: Mixed | None,
        weight: float | torch.Tensor = 1.0,
    ) -> torch.Tensor:
        """Return `weight` times the gradient of the loss at the `logits` `[B, classes]` of `batch`, and note the
        metrics."""
        labels, smoothing = self.dataset.train.labels, self.recipe.label_smoothing
        start, position = (stage.part[0], torch.zeros_like(tensors.position)) if stage.part else (0, tensors.position)
        metrics = position, tensors.losses[start // stage.batch :], tensors.correct, tensors.image_losses
        # Optimizers divide by the images of a full batch.
        scale = self.recipe.batch_size / batch.images * (self._loss_scale.scale if self._loss_scale else 1)
        scale *= weight if isinstance(weight, float) else 1
        if self._loss:
            gradient = loss_step(
                *(self._loss, logits, batch.labels(labels), batch.indices, *metrics),
                scale=self._logit_scale,
                gradient_scale=scale,
                mixed=mixed,
            )
        else:
            gradient = cross_entropy_step(
                *(logits, labels, batch.plan.indices, *metrics), smoothing=smoothing, scale=self._logit_scale
            )
            if scale != 1:
                gradient.mul_(scale)
        return gradient if isinstance(weight, float) else gradient.mul_(weight)

    def _step_above(self, copy_gradients: Callable[[], None]) -> None:
        with record_function(PART + "optimizer"):
            if self._loss_scale:  # whether all gradients are finite is not known yet
                copy_gradients()
            else:
                self.optimizer.step_above(copy_gradients)


def _batch(tensors: EpochTensors, stage: Stage) -> Batch:
    """Return the next batch of a plan: the full one at its position or, at a known place, a last one that is not."""
    if stage.part:
        start, stop = stage.part
        return tensors.plan.rows(start, stop).batch(0, stop - start)
    return tensors.plan.batch(tensors.position, stage.batch)
