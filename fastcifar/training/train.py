"""`train` and `Trainer`: the timed training, its loop on one screen.

What the loop changes is in `state.py`, one step is `step.py`, what goes before the first one (compiling, capture,
warm-up) is `rehearse.py`, and how epochs differ is `timeline.py`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcifar.catalogue import DEFAULT_DATASET
from fastcifar.data import Dataset, Split, load_dataset
from fastcifar.models import Network, build_model, remember_normalization
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.phases import Phases
from fastcifar.recipes import DEFAULT_RECIPE, EvaluateConfig, Recipe, change, get_recipe
from fastcifar.recipes.optimizers import OptimizerConfig
from fastcifar.start import ColdStart, Start
from fastcifar.training.average import estimate_statistics
from fastcifar.training.compiled import CompiledNetwork
from fastcifar.training.device import cudnn_search, describe_device, resolve_device, resolve_dtype
from fastcifar.training.evaluate import Evaluation, evaluate
from fastcifar.training.history import nonfinite_loss
from fastcifar.training.initialize import initialize, keeps_frozen
from fastcifar.training.listeners import Audience, Listener
from fastcifar.training.loss import Loss
from fastcifar.training.record import DatasetFacts, EpochRow, RunRecord, Versions, own_commit
from fastcifar.training.refusals import (
    refuse_arguments,
    refuse_other_types,
    refuse_uneven_ghost_batches,
    refuse_what_cannot_be_called,
)
from fastcifar.training.rehearse import rehearse
from fastcifar.training.run import Run
from fastcifar.training.state import TrainingState
from fastcifar.training.step import EpochTensors, TrainingStep, Transform
from fastcifar.training.timeline import Epoch, Stage, Timeline

_COLD = ColdStart()
_PLAIN = EvaluateConfig(tta="none")


def train(
    recipe: Recipe | str | Path = DEFAULT_RECIPE,
    data: Dataset | str = DEFAULT_DATASET,
    *,
    seed: int = 0,
    model: Callable[[int], nn.Module] | None = None,
    loss: Loss | None = None,
    optimizer: str | OptimizerConfig | Callable[..., torch.optim.Optimizer] | None = None,
    augment: Transform | None = None,
    listeners: Sequence[Listener] = (),
    holdout: int = 0,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    eval_every: int = 1,
    evaluate_at_start: bool = False,
    init: Start = _COLD,
    **changes: Any,
) -> Run:
    """Train one network.

    recipe: a recipe, its name or the path of its TOML file; `changes` are other values for its fields, by their dotted
        names: `train("speedrun94", epochs=1, **{"optimizer.lr": 0.2})`.
    data: a dataset or its name, which `load_dataset` finds in `data_dir`; `holdout` evaluates on that many training
        images, which are then not trained on, in place of the test set.
    seed: names the run: initial weights, order, crops, flips, and what `model` and `augment` draw from torch.

    In place of the recipe's own, or after it:

    model: a class or function of the number of classes that gives an `nn.Module`: images `[N, 3, H, W]`, normalized, to
        logits `[N, classes]`. Plain torch layers train in bfloat16 and float16 too; batch norm stays in float32. Its
        memory format is kept: with `.to(memory_format=torch.channels_last)` convolutions are faster. What it computes
        while training is captured on a GPU, and so may not depend on values.
    loss: of logits, float32 `[B, classes]`, and labels, int64 `[B]`, the mean or each image's; the recipe's label
        smoothing does not apply to it.
    optimizer: a kind, such as "Adam", or its configuration, as the recipe's section `optimizer`; or a class of torch's
        form, given the recipe's `lr`, `momentum` and `weight_decay` where it takes them, or a function of the
        parameters. The recipe's schedule multiplies its rates.
    augment: of a batch of images `[B, 3, H, W]`, normalized and already changed by the recipe's augmentation, in the
        compute type: as many images.

    The other arguments are those of `Trainer` and `Trainer.run`. Raises UserError for bad input and NonFiniteLoss where
    the loss becomes NaN or infinite.
    """
    phases = Phases()
    recipe = get_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe
    if model is not None and hasattr(recipe.network, "ghost_batch"):  # whose batches are its own affair
        recipe = change(recipe, {"network.ghost_batch": 0})
    if isinstance(optimizer, type) and issubclass(optimizer, OptimizerConfig):
        optimizer = optimizer()
    if isinstance(optimizer, str | OptimizerConfig):
        recipe, optimizer = change(recipe, {"optimizer": optimizer}), None
    recipe = change(recipe, changes) if changes else recipe
    device = resolve_device(device)
    with phases("data"):
        if isinstance(data, str):
            data = load_dataset(data, data_dir, device, holdout)
        elif holdout:
            data = data.hold_out(holdout)
    trainer = Trainer(recipe, data, device, phases, model=model, loss=loss, optimizer=optimizer, augment=augment)
    return trainer.run(seed, listeners=listeners, eval_every=eval_every, evaluate_at_start=evaluate_at_start, init=init)


class Trainer:
    """A recipe, a dataset and a device made ready to train; `run` trains from a seed, as often as one likes, in the
    same buffers. `model`, `loss`, `optimizer` and `augment` are those of `train`.

    On CUDA the step is captured before the first run, after a few steps on random images, in one CUDA graph for each
    stage of the training (see `Timeline`); where that cannot be done one warning says why, and the step is run as it
    is, as it always is with an optimizer of torch's. Whitening and evaluation are run on random images too.
    Raises UserError where the recipe does not fit the dataset or the device.
    """

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
        refuse_other_types(recipe, dataset)
        refuse_what_cannot_be_called(loss=loss, augment=augment)
        self.recipe, self.phases = recipe, phases or Phases()
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(recipe.dtype, self.device)
        self.dataset = _normalized_as_asked(dataset.to(self.device), recipe)
        self._own_model, self._loss, self._augment = model, loss, augment
        self._scales = recipe.loss_scaling.dynamic and self.dtype == torch.float16
        with self.phases("model and optimizer"):
            self.network, self.evaluated = (self.new_network(seed=0).to(self.device) for _ in range(2))
            flat = FlatModel(self.network.module, self.dtype, wide_gradients=self._scales)
            self._flat_evaluated = FlatModel(self.evaluated.module, self.dtype)
            side, frozen_from = self.dataset.train.side, self.network.frozen_from
            self.timeline = Timeline(recipe, len(dataset.train), side, frozen_from)
            refuse_uneven_ghost_batches(self.network, recipe, self.timeline)
            for name in frozen_from:
                flat.group_of(name).steps = self.timeline.steps_until_frozen(name)
            optim = build_optimizer(flat, recipe, self.total_steps, optimizer)
            self.compiled = CompiledNetwork(self.network, self.device) if recipe.compile == "step" else None
            self.state = TrainingState(recipe, self.dataset, self.timeline, flat, optim)
        self.step = self.new_step(self.dataset, self.state.tensors)
        self.replays: dict[Stage, Callable[[], None]] = {}
        self.not_captured = self._why_not_captured()
        self._first_step_seconds: float | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.timeline.total_steps

    @property
    def model(self) -> nn.Module:
        """The network that is trained, in the compute type; `Run.model` is the one that was evaluated."""
        return self.network.module

    def run(
        self,
        seed: int = 0,
        *,
        listeners: Sequence[Listener] = (),
        eval_every: int = 1,
        evaluate_at_start: bool = False,
        init: Start = _COLD,
        until_train_accuracy: float | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> Run:
        """Train from `seed`, evaluating after every `eval_every` epochs (0: only the last, which is always evaluated);
        `evaluate_at_start` also before the first, which is then epoch 0 of the rows.

        `init` says which weights to begin with: fresh ones, `WarmStart` or `ShrinkPerturb`, whose noise is the seed's.
        `listeners` hear of it as it goes. On CUDA the host waits for the device where one of them hears of steps or
        epochs, an evaluation is due or `until_train_accuracy` asks, and queues the whole training where nobody looks.
        `resume` goes on from what `state.state_dict()` gave, in this process or another, in place of `seed` and `init`.
        Raises NonFiniteLoss, and UserError where the weights to begin with or the state do not fit.

        `until_train_accuracy`, a fraction, ends the training after the first epoch in which that share of the images
        was answered right while training on them (the rule of Ash and Adams 2020, with 0.99); the recipe's epochs are
        then the most, and its schedule and averages are still laid out for them all.
        """
        refuse_arguments(seed, eval_every, init)
        recipe, state, phases, epochs = self.recipe, self.state, self.phases, self.timeline.epochs
        audience = Audience(listeners, state, phases)
        with cudnn_search(recipe.cudnn_search), state.random:
            self.rehearse()
            self._begin(seed, init, resume)
            watch, rows = state.stopwatch, state.history.rows
            audience.on_start(self)
            if evaluate_at_start and state.step == 0:
                rows.append(self._epoch_zero())
                audience.on_epoch(rows[0])

            for epoch in self.timeline.epochs_from(state.step):
                if self._has_reached(until_train_accuracy):
                    state.optimizer.finish()
                    break
                with phases("training: steps"), watch:
                    self.enter(epoch.stage)
                    while state.step < epoch.end:
                        self.take_step(epoch)
                        if audience.hears_steps and self.device.type == "cpu" and state.step < epoch.end:
                            with watch.paused():
                                audience.on_step(state.step, self.total_steps)
                    self.end_epoch(epoch)

                is_last = epoch is epochs[-1]
                is_evaluated = eval_every > 0 and (epoch.number + 1) % eval_every == 0 and not is_last
                is_watched = audience.hears_steps or audience.hears_epochs or until_train_accuracy is not None
                with phases("training: steps"):  # the host waits for the device where somebody looks, and nowhere else
                    state.history.settle(wait=is_watched or is_evaluated or is_last)
                ends = is_last or self._has_reached(until_train_accuracy)
                if is_evaluated and not ends:
                    rows[-1] = self._evaluated_row(rows[-1])
                if is_watched:
                    audience.on_step(state.step, self.total_steps)
                    if not ends:  # whose row is told after the final evaluation
                        audience.on_epoch(rows[-1])

            if recipe.average.epochs:
                with phases("training: average"), watch:
                    self._take_average()
            train_seconds = watch.seconds
            with watch:
                evaluation = self._evaluate(self.dataset.test, recipe.evaluate, last=True)
            rows[-1] = self._last_row(rows[-1], train_seconds, evaluation)
            audience.on_epoch(rows[-1])
            run = self._finished(train_seconds, watch.seconds, evaluation)
            audience.on_end(run.record)
        return run

    def _last_row(self, row: EpochRow, train_seconds: float, evaluation: Evaluation) -> EpochRow:
        """`row` with what the final `evaluation` says. Raises NonFiniteLoss for a network that the last step has
        spoiled."""
        loss = evaluation.loss
        if not (evaluation.logits.isfinite().all() if loss is None else math.isfinite(loss)):
            raise nonfinite_loss(f"the trained network's loss is {loss}", self.recipe, self.dtype)
        scores = {"test_accuracy": evaluation.plain_accuracy, "test_loss": evaluation.plain_loss}
        return self._validated(dataclasses.replace(row, seconds=train_seconds, **scores), last=True)

    def _finished(self, train_seconds: float, time_seconds: float, evaluation: Evaluation) -> Run:
        """The run that ends with `evaluation`."""
        state, phases = self.state, self.phases.restart()
        row = state.history.rows[-1]
        process_seconds = sum(phases.values())
        record = RunRecord(
            recipe=self.recipe,
            dataset=DatasetFacts.of(self.dataset),
            subset=self.dataset.subset,
            seed=state.seed,
            init=dict(state.init),
            network=None if self._own_model is None else "own",
            device=describe_device(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            versions=Versions.here(),
            commit=own_commit(),
            command=tuple(sys.argv),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - process_seconds)),
            epochs=self.recipe.epochs if state.step == self.total_steps else row.epoch,
            steps=state.step,
            history=tuple(state.history.rows),
            accuracy=evaluation.plain_accuracy,
            loss=evaluation.plain_loss,
            tta_accuracy=evaluation.accuracy,
            tta_loss=evaluation.loss,
            val_accuracy=row.val_accuracy,
            val_loss=row.val_loss,
            train_seconds=train_seconds,
            time_seconds=time_seconds,
            process_seconds=process_seconds,
            compiled=bool(self.compiled and self.compiled.active),
            captured=not self.not_captured,
            not_captured=self.not_captured,
            first_step_seconds=self._first_step_seconds,
            phases=phases,
            images_per_second=(row.images or 0) / train_seconds,
        )
        model = remember_normalization(self.evaluated.module, self.evaluated.mean, self.evaluated.std).eval()
        labels, tensors = self.dataset.test.labels.cpu(), self._flat_evaluated.state_dict()
        return Run(model, record, evaluation.plain_logits, evaluation.logits, labels, tensors)

    def rehearse(self) -> None:
        """Compile, capture and warm up, unless that is done."""
        if not self.replays:
            self.replays, self.not_captured = rehearse(self)

    def reset(self, seed: int = 0, init: Start = _COLD) -> None:
        """Start a training afresh, in the same buffers."""
        described = init.describe()
        self.state.begin(self.new_network(seed, init), seed, described)

    def enter(self, stage: Stage) -> None:
        """Train the parameters that `stage` trains and no others."""
        self.network.train()
        for name in self.network.frozen_from:
            self.network.module.get_parameter(name).requires_grad_(name not in stage.frozen)

    def take_step(self, epoch: Epoch) -> None:
        """The next step, one of `epoch`."""
        state = self.state
        self.replays[epoch.stage_of(state.step)]()
        state.step += 1
        if self.timeline.is_averaged(state.step):
            state.average.add()
        # On CUDA, where nothing waits for it, the time when it was sent off.
        self._first_step_seconds = self._first_step_seconds or self.phases.total

    def end_epoch(self, epoch: Epoch) -> None:
        """Send the metrics of `epoch` to the host and draw the next one's plan, while a GPU is still at this one."""
        self.state.end_epoch(epoch)
        if epoch is not self.timeline.epochs[-1]:
            with self.phases("training: plans"):
                self.state.begin_epoch(self.timeline.epochs[epoch.number + 1])

    def new_network(self, seed: int, init: Start = _COLD) -> Network:
        """The network that a training begins with, on the CPU."""
        dataset = self.dataset
        sides = (dataset.train.side, *(side for side, _ in self.recipe.augment.early_crops))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(self.recipe, len(dataset.classes), dataset.mean, dataset.std, self._own_model, sides)
        initialize(model, init)
        return model

    def new_step(self, dataset: Dataset, tensors: EpochTensors) -> TrainingStep:
        """A step on batches of `dataset`, of the same network and optimizer."""
        return TrainingStep(
            *(self.recipe, dataset, self.network, self.state.flat, self.state.optimizer, tensors),
            network=self.compiled,
            loss=self._loss,
            transform=self._augment,
            loss_scale=self.state.loss_scale if self._scales else None,
        )

    def _begin(self, seed: int, init: Start, resume: Mapping[str, Any] | None) -> None:
        """Up to the first step: weights, whitening, and the first epoch's plan; or all that `resume` holds."""
        self._first_step_seconds = None
        with self.phases("model and optimizer"):
            if resume is not None:
                self.state.load_state_dict(resume)
                return
            self.reset(seed, init)
        if not keeps_frozen(init):
            with self.phases("training: whitening"), self.state.stopwatch:
                self.network.fit_whitening(self.dataset.train.images)
        with self.phases("training: plans"), self.state.stopwatch:
            self.state.begin_epoch(self.timeline.epochs[0])

    def _has_reached(self, train_accuracy: float | None) -> bool:
        """Whether the last epoch's training accuracy is so high."""
        rows = self.state.history.rows
        trained = [row for row in rows[-1:] if row.epoch]
        return train_accuracy is not None and any((row.train_accuracy or 0) >= train_accuracy for row in trained)

    def _epoch_zero(self) -> EpochRow:
        """The row of what the training begins with, evaluated on the training images too."""
        train = self._evaluate(self.dataset.train, _PLAIN)
        row = EpochRow(0, train.loss, train.accuracy, None, self.state.stopwatch.seconds, images=0)
        return self._evaluated_row(row)

    def _evaluated_row(self, row: EpochRow) -> EpochRow:
        """`row` with accuracy and loss on the test split and, if there is one, on the validation split."""
        test = self._evaluate(self.dataset.test, _PLAIN)
        return self._validated(dataclasses.replace(row, test_accuracy=test.accuracy, test_loss=test.loss))

    def _validated(self, row: EpochRow, last: bool = False) -> EpochRow:
        if self.dataset.val is None:
            return row
        val = self._evaluate(self.dataset.val, _PLAIN, last)
        return dataclasses.replace(row, val_accuracy=val.accuracy, val_loss=val.loss)

    def _evaluate(self, split: Split, how: EvaluateConfig, last: bool = False) -> Evaluation:
        with self.phases("evaluation"):
            if not (last and self.recipe.average.epochs):
                self._flat_evaluated.load_average(self.state.flat, averaged=self.recipe.ema.decay > 0)
            return evaluate(self.evaluated, split, dataclasses.replace(how, batch_size=self.recipe.evaluate.batch_size))

    def _take_average(self) -> None:
        """Load the average of the last weights into the network that is evaluated, with its own statistics."""
        average, mean = self.recipe.average, self.state.average
        if not mean.count:  # the training ended before the first was due
            mean.add()
        self._flat_evaluated.load_average(self.state.flat)
        batch_size = self.recipe.batch_size
        estimate_statistics(self.evaluated, self.dataset.train, average.images, batch_size, self.dtype)

    def _why_not_captured(self) -> str | None:
        """Why steps are not captured, in a few words; None: they are."""
        if self.device.type == "cpu":
            return "a CPU has no CUDA graphs"
        if self._scales:
            return "dynamic loss scaling asks the device after every step"
        return self.state.optimizer.not_capturable


def _normalized_as_asked(dataset: Dataset, recipe: Recipe) -> Dataset:
    """`dataset` with the mean and standard deviation that `recipe` gives, if it does."""
    given = {"mean": recipe.normalize.mean, "std": recipe.normalize.std}
    return dataclasses.replace(dataset, **{name: value for name, value in given.items() if value})
