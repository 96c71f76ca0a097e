"""`train` and `Trainer`: the timed training, its loop on one screen.

`state.py` holds all that the loop changes, `step.py` one step, `rehearse.py` the preparation of the first one
(compiling, capture, warm-up), `begin.py` what it begins from, and `timeline.py` the differences between epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from fastcifar.catalogue import dataset_for
from fastcifar.data import Dataset, load_dataset, resolve_device
from fastcifar.data.residency import Resident, place_images
from fastcifar.host import TORCH
from fastcifar.models import Network
from fastcifar.models.modes import modes, restore
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.phases import Phases
from fastcifar.recipes import DEFAULT_RECIPE, Recipe, change, get_recipe
from fastcifar.recipes.declare import checked
from fastcifar.recipes.optimizers import OptimizerConfig
from fastcifar.start import ColdStart, Start
from fastcifar.training import begin, refusals
from fastcifar.training.checkpoint import Checkpoints
from fastcifar.training.compiled import CompiledNetwork
from fastcifar.training.device import cudnn_search, current, resolve_dtype
from fastcifar.training.failures import told
from fastcifar.training.features import FrozenFeatures
from fastcifar.training.listeners import Audience, Listener
from fastcifar.training.loss import Loss
from fastcifar.training.progress import showing
from fastcifar.training.random import random_numbers_of
from fastcifar.training.rehearse import rehearse, why_not_captured
from fastcifar.training.run import Run
from fastcifar.training.scoring import Best, Scoring
from fastcifar.training.state import TrainingState
from fastcifar.training.step import EpochTensors, TrainingStep, Transform
from fastcifar.training.timeline import Epoch, Stage, Timeline

_COLD = ColdStart()


@told
def train(
    recipe: Recipe | str | Path = DEFAULT_RECIPE,
    data: Dataset | str | PathLike[str] | None = None,
    *,
    seed: int = 0,
    model: Callable[[int], nn.Module] | None = None,
    loss: Loss | None = None,
    optimizer: str | OptimizerConfig | Callable[..., torch.optim.Optimizer] | None = None,
    augment: Transform | None = None,
    listeners: Sequence[Listener] = (),
    checkpoints: Checkpoints | str | Path | None = None,
    holdout: int = 0,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    resident: Resident = "auto",
    eval_every: int = 1,
    evaluate_at_start: bool = False,
    init: Start = _COLD,
    keep: Literal["last", "best"] = "last",
    progress: bool = False,
    **changes: Any,
) -> Run:
    """Train one network.

    recipe: a recipe, its name or the path of its TOML file.
    data: a dataset; or its name or path, for `load_dataset` with `data_dir`, whose images are resized where they are
        too small for alexnet; None: what the recipe's name, before `changes`, is made for, else CIFAR-10.
    seed: names all random choices: initial weights, order, crops, flips, and those of `model` and `augment`.
    model: a class or function of the number of classes that returns an `nn.Module` in place of the recipe's network:
        images `[N, 3, H, W]`, normalized, to logits `[N, classes]`. Plain torch layers train in bfloat16 and float16
        too; batch norm stays in float32. Its memory format is kept: with `.to(memory_format=torch.channels_last)`
        convolutions are faster. On a GPU it is captured while training, so it must not depend on values.
    loss: a function of logits, float32 `[B, classes]`, and labels, int64 `[B]`, that returns the mean loss or each
        image's; the recipe's label smoothing does not apply to it.
    optimizer: a kind, such as "Adam", or its configuration; or a class of torch's form, which gets the recipe's `lr`,
        `momentum` and `weight_decay`, or a function of the parameters. The recipe's schedule multiplies its rates.
    augment: a function of a batch of images `[B, 3, H, W]`, normalized and already changed by the recipe's
        augmentation, in the compute type, that returns as many images.
    holdout: evaluate on that many training images, which are then not trained on, in place of the test set.
    checkpoints: a folder, or `Checkpoints(folder, every=...)`, that keeps the state of a training of more than two
        minutes (or as `every` says) until it is finished: called again with it, `train` goes on from there.
    device, resident: see `Trainer` and `load_dataset`; "auto" leaves the images of a dataset in host memory or on disk.
    listeners, eval_every, evaluate_at_start, init, keep: see `Trainer.run`.
    progress: show a bar and a row for each epoch: in a terminal, in a notebook as a table; elsewhere the rows alone.
    changes: other values of fields by dotted names: `train("speedrun94", epochs=1, **{"optimizer.lr": 0.2})`.

    Raises UserError for bad input, NonFiniteLoss where the loss becomes NaN or infinite, and OutOfMemory.
    """
    phases, device, holdout = Phases(), resolve_device(device), checked("holdout", holdout, int)
    progress = checked("progress", progress, bool)
    recipe = get_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe
    data = dataset_for(recipe.name) if data is None else data
    if model is not None and hasattr(recipe.network, "ghost_batch"):  # the model groups its own batches
        recipe = change(recipe, {"network.ghost_batch": 0})
    optimizer = optimizer() if isinstance(optimizer, type) and issubclass(optimizer, OptimizerConfig) else optimizer
    if isinstance(optimizer, str | OptimizerConfig):
        recipe, optimizer = change(recipe, {"optimizer": optimizer}), None
    recipe = change(recipe, changes) if changes else recipe
    with phases("data"):
        if isinstance(data, str | PathLike):
            data = load_dataset(data, data_dir, device, holdout, None, resident)
            data = data if model else data.resize(recipe.network.side_for(data.train.side))
        elif isinstance(data, Dataset):
            data = data.hold_out(holdout) if holdout else data
            data = data if resident == "auto" else place_images(data, resident, device)
    trainer = Trainer(recipe, data, device, phases, model=model, loss=loss, optimizer=optimizer, augment=augment)
    asked = {"seed": seed, "eval_every": eval_every, "evaluate_at_start": evaluate_at_start, "init": init, "keep": keep}
    with showing(progress, listeners) as listening:
        if checkpoints is None:
            return trainer.run(listeners=listening, **asked)
        checkpoints = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints)
        return checkpoints.run(trainer, listeners=listening, **asked)


class Trainer:
    """A recipe, a dataset and a device, ready to train; each `run` trains from a seed in the same buffers.

    recipe, dataset: as in `train`, but not by name.
    device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".
    phases: counts the process's seconds; by default each run's, from the call of `run`.
    model, loss, optimizer, augment: as in `train`; an optimizer of a kind is the recipe's.

    On CUDA the first run captures the step after a few steps on random images, in one CUDA graph for each stage of the
    training (see `Timeline`), and runs whitening and evaluation on random images too. Where it cannot capture, one
    warning says why and the step runs uncaptured, as it always does with an optimizer of torch's.
    Raises UserError where the recipe does not fit the dataset or the device, and OutOfMemory.
    """

    @told
    @TORCH.applied()
    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: str | torch.device = "auto",
        phases: Phases | None = None,
        *,
        model: Callable[[int], nn.Module] | None = None,
        loss: Loss | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        augment: Transform | None = None,
    ) -> None:
        refusals.refuse_other_types(recipe, dataset)
        refusals.refuse_uncallable(loss=loss, augment=augment)
        self.recipe, self.phases, self._clocked = recipe, phases or Phases(), phases is None
        self.device = resolve_device(device)
        mean, std = recipe.normalize.mean or dataset.mean, recipe.normalize.std or dataset.std
        self.dataset = dataclasses.replace(dataset.to(self.device), mean=mean, std=std)
        self.own_model, self.own_loss, self._optimizer, self.own_augment = model, loss, optimizer, augment
        self._build(resolve_dtype(recipe.dtype, self.device))

    @TORCH.applied()
    def _build(self, dtype: torch.dtype) -> None:
        """Make all that depends on the compute type."""
        self.dtype, recipe = dtype, self.recipe
        self._scales = recipe.loss_scaling.dynamic and dtype == torch.float16
        with current(self.device), self.phases("model and optimizer"):
            self.network, self.evaluated = (self.new_network(seed=0).to(self.device) for _ in range(2))
            flat = FlatModel(self.network.module, dtype, wide_gradients=self._scales or recipe.l2_init > 0)
            self.flat_evaluated = FlatModel(self.evaluated.module, dtype)
            train, frozen_from = self.dataset.train, self.network.frozen_from
            self.timeline = Timeline(recipe, len(train), train.side, frozen_from)
            refusals.refuse_batches(self.network, recipe, self.timeline)
            self.features = None
            if recipe.frozen_mode == "once":
                refusals.refuse_for_features(self.network, self.own_augment)
                sizes = recipe.batch_size, recipe.evaluate.batch_size
                self.features = FrozenFeatures(self.network, self.dataset, dtype, *sizes)
            for name in frozen_from:
                flat.group_of(name).steps = self.timeline.steps_until_frozen(name)
            self.compiled = CompiledNetwork(self.network, self.device) if recipe.compile == "step" else None
            own = any(part is not None for part in (self.own_model, self.own_loss, self._optimizer, self.own_augment))
            random = random_numbers_of(self.network, recipe, self.device, own)
            facts = self.timeline, build_optimizer(flat, recipe, self.total_steps, self._optimizer), random
            self.state = TrainingState(recipe, self.dataset, *facts, self.phases, self.network)
        self._modes, self._has_average = modes(self.network), False
        self.step = self.new_step(self.dataset, self.state.tensors)
        self.replays: dict[Stage, Callable[[], None]] = {}
        self.not_captured = why_not_captured(self, self._scales)

    def __repr__(self) -> str:
        return f"Trainer({self.recipe!r}, {self.dataset!r}, {self.total_steps} steps)"

    def __reduce__(self) -> NoReturn:  # a copy's parameters would lie in flat buffers no more
        raise TypeError("a Trainer is not copied or pickled; allowed: a new one, and state.state_dict() to go on from")

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.timeline.total_steps

    @property
    def model(self) -> nn.Module:
        """The network that is trained, in the compute type; `Run.model` is the one that was evaluated."""
        return self.network.module

    @property
    def scoring(self) -> Scoring:
        """What evaluates its network; made at each use, as one that is kept would keep all buffers in a cycle."""
        return Scoring(self)

    @told
    def run(
        self,
        seed: int = 0,
        *,
        listeners: Sequence[Listener] = (),
        eval_every: int = 1,
        evaluate_at_start: bool = False,
        init: Start = _COLD,
        until_train_accuracy: float | None = None,
        keep: Literal["last", "best"] = "last",
        resume: Mapping[str, Any] | None = None,
    ) -> Run:
        """Train a network.

        seed: names all random choices.
        listeners: called in the course of it. On CUDA the host waits for the device where one has `on_step` or
            `on_epoch`, for evaluations and for `until_train_accuracy`; else the whole training is queued.
        eval_every: epochs from one evaluation to the next; the last epoch is always evaluated, with 0 no other.
        evaluate_at_start: evaluate before the first epoch too, as epoch 0 of the rows.
        init: the weights to begin with: fresh ones, or given ones by `WarmStart`, `ShrinkPerturb`, `Fire` or `Dash`.
        until_train_accuracy: end after the first epoch with this fraction of right answers while training (the rule of
            Ash and Adams 2020, with 0.99). Schedule and averages are laid out for all epochs of the recipe.
        keep: "best": end with the weights of the evaluated epoch that is the best by validation accuracy or, without a
            validation split, on the images that are tested on; `RunRecord.best_epoch` says which. "last": the last.
        resume: go on from this `state.state_dict()`, of any process, in place of `seed` and `init`; its dtype
            stays, but that CPUs have no float16.

        Raises NonFiniteLoss, OutOfMemory, and UserError where the initial weights or the state do not fit.
        """
        if self._clocked:
            self.phases.restart()
        seed, eval_every, evaluate_at_start, until_train_accuracy = refusals.checked_arguments(
            seed, eval_every, evaluate_at_start, until_train_accuracy, init, self.recipe, self.dataset
        )
        refusals.refuse_best(keep, eval_every, self.recipe, self.dataset)
        kept = resume.get("dtype", "") if isinstance(resume, Mapping) else None
        if self.dtype != (dtype := resolve_dtype(self.recipe.dtype, self.device, kept)):
            self._build(dtype)
        refusals.tell_of_none_due(self.recipe, self.timeline, self.state.replacement)
        recipe, state, phases, epochs = self.recipe, self.state, self.phases, self.timeline.epochs
        audience = Audience(listeners, state, phases, recipe.cudnn_search)
        with TORCH.applied(), current(self.device), cudnn_search(recipe.cudnn_search), state.random, state.feeding():
            with phases("model and optimizer"):  # what does not fit is refused before anything is compiled
                if resume is None:
                    load = begin.resetting(self, seed, init)
                else:
                    state.refuse_another(resume)
                    load = partial(state.load_state_dict, resume)
            self.rehearse()
            state.best = Best(self.flat_evaluated) if keep == "best" else None
            self._has_average = False
            begin.prepare(self, load, init if resume is None else None)
            del load  # the network on the CPU
            watch, rows = state.stopwatch, state.history.rows
            audience.tell("on_start", self)
            if evaluate_at_start and state.step == 0 and not rows:
                rows.append(self.scoring.zero())
            if state.step < self.total_steps and not state.history.has_reached(until_train_accuracy):
                audience.tell_row()
            for epoch in self.timeline.epochs_from(state.step):
                if state.history.has_reached(until_train_accuracy):
                    state.optimizer.finish()
                    break
                is_last = epoch is epochs[-1]
                is_evaluated = eval_every > 0 and (epoch.number + 1) % eval_every == 0 and not is_last
                # What is evaluated was trained, and no training ends on what has just changed.
                changes_later = is_evaluated or until_train_accuracy is not None
                with phases("training: steps"), watch:
                    self.enter(epoch.stage)
                    while state.step < epoch.end:
                        self.take_step(epoch)
                        if audience.hears_steps and self.device.type == "cpu" and state.step < epoch.end:
                            with watch.paused():
                                audience.tell("on_step", state.step, self.total_steps)
                    if not changes_later:
                        state.between_epochs(self, epoch)
                    self.end_epoch(epoch)
                is_watched = audience.hears_steps or audience.hears_epochs or until_train_accuracy is not None
                with phases("training: steps"):  # where nobody looks, the host does not wait for the device
                    state.history.settle(wait=is_watched or is_evaluated or is_last)
                    ends = is_last or state.history.has_reached(until_train_accuracy)
                if is_evaluated and not ends:
                    rows[-1] = self.scoring.row(rows[-1])
                    state.plateau.step(rows[-1], state.step)
                if changes_later and not ends:
                    with phases("training: steps"), watch:
                        state.between_epochs(self, epoch)
                if is_watched:
                    audience.tell("on_step", state.step, self.total_steps)
                    if not ends:  # the last row is told after the final evaluation
                        audience.tell_row()

            if recipe.average.epochs:
                with phases("training: average"), watch:
                    self.scoring.take_average()
                self._has_average = True
            train_seconds = watch.seconds
            if state.best:
                rows[-1] = self.scoring.row(rows[-1])
            with watch:
                evaluation = self.scoring.final()
            rows[-1] = self.scoring.last(rows[-1], train_seconds, evaluation)
            audience.tell("on_epoch", rows[-1])
            run = Run.of(self, evaluation, train_seconds, watch.seconds)
            audience.tell("on_end", run.record)
        return run

    def rehearse(self) -> None:
        """Compile, capture and warm up, unless that is done."""
        if not self.replays:
            self.replays, self.not_captured = rehearse(self)

    def reset(self, seed: int = 0, init: Start = _COLD) -> None:
        """Start a training afresh, in the same buffers. What a start computes on the device is training time."""
        begin.resetting(self, seed, init)()

    def enter(self, stage: Stage) -> None:
        """Train the parameters that `stage` trains and no others, in training mode."""
        restore(self._modes)
        for name in self.network.frozen_from:
            self.network.module.get_parameter(name).requires_grad_(name not in stage.frozen)

    def take_step(self, epoch: Epoch) -> None:
        """Make the next step, one of `epoch`."""
        state = self.state
        state.next_images(epoch)
        self.replays[epoch.stage_of(state.step)]()
        state.step += 1
        if state.step < epoch.end:
            state.replacement.end_step(self)
        if self.timeline.is_averaged(state.step):
            state.average.add()
        state.processes.end_step()

    def end_epoch(self, epoch: Epoch) -> None:
        """Queue the copies of the metrics of `epoch`, and draw the next one's plan, while a GPU is at this one."""
        self.state.end_epoch(epoch)
        if epoch is not self.timeline.epochs[-1]:
            with self.phases("training: plans"):
                self.state.begin_epoch(following := self.timeline.epochs[epoch.number + 1])
                self.state.feed_epoch(following)

    def new_network(self, seed: int, init: Start = _COLD) -> Network:
        """Return the network that a training begins with, or that `Fire` and `Dash` are computed from, on the CPU."""
        return begin.new_network(self, seed, init)[0]

    def new_step(self, dataset: Dataset, tensors: EpochTensors) -> TrainingStep:
        """Return a step on batches of `dataset`, of the same network and optimizer."""
        state, own = self.state, {"compiled": self.compiled, "loss": self.own_loss, "transform": self.own_augment}
        own |= {"features": self.features, "loss_scale": state.loss_scale if self._scales else None, "feed": state.feed}
        return TrainingStep(self.recipe, dataset, self.network, state.optimizer, tensors, **own)

    @TORCH.applied()
    def evaluated_weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the tensors of the evaluated network by name, on the CPU, floating ones in float32: at an
        epoch's end those that its row gives the accuracy of, at the end of the training those of model.safetensors
        or, with keep "best", those of the last epoch. For a listener's `on_epoch`; the training goes on as if nothing
        had been asked."""
        return self.scoring.weights(taken=self._has_average)
