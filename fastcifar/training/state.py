"""`TrainingState`: all that changes while a network trains."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fastcifar.data import Dataset, EpochPlan, hardest
from fastcifar.data.feed import Feed
from fastcifar.data.host_loader import HostLoader, told_of_workers
from fastcifar.data.kept import KeptSplit
from fastcifar.errors import UserError, is_out_of_memory
from fastcifar.models import Network
from fastcifar.optim import FlatOptimizer
from fastcifar.optim.flat import copy_tensors
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, recipe_from_dict
from fastcifar.recipes.text import leaves
from fastcifar.record import EpochRow
from fastcifar.training.average import WeightAverage
from fastcifar.training.history import History
from fastcifar.training.loss import LossScale
from fastcifar.training.plateau import Plateau
from fastcifar.training.processes import Processes
from fastcifar.training.random import RandomNumbers
from fastcifar.training.replacement import Replacement
from fastcifar.training.step import EpochTensors
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.timeline import Epoch, Timeline

if TYPE_CHECKING:
    from fastcifar.training.scoring import Best
    from fastcifar.training.train import Trainer


class TrainingState:
    """Everything that changes while a network trains, and nothing else: a training goes on from it as if it had never
    stopped, on a CPU bit for bit (the same machine and number of threads).

    seed: of all random choices.
    init: the start, as its `describe` says it.
    step: steps made.
    flat: weights, velocities, averages, running statistics.
    optimizer: its further state.
    average: the number of weights in the mean of the last ones.
    tensors: the epoch's plan and the place in it, its losses so far, losses and visits by image.
    visited: the places of the images of the last epoch that is over, in its order, int64 `[N]`; of members with orders
        of their own, the first's. None before one is over in this process.
    loss_scale: the factor of gradients.
    replacement: what replaces hidden units, if the recipe says so.
    plateau: what lowers the rate where the loss does not get better, if the schedule says so.
    history: the rows of the epochs that are over; listeners were told of the first `told`.
    stopwatch: `train_seconds` so far.
    random: torch's random numbers of the training.
    processes: the seconds of all processes so far, and where they went on.
    best: the weights of the best epoch; None: they are not kept.
    feed: reads the images where they do not lie on the device, or makes batches on the host where the recipe says so,
        and knows for how long steps waited for them; else None.

    Not in it: numpy's random numbers, and the state of a loss, transform or listener of the user's own.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        timeline: Timeline,
        optimizer: FlatOptimizer,
        random: RandomNumbers,
        phases: Phases,
        network: Network,
    ) -> None:
        self._recipe, self._dataset, self._timeline = recipe, dataset, timeline
        self._device = dataset.train.device
        self.flat, self.optimizer = optimizer.flat, optimizer
        self.tensors = EpochTensors(recipe, dataset, timeline.steps_per_epoch, network.outputs)
        self._reported = self.tensors.every[: network.reported_outputs or None]
        self.average = WeightAverage(self.flat)
        self.loss_scale = LossScale(recipe.loss_scaling, recipe.batch_size)
        self.plateau = Plateau(recipe, optimizer)
        self.replacement = Replacement(recipe, network, optimizer, timeline.total_steps)
        self.random, self.processes = random, Processes(phases)
        self._identity = _identity(recipe, dataset)
        if isinstance(dataset.train, KeptSplit) and recipe.ensemble.orders > 1:
            said = "ensemble.order is own, and the training images do not lie on the device"
            raise UserError(f"{said}; allowed: shared, or images that are on it (--resident device)")
        self.feed = _feed(recipe, dataset, max(epoch.stage.batch for epoch in timeline.epochs))
        self.best: Best | None = None
        self._restart(0, {})

    def begin(
        self,
        model: Network,
        seed: int,
        init: Mapping[str, object],
        seconds: float = 0.0,
        anchor: Network | None = None,
    ) -> None:
        """Start a training afresh in the same buffers, from the weights of `model`, on any device, which took
        `seconds` of training time; L2 Init pulls them toward those of `anchor`."""
        if anchor is not None:
            self.flat.load(anchor.module)
            self.optimizer.anchor()
        self.flat.load(model.module)
        self.optimizer.reset()
        self.average.reset()
        self.loss_scale.reset()
        self.plateau.reset()
        self.replacement.reset()
        self.tensors.reset()
        self.random.seed(seed)
        self.processes.begin()
        self._restart(seed, init)
        self.stopwatch = Stopwatch(self._device, seconds)

    def begin_epoch(self, epoch: Epoch) -> None:
        """Draw the plan of `epoch` into the buffers that a captured step reads, and clear the metrics. Nothing waits
        for the device: images are chosen there, by their present losses."""
        every, seeds = self.tensors.every, self._recipe.ensemble.order_seeds(self.seed)
        own = every if len(seeds) > 1 else [self.tensors]
        plans = []
        for tensors, seed in zip(own, seeds, strict=True):
            losses = None
            if epoch.visits is not None and tensors.image_losses is not None:
                alike = [each.image_losses for each in every if each.plan is tensors.plan]
                known = [each for each in alike if each is not None]
                losses = torch.stack(known).mean(0) if len(known) > 1 else tensors.image_losses
            plans.append(self._plan(epoch, seed, losses, tensors.visit_counts))
        self.tensors.begin(*plans)
        for tensors, plan in zip(own, plans, strict=True):
            if tensors.visit_counts is not None:
                tensors.visit_counts[plan.indices[: epoch.images]] += 1

    def _plan(
        self, epoch: Epoch, seed: int, losses: torch.Tensor | None, visit_counts: torch.Tensor | None
    ) -> EpochPlan:
        """Draw a plan of `epoch`, of the images with the highest `losses` where those are given."""
        train = self._dataset.train
        return EpochPlan.draw(
            len(train),
            self._recipe.augment,
            epoch.number,
            seed,
            image_size=train.side,
            size=epoch.stage.size,
            visited=None if losses is None or epoch.visits is None else hardest(losses, epoch.visits),
            visit_counts=visit_counts,
            transforms=self._recipe.transforms,
            mixing=self._recipe.mix,
            device=train.device,
        )

    def feed_epoch(self, epoch: Epoch) -> None:
        """Begin to read, or to make on the host, the images of the steps of `epoch` that are left, where they do not
        lie on the device; its plan is drawn."""
        if self.feed:
            size, first = epoch.stage.batch, max(0, self.step - epoch.first_step)
            starts = range(first * size, epoch.images, size)
            batches = ((start, min(start + size, epoch.images)) for start in starts)
            plan = self.tensors.plan.rows(0, epoch.images)
            if isinstance(self.feed, HostLoader):
                self.feed.begin(plan, batches, epoch.number, self.seed)
            else:
                self.feed.begin(plan.indices, batches, epoch.number)

    def next_images(self, epoch: Epoch) -> None:
        """Wait for the images of the next step, one of `epoch`, where they do not lie on the device."""
        if self.feed:
            if self.feed.epoch != epoch.number:
                self.feed_epoch(epoch)
            self.feed.next()

    @contextlib.contextmanager
    def feeding(self) -> Iterator[None]:
        """Let no image be read any more when the block ends: a training has no threads and processes before and after
        it."""
        try:
            with told_of_workers():
                yield
        finally:
            if self.feed:
                self.feed.end()

    def between_epochs(self, trainer: Trainer, epoch: Epoch) -> None:
        """Change the weights as is due after `epoch`, if another follows: no training ends on what has just changed."""
        self.replacement.end_step(trainer)
        if self._timeline.returns(epoch):
            self.flat.return_to_average()
        self.replacement.end_epoch(trainer, epoch)

    def end_epoch(self, epoch: Epoch) -> None:
        """Queue the copies of the metrics of `epoch` to the host; called within the stopwatch's block."""
        rate, lap = self.optimizer.learning_rate(epoch.end - 1), self.stopwatch.lap()
        losses, correct = self.tensors.losses, self.tensors.correct
        if len(self._reported) > 1:
            losses = torch.stack([each.losses for each in self._reported]).mean(0)
            correct = torch.stack([each.correct for each in self._reported]).sum(0)
        self.history.keep(epoch, losses, correct, rate, lap)
        self.visited = self.tensors.plan.indices[: epoch.images].clone()

    def row_so_far(self) -> EpochRow | None:
        """Return the row of the present epoch up to the last step or, where none of it is over, the last row. Within an
        epoch it waits for the device."""
        epoch = next((each for each in self._timeline.epochs if each.first_step < self.step < each.end), None)
        if epoch is None:
            return next(reversed(self.history.rows), None)
        steps, told = self.step - epoch.first_step, len(self._reported)
        images = steps * epoch.stage.batch
        loss = sum(each.losses[:steps].sum().item() for each in self._reported) / told / images
        accuracy = sum(each.correct.item() for each in self._reported) / told / images
        images += sum(each.images for each in self._timeline.epochs[: epoch.number])
        return EpochRow(epoch.number + 1, loss, accuracy, None, self.stopwatch.seconds, images=images)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything on the CPU, for `torch.save` and `load_state_dict`: tensors, numbers and words,
        and which training it is of. Waits for the device. Raises UserError before a training's `on_start`."""
        if not self.init:
            raise UserError("no training has begun; allowed: a training's state, from a listener's on_start on")
        rows = [dataclasses.asdict(row) for row in self.history.settle(wait=True)]
        state = {
            "of": self._identity,
            "seed": self.seed,
            "init": dict(self.init),
            "step": self.step,
            "dtype": str(self.flat.dtype).removeprefix("torch."),
            "flat": self.flat.training_state(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.average.count,
            "epoch": self.tensors.state(),
            "loss_scale": self.loss_scale.state_dict(),
            "plateau": self.plateau.state_dict(),
            "replacement": self.replacement.state_dict(),
            "history": rows,
            "told": self.told,
            "train_seconds": self.stopwatch.seconds,
            "random": self.random.state_dict(),
            "processes": self.processes.state_dict(),
            "waited_seconds": self.waited_seconds or 0.0,
            "best": self.best and self.best.state_dict(),
        }
        return _copied(state)

    def refuse_another(self, state: Mapping[str, Any]) -> None:
        """Raise UserError where a `state_dict` is of another recipe or other data."""
        with _fitting():
            whole = {
                "recipe": dataclasses.asdict(recipe_from_dict(state["of"]["recipe"]))
            }  # fields new since: defaults
            there, here = {**dict(leaves(whole)), **dict(leaves(state["of"]))}, dict(leaves(self._identity))
            for name in {**here, **there}:
                if there.get(name) != here.get(name):
                    raise UserError(f"{name} is {there.get(name)} there and {here.get(name)} here")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same recipe, data and network. Raises UserError where it is of another
        training, or damaged."""
        self.refuse_another(state)
        with _fitting():
            self._restart(operator.index(state["seed"]), state["init"])
            self.step = operator.index(state["step"])
            if not 0 <= self.step <= self._timeline.total_steps:
                raise ValueError(f"step is {self.step}; allowed: 0 to {self._timeline.total_steps}")
            self.optimizer.reset()  # after a step that was broken off
            self.flat.load_training_state(state["flat"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.count = state["averaged"]
            copy_tensors(state["epoch"], into=self.tensors.state())
            self.loss_scale.load_state_dict(state["loss_scale"])
            self.plateau.load_state_dict(state.get("plateau", {}))
            self.replacement.load_state_dict(state.get("replacement", {}))
            self.history.rows += [EpochRow(**row) for row in state["history"]]
            self.told = operator.index(state.get("told", len(self.history.rows)))
            self.stopwatch = Stopwatch(self._device, state["train_seconds"])
            self.random.seed(self.seed)  # on CUDA, for a state of a CPU
            self.random.load_state_dict(state["random"])
            self.processes.load_state_dict(state.get("processes", {}), self.step, self._device)
            if (self.best is None) != (state.get("best") is None):
                raise UserError("which weights it keeps, the last or the best, is another there")
            if self.best:
                self.best.load_state_dict(state["best"])
            if self.feed:
                self.feed.waited.reset(float(state.get("waited_seconds", 0.0)))

    @property
    def waited_seconds(self) -> float | None:
        """The seconds for which steps waited for their images; None where they are made of those on the device."""
        return self.feed.waited.seconds if self.feed else None

    def _restart(self, seed: int, init: Mapping[str, object]) -> None:
        self.seed, self.init, self.step, self.told = seed, init, 0, 0
        self.visited: torch.Tensor | None = None
        self.history = History(self._timeline, self._device, len(self._reported))
        self.stopwatch = Stopwatch(self._device)
        if self.feed:
            self.feed.end()
            self.feed.waited.reset()


def _feed(recipe: Recipe, dataset: Dataset, batch: int) -> Feed | HostLoader | None:
    train, mean, std = dataset.train, dataset.mean, dataset.std
    if recipe.loading.loader == "host":
        return HostLoader(train, recipe.loading, recipe.augment, batch, mean, std)
    return Feed(train, batch) if isinstance(train, KeptSplit) else None


def _identity(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return the facts that identify a training, besides seed, start and the user's own functions."""
    data = {"sha256": dataset.sha256, "holdout": dataset.holdout, "subset": dataset.subset, **dataset.changes}
    return {"recipe": dataclasses.asdict(recipe), "data": {**data, "train_size": len(dataset.train)}}


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    """Raise UserError for what is wrong with the state that is read."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        reason = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
        raise UserError(
            f"the training state does not fit: {reason}; allowed: one that the same recipe saved on the same data"
        ) from None


def _copied(value: Any) -> Any:
    """Return `value` with every tensor in it copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
