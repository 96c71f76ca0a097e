"""`Trainer` and `train`: the timed training loop."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastcifar.data import Dataset, EpochPlan, Loader, Split, load_dataset
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.kernels import compile_all
from fastcifar.models import build_model
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.start import ColdStart, Start
from fastcifar.training.capture import capture
from fastcifar.training.device import describe_device, resolve_device, resolve_dtype
from fastcifar.training.evaluate import Evaluation, evaluate
from fastcifar.training.initialise import initialise, keeps_frozen
from fastcifar.training.run import EpochRow, Run
from fastcifar.training.step import TrainingStep
from fastcifar.training.stopwatch import Stopwatch, process_seconds

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
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    device = resolve_device(device)
    if isinstance(data, str):
        data = load_dataset(data, data_dir, device, holdout)
    elif holdout:
        data = data.hold_out(holdout)
    return Trainer(recipe, data, device).run(seed, on_step, on_epoch, eval_every, init)


class Trainer:
    """A recipe, a dataset and a device made ready to train; `run` trains from a seed, as often as one likes, in the
    same buffers.

    On CUDA the step is captured in a CUDA graph before the first run, after a few steps on random images; where that
    cannot be done one warning says why, and the step is run as it is, as it always is with an optimiser of torch's.
    Raises UserError where the recipe does not fit the dataset or the device.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, device: str | torch.device = "auto") -> None:
        if len(dataset.train) < recipe.batch_size:
            raise UserError(
                f"batch_size is {recipe.batch_size}; allowed: up to the {len(dataset.train)} training images"
            )
        self.recipe = recipe
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(recipe.dtype, self.device)
        self.dataset = dataset.to(self.device)
        self.steps_per_epoch = len(dataset.train) // recipe.batch_size
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self._flat = self._new_model(seed=0)
        self._evaluated = self._new_model(seed=0)
        self._optimizer = build_optimizer(self._flat, recipe, self.total_steps)
        self._step = TrainingStep(recipe, self.dataset, self._flat, self._optimizer, self.steps_per_epoch)
        self._replay: Callable[[], None] | None = None

    def run(
        self,
        seed: int = 0,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        eval_every: int = 1,
        init: Start = _COLD,
    ) -> Run:
        """Train from `seed`, evaluating after every `eval_every` epochs (0: only the last, which is always evaluated).

        `init` says which weights to begin with: fresh ones, `WarmStart` or `ShrinkPerturb`, whose noise is the seed's.
        `on_step(step, total_steps)` is called after each step on a CPU and after each epoch on CUDA, where the host
        does not wait for the device in between; `on_epoch(row)` after each epoch. Neither is called while the watch
        runs on CUDA. Raises NonFiniteLoss, and UserError where the weights to begin with do not fit.
        """
        recipe, train_split = self.recipe, self.dataset.train
        described = init.describe()
        self._make_replayable()
        self._reset(seed, init)
        loader = Loader(train_split, recipe.batch_size, recipe.augment, seed)
        stopwatch = Stopwatch(self.device)
        if not keeps_frozen(init):
            with stopwatch:
                self._flat.model.fit_whitening(train_split.images)
        rows: list[EpochRow] = []
        for epoch in range(1, recipe.epochs + 1):
            first_step = (epoch - 1) * self.steps_per_epoch
            with stopwatch:
                self._train_epoch(loader.plan(epoch - 1), first_step, on_step)
            losses, correct = self._step.losses.cpu(), self._step.correct
            self._refuse_nonfinite(losses, first_step)
            if on_step and self.device.type == "cuda":
                on_step(first_step + self.steps_per_epoch, self.total_steps)
            images = self.steps_per_epoch * recipe.batch_size
            train_seconds, accuracy = stopwatch.seconds, None
            if epoch == recipe.epochs:
                with stopwatch:
                    evaluation = self._evaluate(recipe.evaluate.tta)
                accuracy = evaluation.plain_accuracy
            elif eval_every and epoch % eval_every == 0:
                accuracy = self._evaluate("none").accuracy
            rows.append(EpochRow(epoch, losses.sum().item() / images, correct.item() / images, accuracy, train_seconds))
            if on_epoch:
                on_epoch(rows[-1])
        record = self._record(seed, described, rows, evaluation, train_seconds, stopwatch.seconds)
        return Run(
            recipe,
            seed,
            self._evaluated.model,
            record,
            rows,
            evaluation.logits,
            self.dataset.test.labels.cpu(),
            self._evaluated.state_dict(),
        )

    @property
    def model(self) -> nn.Module:
        """The network that is trained, in the compute type; `Run.model` is the one that was evaluated."""
        return self._flat.model

    def estimate_seconds(self, steps: int = 3) -> float:
        """Seconds that the whole training would take, from the median of a few steps on random images, after one
        untimed. Leaves no trace: `run` begins by resetting everything that a step changes."""
        self._make_replayable()
        step, seconds = self.step_on_noise(), []
        for _ in range(steps + 1):
            with Stopwatch(self.device) as stopwatch:
                step()
            seconds.append(stopwatch.seconds)
        return float(np.median(seconds[1:])) * self.total_steps

    def step_on_noise(self) -> Callable[[], None]:
        """A training step of the run's shapes on random images, which changes what `_reset` resets and nothing else."""
        size, shape = self.recipe.batch_size, self.dataset.train.images.shape[1:]
        random = {"device": self.device, "generator": torch.Generator(self.device).manual_seed(0)}
        images = torch.randint(256, (size, *shape), dtype=torch.uint8, **random)
        noise = Split(images, torch.randint(len(self.dataset.classes), (size,), **random))
        dataset = dataclasses.replace(self.dataset, train=noise)
        step = TrainingStep(self.recipe, dataset, self._flat, self._optimizer, steps_per_epoch=1)
        plan = Loader(noise, size, self.recipe.augment).plan(0)
        self._reset(seed=0)

        def run() -> None:
            step.begin_epoch(plan)
            step()

        return run

    def _make_replayable(self) -> None:
        if self._replay:
            return
        self._replay = self._step
        if self.device.type == "cuda" and self._optimizer.capturable:
            if self.recipe.network == "davidnet":
                compile_all(
                    self.device,
                    self.dtype,
                    activation=self.recipe.model.activation,
                    scale=not self.recipe.model.freeze_scale,
                    cutout=self.recipe.augment.cutout > 0,
                    classes=len(self.dataset.classes),
                )
            self._step.begin_epoch(Loader(self.dataset.train, self.recipe.batch_size, self.recipe.augment).plan(0))
            self._replay = capture(self._step, warm_up=self.step_on_noise())

    def _new_model(self, seed: int, init: Start = _COLD) -> FlatModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dataset = self.dataset
            model = build_model(self.recipe, len(dataset.classes), dataset.mean, dataset.std)
        initialise(model, init)
        return FlatModel(model.to(self.device), self.dtype)

    def _reset(self, seed: int, init: Start = _COLD) -> None:
        self._flat.load(self._new_model(seed, init))
        self._optimizer.reset()

    def _train_epoch(self, plan: EpochPlan, first_step: int, on_step: OnStep | None) -> None:
        self._step.begin_epoch(plan)
        for step in range(first_step, first_step + self.steps_per_epoch):
            self._replay()
            if on_step and self.device.type == "cpu":
                on_step(step + 1, self.total_steps)

    def _refuse_nonfinite(self, losses: torch.Tensor, first_step: int) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step = first_step + bad[0].item()
            optim, dtype = self.recipe.optim, str(self.dtype).removeprefix("torch.")
            raise NonFiniteLoss(
                f"the loss became {losses[bad[0]].item()} at step {step + 1} of {self.total_steps} (epoch "
                f"{step // self.steps_per_epoch + 1}): most likely optim.lr {optim.lr:g} is too high"
                + (f", or {dtype} too narrow" if self.dtype == torch.float16 else "")
            )

    def _evaluate(self, tta: str) -> Evaluation:
        self._evaluated.load_average(self._flat, averaged=self.recipe.ema.decay > 0)
        return evaluate(self._evaluated.model, self.dataset.test, tta, self.recipe.evaluate.batch_size)

    def _record(
        self,
        seed: int,
        init: dict[str, object],
        rows: list[EpochRow],
        evaluation: Evaluation,
        train_seconds: float,
        time_seconds: float,
    ) -> dict[str, object]:
        dataset, device = self.dataset, self.device
        return {
            "recipe": json.loads(json.dumps(dataclasses.asdict(self.recipe))),  # tuples become lists, as when read back
            "dataset": {
                "name": dataset.name,
                "train_size": len(dataset.train),
                "test_size": len(dataset.test),
                "sha256": dataset.sha256,
                "holdout": dataset.holdout,
                "classes": list(dataset.classes),
                "mean": list(dataset.mean),
                "std": list(dataset.std),
                "source": dataset.source,
            },
            "subset": dataset.subset,
            "seed": seed,
            "init": init,
            "device": describe_device(device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - process_seconds())),
            "epochs": self.recipe.epochs,
            "steps": self.total_steps,
            "history": [dataclasses.asdict(row) for row in rows],
            "accuracy": rows[-1].test_accuracy,
            "tta_accuracy": evaluation.accuracy,
            "tta_loss": evaluation.loss,
            "train_seconds": train_seconds,
            "time_seconds": time_seconds,
            "process_seconds": process_seconds(),
            "images_per_second": self.total_steps * self.recipe.batch_size / train_seconds,
        }
