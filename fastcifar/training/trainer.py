"""`Trainer` and `train`: the timed training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastcifar.data import Dataset, EpochPlan, Loader, Split, load_dataset
from fastcifar.errors import NonFiniteLoss
from fastcifar.kernels import compile_ahead
from fastcifar.models import Network, build_model
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.phases import Phases
from fastcifar.recipes import EvaluateConfig, Recipe, get_recipe
from fastcifar.start import ColdStart, Start
from fastcifar.training.average import WeightAverage, estimate_statistics
from fastcifar.training.capture import capture
from fastcifar.training.compiled import CompiledNetwork
from fastcifar.training.device import cudnn_search, describe_device, resolve_device, resolve_dtype
from fastcifar.training.evaluate import Evaluation, evaluate
from fastcifar.training.initialise import initialise, keeps_frozen
from fastcifar.training.metrics import EpochMetrics, Metrics
from fastcifar.training.planner import Planner
from fastcifar.training.record import DatasetFacts, EpochRow, RunRecord, Versions, own_commit
from fastcifar.training.run import Run
from fastcifar.training.step import TrainingStep
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.timeline import Epoch, Stage, Timeline

OnStep = Callable[[int, int], None]
OnEpoch = Callable[[EpochRow], None]
_COLD = ColdStart()


def train(
    recipe: Recipe | str = "davidnet",
    data: Dataset | str = "cifar10",
    *,
    seed: int = 0,
    holdout: int = 0,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    eval_every: int = 1,
    init: Start = _COLD,
) -> Run:
    """Train one network. `recipe` and `data` are values or names; `holdout` evaluates on that many training images,
    which are then not trained on, in place of the test set. The other arguments are those of `load_dataset` and
    `Trainer.run`.

    Raises UserError for bad input and NonFiniteLoss where the loss becomes NaN or infinite.
    """
    phases = Phases()
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    device = resolve_device(device)
    with phases("data"):
        if isinstance(data, str):
            data = load_dataset(data, data_dir, device, holdout)
        elif holdout:
            data = data.hold_out(holdout)
    return Trainer(recipe, data, device, phases).run(seed, on_step, on_epoch, eval_every, init)


class Trainer:
    """A recipe, a dataset and a device made ready to train; `run` trains from a seed, as often as one likes, in the
    same buffers.

    On CUDA the step is captured before the first run, after a few steps on random images, in one CUDA graph for each
    stage of the training (see `Timeline`); where that cannot be done one warning says why, and the step is run as it
    is, as it always is with an optimiser of torch's. Whitening and evaluation are run on random images too.
    Raises UserError where the recipe does not fit the dataset or the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        device: str | torch.device = "auto",
        phases: Phases | None = None,
    ) -> None:
        self.recipe, self.phases = recipe, phases or Phases()
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(recipe.dtype, self.device)
        self.dataset = dataset.to(self.device)
        self.steps_per_epoch = len(dataset.train) // recipe.batch_size
        with self.phases("model and optimiser"):
            self._flat, self._evaluated = (
                FlatModel(self._new_network(seed=0).to(self.device), self.dtype) for _ in range(2)
            )
            side, frozen_from = dataset.train.images.shape[1], self._flat.model.frozen_from
            self.timeline = Timeline(recipe, len(dataset.train), side, frozen_from)
            self.total_steps = self.timeline.total_steps
            for name in frozen_from:
                self._flat.group_of(name).steps = self.timeline.steps_until_frozen(name)
            self._optimizer = build_optimizer(self._flat, recipe, self.total_steps)
            self._compiled = CompiledNetwork(self._flat.model, self.device) if recipe.compile == "step" else None
        self._step = self._new_step(self.dataset, self.steps_per_epoch)
        self._average = WeightAverage(self._flat)
        self._replays: dict[Stage, Callable[[], None]] = {}
        on_cpu = self.device.type == "cpu"
        self._not_captured = "a CPU has no CUDA graphs" if on_cpu else self._optimizer.not_capturable
        self._first_step_seconds: float | None = None

    def run(
        self,
        seed: int = 0,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        eval_every: int = 1,
        init: Start = _COLD,
        until_train_accuracy: float | None = None,
    ) -> Run:
        """Train from `seed`, evaluating after every `eval_every` epochs (0: only the last, which is always evaluated).

        `init` says which weights to begin with: fresh ones, `WarmStart` or `ShrinkPerturb`, whose noise is the seed's.
        `on_step(step, total_steps)` is called after each step on a CPU and after each epoch on CUDA; `on_epoch(row)`
        after each epoch. Neither is called while the watch runs on CUDA. There the host waits for the device where one
        of them is to be called, an evaluation is due or `until_train_accuracy` asks, and queues the whole training
        where nobody looks. Raises NonFiniteLoss, and UserError where the weights to begin with do not fit.

        `until_train_accuracy`, a fraction, ends the training after the first epoch in which that share of the images
        was answered right while training on them (the rule of Ash and Adams 2020, with 0.99); the recipe's epochs are
        then the most, and its schedule and averages are still laid out for them all.
        """
        described = init.describe()
        self._first_step_seconds = None
        stopwatch = Stopwatch(self.device)
        with cudnn_search(self.recipe.cudnn_search):
            self._make_replayable()
            with self.phases("model and optimiser"):
                self._reset(seed, init)
            if not keeps_frozen(init):
                with self.phases("training: whitening"), stopwatch:
                    self._flat.model.fit_whitening(self.dataset.train.images)
            rows = self._train(seed, stopwatch, on_step, on_epoch, eval_every, until_train_accuracy)
            if self.recipe.average.epochs:
                with self.phases("training: average"), stopwatch:
                    self._take_average()
            train_seconds = stopwatch.seconds
            with stopwatch:
                evaluation = self._evaluate(self.recipe.evaluate, last=True)
        if evaluation.loss is not None and not math.isfinite(
            evaluation.loss
        ):  # the last step can spoil a network whose losses were finite
            raise self._nonfinite(f"the trained network's loss is {evaluation.loss}")
        rows[-1] = dataclasses.replace(
            rows[-1],
            test_accuracy=evaluation.plain_accuracy,
            test_loss=evaluation.plain_loss,
            seconds=train_seconds,
        )
        if on_epoch:
            on_epoch(rows[-1])
        record = self._record(seed, described, rows, evaluation, train_seconds, stopwatch.seconds)
        return Run(
            model=self._evaluated.model,
            record=record,
            plain_logits=evaluation.plain_logits,
            tta_logits=evaluation.logits,
            labels=self.dataset.test.labels.cpu(),
            state=self._evaluated.state_dict(),
        )

    def _train(
        self,
        seed: int,
        stopwatch: Stopwatch,
        on_step: OnStep | None,
        on_epoch: OnEpoch | None,
        eval_every: int,
        until_train_accuracy: float | None,
    ) -> list[EpochRow]:
        """All epochs, up to the end of the last step; the last row has yet to be evaluated, and to be given to
        `on_epoch`. The host waits for the device at the end of an epoch where somebody looks at it, and nowhere
        else."""
        epochs, rows = self.timeline.epochs, []
        planner = Planner(self.recipe, self.dataset.train, seed)
        metrics = Metrics(self.timeline, self.device)
        is_watched = on_step or on_epoch or until_train_accuracy is not None
        prepared = None
        for epoch, following in zip(epochs, [*epochs[1:], None], strict=True):
            with self.phases("training: steps"), stopwatch:
                with self.phases("training: plans"):
                    plan = (prepared or planner.prepare(epoch))(self._step.image_losses)
                self._train_epoch(epoch, plan, on_step)
                metrics.keep(epoch, self._step, stopwatch.lap())
                with self.phases("training: plans"):  # while a GPU is still at this epoch
                    prepared = planner.prepare(following) if following else None
            is_evaluated = following and eval_every and (epoch.number + 1) % eval_every == 0
            looks = is_watched or is_evaluated or not following
            with self.phases("training: steps"):
                rows += map(self._row, metrics.finished(wait=looks))
            if not looks:
                continue
            if on_step and self.device.type == "cuda":
                on_step(epoch.first_step + epoch.steps, self.total_steps)
            if until_train_accuracy is not None and rows[-1].train_accuracy >= until_train_accuracy:
                if following:
                    self._optimizer.finish()
                break
            if is_evaluated:
                found = self._evaluate(dataclasses.replace(self.recipe.evaluate, tta="none"))
                rows[-1] = dataclasses.replace(rows[-1], test_accuracy=found.accuracy, test_loss=found.loss)
            if on_epoch and following:
                on_epoch(rows[-1])
        return rows

    def _row(self, metrics: EpochMetrics) -> EpochRow:
        """An epoch's row, without an evaluation. Raises NonFiniteLoss for one that went wrong."""
        epoch, losses = metrics.epoch, metrics.losses
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            loss, step = losses[bad[0]].item(), epoch.first_step + bad[0].item() + 1
            where = f"step {step} of {self.total_steps} (epoch {epoch.number + 1})"
            raise self._nonfinite(f"the loss became {loss} at {where}")
        images = epoch.steps * self.recipe.batch_size
        return EpochRow(epoch.number + 1, losses.sum().item() / images, metrics.correct / images, None, metrics.seconds)

    @property
    def model(self) -> nn.Module:
        """The network that is trained, in the compute type; `Run.model` is the one that was evaluated."""
        return self._flat.model

    def estimate_seconds(self, steps: int = 3) -> float:
        """Seconds that the whole training would take, from the median of a few steps of each stage after one untimed,
        replayed where a training replays them. Leaves no trace: `run` begins by resetting everything that a step
        changes."""
        total = 0.0
        for stage, count in self.timeline.steps_by_stage().items():
            step, seconds = self.replay_on_noise(stage), []
            for _ in range(steps + 1):
                with Stopwatch(self.device) as stopwatch:
                    step()
                seconds.append(stopwatch.seconds)
            total += float(np.median(seconds[1:])) * count
        return total

    def step_on_noise(self, stage: Stage | None = None) -> Callable[[], None]:
        """A training step of `stage`'s shapes on random images (the last stage's unless given), which changes what
        `_reset` resets and nothing else."""
        stage, size = stage or self.timeline.epochs[-1].stage, self.recipe.batch_size
        noise = self._noise(size)
        step = self._new_step(dataclasses.replace(self.dataset, train=noise), steps_per_epoch=1)
        plan = Loader(noise, size, self.recipe.augment).plan(0, stage.size)
        return self._in_epochs_of_its_own(step, step, plan, stage)

    def replay_on_noise(self, stage: Stage | None = None) -> Callable[[], None]:
        """The step of `stage` that a training replays (the last stage's unless given), on one batch of the training
        images from random weights; the step itself where none is captured. It changes what `step_on_noise` does."""
        stage, size = stage or self.timeline.epochs[-1].stage, self.recipe.batch_size
        with cudnn_search(self.recipe.cudnn_search):
            self._make_replayable()
        plan = Loader(self.dataset.train, size, self.recipe.augment).plan(0, stage.size)
        self._step.begin_epoch(plan)  # a step's first plan is one of all images
        batch = plan.batch(0, size).clone().to(self.device)  # whose copy takes a GPU next to no time
        return self._in_epochs_of_its_own(self._step, self._replays[stage], batch, stage)

    def _in_epochs_of_its_own(
        self, step: TrainingStep, call: Callable[[], None], plan: EpochPlan, stage: Stage
    ) -> Callable[[], None]:
        """`call`, which is `step` or its replay, each time as the first of an epoch of `plan`, from reset weights."""
        self._reset(seed=0)
        self._enter(stage)

        def run() -> None:
            with cudnn_search(self.recipe.cudnn_search):
                step.begin_epoch(plan)
                call()

        return run

    def _noise(self, size: int) -> Split:
        """Random images and labels, as many as `size`."""
        random = {"device": self.device, "generator": torch.Generator(self.device).manual_seed(0)}
        images = torch.randint(256, (size, *self.dataset.train.images.shape[1:]), dtype=torch.uint8, **random)
        return Split(images, torch.randint(len(self.dataset.classes), (size,), **random))

    def _make_replayable(self) -> None:
        if self._replays:
            return
        stages = self.timeline.steps_by_stage()
        replays = dict.fromkeys(stages, self._step)
        on_cuda, captures = self.device.type == "cuda", not self._not_captured
        with self.phases("kernel compilation"):
            if on_cuda:
                self.compile_kernels()
            if self._compiled or (on_cuda and not captures):
                for stage in stages:
                    self.step_on_noise(stage)()
        if captures:
            with self.phases("capture"):
                loader = Loader(self.dataset.train, self.recipe.batch_size, self.recipe.augment)
                pool = torch.cuda.graph_pool_handle()
                for stage in stages:
                    warm_up = self.step_on_noise(stage)
                    self._step.begin_epoch(loader.plan(0, stage.size))
                    replays[stage], self._not_captured = capture(self._step, warm_up, pool)
                    if self._not_captured:  # what has failed once leaves the pool unfit for another
                        break
                    replays[stage]()  # the first one also loads it
        if on_cuda:
            with self.phases("warm-up"):
                self._warm_up_the_rest()
        self._replays = replays

    def _warm_up_the_rest(self) -> None:
        """What a training does besides its steps, on random images: a GPU compiles and loads at a first call. Changes
        what `run` begins by resetting, and the evaluated network."""
        recipe, model = self.recipe, self._evaluated.model
        Planner(recipe, self.dataset.train, seed=0).prepare(self.timeline.epochs[-1])(self._step.image_losses)
        noise = self._noise(max(len(self.dataset.test), recipe.batch_size))
        if recipe.average.epochs:
            estimate_statistics(model, noise, recipe.batch_size, recipe.batch_size, self._evaluated.dtype)
        evaluate(model, noise, recipe.evaluate)
        self._flat.model.fit_whitening(noise.images)

    def compile_kernels(self) -> None:
        """Compile the Triton kernels of every stage and of the rest, found by running it all."""

        def run() -> None:
            for stage in self.timeline.steps_by_stage():
                self.step_on_noise(stage)()
            with contextlib.suppress(RuntimeError):  # of LAPACK, of a whitening by what is in unwritten memory
                self._warm_up_the_rest()

        compile_ahead(run, self.device)

    def _new_step(self, dataset: Dataset, steps_per_epoch: int) -> TrainingStep:
        return TrainingStep(self.recipe, dataset, self._flat, self._optimizer, steps_per_epoch, self._compiled)

    def _new_network(self, seed: int, init: Start = _COLD) -> Network:
        """The network that a training begins with, on the CPU."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dataset = self.dataset
            model = build_model(self.recipe, len(dataset.classes), dataset.mean, dataset.std)
        initialise(model, init)
        return model

    def _reset(self, seed: int, init: Start = _COLD) -> None:
        self._flat.load(self._new_network(seed, init))
        self._optimizer.reset()
        self._step.reset()
        self._average.reset()

    def _enter(self, stage: Stage) -> None:
        """Train the parameters that `stage` trains and no others."""
        for name, parameter in self._flat.model.named_parameters():
            if name in self._flat.model.frozen_from:
                parameter.requires_grad_(name not in stage.frozen)

    def _train_epoch(self, epoch: Epoch, plan: EpochPlan, on_step: OnStep | None) -> None:
        self._enter(epoch.stage)
        self._step.begin_epoch(plan)
        replay = self._replays[epoch.stage]
        for step in range(epoch.first_step, epoch.first_step + epoch.steps):
            replay()
            if self.timeline.is_averaged(step + 1):
                self._average.add()
            # On CUDA, where nothing waits for it, the time when it was sent off.
            self._first_step_seconds = self._first_step_seconds or self.phases.total
            if on_step and self.device.type == "cpu":
                on_step(step + 1, self.total_steps)

    def _nonfinite(self, what: str) -> NonFiniteLoss:
        too_narrow = ", or float16 too narrow" if self.dtype == torch.float16 else ""
        return NonFiniteLoss(f"{what}: most likely optim.lr {self.recipe.optim.lr:g} is too high{too_narrow}")

    def _take_average(self) -> None:
        """Load the average of the last weights into the network that is evaluated, with its own statistics."""
        average, evaluated = self.recipe.average, self._evaluated
        if not self._average.count:  # the training ended before the first was due
            self._average.add()
        evaluated.load_average(self._flat)
        batch_size = self.recipe.batch_size
        estimate_statistics(evaluated.model, self.dataset.train, average.images, batch_size, evaluated.dtype)

    def _evaluate(self, how: EvaluateConfig, last: bool = False) -> Evaluation:
        with self.phases("evaluation"):
            if not (last and self.recipe.average.epochs):
                self._evaluated.load_average(self._flat, averaged=self.recipe.ema.decay > 0)
            return evaluate(self._evaluated.model, self.dataset.test, how)

    def _record(
        self,
        seed: int,
        init: dict[str, object],
        rows: list[EpochRow],
        evaluation: Evaluation,
        train_seconds: float,
        time_seconds: float,
    ) -> RunRecord:
        dataset, phases = self.dataset, self.phases.restart()
        last = self.timeline.epochs[len(rows) - 1]
        steps = last.first_step + last.steps
        process_seconds = sum(phases.values())
        return RunRecord(
            recipe=self.recipe,
            dataset=DatasetFacts.of(dataset),
            subset=dataset.subset,
            seed=seed,
            init=init,
            device=describe_device(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            versions=Versions.here(),
            commit=own_commit(),
            command=tuple(sys.argv),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - process_seconds)),
            epochs=self.recipe.epochs if steps == self.total_steps else len(rows),
            steps=steps,
            history=tuple(rows),
            accuracy=evaluation.plain_accuracy,
            loss=evaluation.plain_loss,
            tta_accuracy=evaluation.accuracy,
            tta_loss=evaluation.loss,
            train_seconds=train_seconds,
            time_seconds=time_seconds,
            process_seconds=process_seconds,
            compiled=bool(self._compiled and self._compiled.active),
            captured=not self._not_captured,
            not_captured=self._not_captured,
            first_step_seconds=self._first_step_seconds,
            phases=phases,
            images_per_second=steps * self.recipe.batch_size / train_seconds,
        )
