"""Preparation of a training's first step: kernels are compiled, steps captured, the rest warmed up. Also steps on
random images, for this and for timing or inspecting one.

None of it leaves a trace: a training first resets everything that is changed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from fastcifar.data import EpochPlan, Split
from fastcifar.kernels import compile_ahead, compile_cpp
from fastcifar.training.average import estimate_statistics
from fastcifar.training.capture import capture
from fastcifar.training.device import cudnn_search, current
from fastcifar.training.evaluate import evaluate
from fastcifar.training.step import EpochTensors
from fastcifar.training.timeline import Stage

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer


def rehearse(trainer: Trainer) -> tuple[dict[Stage, Callable[[], None]], str | None]:
    """Return `steps[stage]`, the functions that a training calls (replays where captured), and why steps are not
    captured (None: they are). On CUDA compile every kernel and run everything once before."""
    stages, on_cuda = trainer.timeline.steps_by_stage(), trainer.device.type == "cuda"
    replays: dict[Stage, Callable[[], None]] = {stage: partial(trainer.step, stage) for stage in stages}
    not_captured = trainer.not_captured
    with current(trainer.device), trainer.phases("kernel compilation"):
        if on_cuda:
            compile_kernels(trainer)
        else:
            compile_cpp()
        if trainer.compiled or (on_cuda and not_captured):
            step_through(trainer)
    if not not_captured:
        with current(trainer.device), trainer.phases("capture"):
            pool = torch.cuda.graph_pool_handle()
            for stage, step in replays.items():
                warm_up = step_on_noise(trainer, stage)
                trainer.step.tensors.begin(_any_plan(trainer, trainer.dataset.train))
                replays[stage], not_captured = capture(step, warm_up, pool)
                if not_captured:  # a failure leaves the pool unfit for another capture
                    break
                replays[stage]()  # the first one also loads it
    if on_cuda:
        with current(trainer.device), trainer.phases("warm-up"):
            warm_up_the_rest(trainer)
    return replays, not_captured


def why_not_captured(trainer: Trainer, scales: bool) -> str | None:
    """Return in a few words why steps cannot be captured; None: they can. `scales`: the loss is scaled dynamically."""
    if trainer.device.type == "cpu":
        return "a CPU has no CUDA graphs"
    if scales:
        return "dynamic loss scaling asks the device after every step"
    return trainer.state.optimizer.not_capturable


def step_through(trainer: Trainer) -> None:
    """Make a step of every stage on random images, compiled where it can be."""
    for stage in trainer.timeline.steps_by_stage():
        new_step = partial(step_on_noise, trainer, stage)
        if trainer.compiled:
            trainer.compiled.attempt(new_step)
        else:
            new_step()()


def step_on_noise(trainer: Trainer, stage: Stage | None = None) -> Callable[[], None]:
    """Return a training step of the shapes of `stage`, by default the last, on random images."""
    stage = stage or trainer.timeline.epochs[-1].stage
    if stage.part:
        start, stop = stage.part
        stage = dataclasses.replace(stage, part=(0, stop - start))
    noise = _noise(trainer, trainer.recipe.batch_size)
    dataset = dataclasses.replace(trainer.dataset, train=noise)
    tensors = EpochTensors(trainer.recipe, dataset, steps_per_epoch=1, outputs=trainer.network.outputs)
    step = partial(trainer.new_step(dataset, tensors), stage)
    return _in_epochs_of_its_own(trainer, tensors, step, _any_plan(trainer, noise), stage)


def replay_on_noise(trainer: Trainer, stage: Stage | None = None) -> Callable[[], None]:
    """Return the step of `stage`, by default the last, that a training replays, on one batch of the training images
    from random weights; the step itself where none is captured."""
    stage = stage or trainer.timeline.epochs[-1].stage
    with current(trainer.device), cudnn_search(trainer.recipe.cudnn_search):
        trainer.rehearse()
    tensors, plan = trainer.step.tensors, _any_plan(trainer, trainer.dataset.train)
    tensors.begin(plan)
    first = plan.rows(0, stage.batch).clone()  # its copy takes a GPU next to no time
    return _in_epochs_of_its_own(trainer, tensors, trainer.replays[stage], first, stage)


def repeated_step(trainer: Trainer) -> tuple[Callable[[], None], str | None]:
    """Return the step of the last stage, from random weights, on the first batch of the training images each time,
    compiled and captured alone, as a training would; and why it is not captured (None: it is). Raises what says that
    memory ran out; cuDNN's search is the caller's."""
    stage, tensors = trainer.timeline.epochs[-1].stage, trainer.step.tensors

    def step() -> None:
        tensors.rewind()
        trainer.step(stage)

    once = partial(trainer.compiled.attempt, lambda: step) if trainer.compiled else step
    trainer.enter(stage)
    tensors.begin(_any_plan(trainer, trainer.dataset.train))
    if trainer.device.type == "cuda":
        compile_ahead(once, trainer.device)
    else:
        compile_cpp()
    trainer.reset()
    if trainer.compiled:
        once()
    if trainer.not_captured:
        return step, trainer.not_captured
    return capture(step, step, raises_full=True)


def compile_kernels(trainer: Trainer) -> None:
    """Compile the Triton kernels of every stage and of the rest, found by running them."""

    def run() -> None:
        step_through(trainer)
        with contextlib.suppress(RuntimeError):  # LAPACK's, for a whitening computed from unwritten memory
            warm_up_the_rest(trainer)

    compile_ahead(run, trainer.device)


def warm_up_the_rest(trainer: Trainer) -> None:
    """Run all that a training does besides its steps, on random images: a GPU compiles and loads at a first call.
    Changes the evaluated network too."""
    recipe, dataset, evaluated = trainer.recipe, trainer.dataset, trainer.evaluated
    trainer.state.begin_epoch(trainer.timeline.epochs[-1])
    count, batch = len(dataset.test), recipe.evaluate.batch_size
    if dataset.test.resident != "device":  # not all at once: a full batch and the last one
        count = min(count, batch + count % batch)
    noise = _noise(trainer, max(count, recipe.batch_size))
    if recipe.average.epochs:
        estimate_statistics(evaluated, noise, recipe.batch_size, recipe.batch_size, trainer.dtype)
    evaluate(evaluated, noise, recipe.evaluate)
    trainer.state.replacement.rehearse(trainer, noise)
    if recipe.ema.return_every:
        trainer.state.flat.return_to_average()
    trainer.network.fit_whitening(noise.images)


def _in_epochs_of_its_own(
    trainer: Trainer, tensors: EpochTensors, step: Callable[[], None], plan: EpochPlan, stage: Stage
) -> Callable[[], None]:
    """Return `step`, which reads `tensors`, as one that is the first of an epoch of `plan` each time, from reset
    weights."""
    trainer.reset()
    trainer.enter(stage)

    def run() -> None:
        with current(trainer.device), cudnn_search(trainer.recipe.cudnn_search):
            tensors.begin(plan)
            step()

    return run


def _any_plan(trainer: Trainer, split: Split) -> EpochPlan:
    """Return a plan of all images of `split`; its crop size does not matter, since a step uses its stage's."""
    return EpochPlan.draw(
        len(split),
        trainer.recipe.augment,
        0,
        0,
        image_size=split.side,
        transforms=trainer.recipe.transforms,
        mixing=trainer.recipe.mix,
        device=split.device,
    )


def _noise(trainer: Trainer, count: int) -> Split:
    """Return `count` random images and labels."""
    device, dataset = trainer.device, trainer.dataset
    random = {"device": device, "generator": torch.Generator(device).manual_seed(0)}
    images = torch.randint(256, (count, *dataset.train.image_shape), dtype=torch.uint8, **random)
    return Split(images, torch.randint(len(dataset.classes), (count,), **random))
