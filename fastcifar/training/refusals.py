"""Refusals of wrong arguments before a training does any work."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from fastcifar.data import Dataset
from fastcifar.errors import UserError, brief, notify
from fastcifar.host import TURN, building
from fastcifar.models import GhostBatchNorm, Network, build_model, memory_format
from fastcifar.optim.schedule import learning_rates
from fastcifar.optim.sgd import by_parameter
from fastcifar.recipes import Recipe
from fastcifar.recipes.declare import Declaration, checked, plain
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.schedule import Schedule
from fastcifar.registry import resolve
from fastcifar.start import Start
from fastcifar.training.replacement import Replacement, refuse_unknown_units
from fastcifar.training.timeline import Timeline


def refuse_other_types(recipe: object, dataset: object) -> None:
    """Raise UserError unless these are a recipe and a dataset with training images."""
    if not isinstance(recipe, Recipe):
        raise UserError(f"the recipe is of type {type(recipe).__name__}; allowed: a Recipe")
    if not isinstance(dataset, Dataset):
        raise UserError(f"the dataset is of type {type(dataset).__name__}; allowed: a Dataset")
    dataset.require_training_images()


def checked_arguments(
    seed: int,
    eval_every: int,
    evaluate_at_start: bool,
    until_train_accuracy: float | None,
    init: Start,
    recipe: Recipe,
    dataset: Dataset,
) -> tuple[int, int, bool, float | None]:
    """Return the arguments of `Trainer.run` but `init` as Python's. Raises UserError for a wrong type or value, and
    where the schedule of `recipe` needs losses that there are not."""
    seed, eval_every = plain(seed), plain(eval_every)
    for name, value, allowed in (("seed", seed, "0 up to 2**63 - 1"), ("eval_every", eval_every, "0 or more epochs")):
        if type(value) is not int or not 0 <= value < 2**63:
            raise UserError(f"{name} is {brief(value)}; allowed: a whole number, {allowed}")
    share = Declaration(above=0, at_most=1)
    until_train_accuracy = checked("until_train_accuracy", until_train_accuracy, float | None, share)
    evaluate_at_start = checked("evaluate_at_start", evaluate_at_start, bool)
    if not isinstance(init, Start):
        allowed = "ColdStart(), WarmStart(...), ShrinkPerturb(...), Fire(...), Dash(...)"
        raise UserError(f"init is of type {type(init).__name__}; allowed: {allowed}")
    if recipe.schedule.follows_loss:
        _refuse_blind(recipe.schedule, eval_every, dataset)
    return seed, eval_every, evaluate_at_start, until_train_accuracy


def _refuse_blind(schedule: Schedule, eval_every: int, dataset: Dataset) -> None:
    """Raise UserError where a schedule that follows the loss does not see it after every epoch; where it is that on the
    test images, say so."""
    schedule.refuse_eval_every(eval_every)
    if not _is_validated(dataset) and dataset.test.label_range[1] < 0:
        allowed = "with labels on validation or test images, or with images held out (--holdout N)"
        raise UserError(f"schedule.name is {schedule.name}; allowed: {allowed}")
    if _is_judged_by_test_set(dataset):
        choice = "--holdout N (holdout=N) takes training images"
        notify(f"{schedule.name} lowers the rate by the loss on the test images; {choice}")


def refuse_best(keep: object, eval_every: int, recipe: Recipe, dataset: Dataset) -> None:
    """Raise UserError where the best epoch's weights cannot be kept, and say where the test set chooses them."""
    if keep not in ("last", "best"):
        raise UserError(f"keep is {brief(keep)}; allowed: last or best")
    if keep == "last":
        return
    if not eval_every:
        raise UserError(f"eval_every is {eval_every} and keep is best; allowed: 1 or more epochs")
    if epochs := recipe.average.epochs:
        allowed = "0, as the average is there at the end alone"
        raise UserError(f"average.epochs is {epochs} and keep is best; allowed: {allowed}")
    if (dataset.test if dataset.val is None else dataset.val).label_range[1] < 0:
        raise UserError("keep is best, and the images tested on have no labels; allowed: last, or a hold-out")
    if _is_judged_by_test_set(dataset):
        said = "the best epoch is chosen on the test set, whose accuracy is then no fair one"
        notify(f"{said}; --holdout N chooses on others")


def _is_validated(dataset: Dataset) -> bool:
    """Return True where there are validation images with labels."""
    return dataset.val is not None and dataset.val.label_range[1] >= 0


def _is_judged_by_test_set(dataset: Dataset) -> bool:
    """Return True where `EpochRow.validation` is of the test set itself, not of images held out."""
    return not _is_validated(dataset) and not dataset.folded and dataset.tested == "test"


def refuse_for_features(network: Network, augment: object = None) -> None:
    """Raise UserError where features cannot be computed once: for a network without one classifier that is known, or of
    several outputs, and for a transform of the user's own."""
    if network.outputs > 1 or not network.head:
        raise UserError(f"frozen_mode is once for {type(network).__name__}; allowed: eval, or one output")
    if augment is not None:
        raise UserError("augment is given with frozen_mode once; allowed: none, or frozen_mode eval")


def refuse_uncallable(**given: object) -> None:
    """Raise UserError for a `loss` or `augment` that is no function."""
    takes = {"loss": "logits and labels", "augment": "a batch of images (a recipe's fields go by names: augment.crop)"}
    for name, value in given.items():
        if isinstance(value, type):
            raise UserError(f"{name} is the class {value.__name__}; allowed: a function of {takes[name]}")
        if value is not None and not callable(value):
            raise UserError(f"{name} is of type {type(value).__name__}; allowed: a function of {takes[name]}")


def tell_of_none_due(recipe: Recipe, timeline: Timeline, replacement: Replacement) -> None:
    """Say of what changes weights between steps or epochs where `timeline` is too short for it to act at all."""
    epochs, continual = len(timeline.epochs), recipe.continual_backprop
    for name, every in (("redo.every", recipe.redo.every), ("ema.return_every", recipe.ema.return_every)):
        if every >= epochs:
            notify(f"{name} is {every}, and the training ends with epoch {epochs}: it never acts")
    if continual.rate and not replacement.due:
        said = f"continual_backprop.rate is {continual.rate} and maturity {continual.maturity}"
        notify(f"{said}: no whole unit is due before the last of the {timeline.total_steps} steps; none is replaced")


def refuse_untrainable(recipe: Recipe, dataset: Dataset, networks: dict[Any, Network]) -> None:
    """Raise UserError where a training of `recipe` on `dataset` is refused for its network, steps, schedule or
    layers.

    networks: those that were built for recipes before, to which this one's is added.
    """
    train, sides = dataset.train, (dataset.train.side, *(side for side, _ in recipe.augment.early_crops))
    key = recipe.network, recipe.ensemble, recipe.freeze, recipe.frozen_mode, sides
    if key not in networks:
        with building(0, resolve(recipe.network.builder)):
            networks[key] = build_model(recipe, len(dataset.classes), dataset.mean, dataset.std, sides=sides)
    if recipe.frozen_mode == "once":
        refuse_for_features(networks[key])
    refuse_unknown_units(recipe, networks[key])
    timeline = Timeline(recipe, len(train), train.side, networks[key].frozen_from)
    refuse_batches(networks[key], recipe, timeline)
    learning_rates(recipe, timeline.total_steps)
    if isinstance(recipe.optimizer, SGDConfig):
        by_parameter(recipe.optimizer, networks[key].module)


def refuse_batches(network: Network, recipe: Recipe, timeline: Timeline) -> None:
    """Raise UserError where a batch does not divide into the network's ghost batches, and where an epoch's last one is
    an image of which a batch norm, which sees 1x1 pixels of it, knows no variance."""
    ghosts = {module.ghost_batch for module in network.modules() if isinstance(module, GhostBatchNorm)} - {0}
    for ghost in ghosts:
        allowed = f"a multiple of the network's ghost batch, {ghost}"
        if recipe.batch_size % ghost:
            raise UserError(f"batch_size is {recipe.batch_size}; allowed: {allowed}")
        for batch in recipe.early_batches:
            if batch % ghost:
                raise UserError(f"early_batches has {batch}; allowed: {allowed}")
        for images in (stage.images for stage in timeline.steps_by_stage() if stage.part):
            if images % ghost:
                left = f"which leaves {images} images for an epoch's last batch"
                raise UserError(f"drop_last is false, {left}; allowed: true, or a batch_size that leaves {allowed}")
    _refuse_one_value(network, timeline)


@torch.no_grad()
def _refuse_one_value(network: Network, timeline: Timeline) -> None:
    for size in {stage.size for stage in timeline.steps_by_stage() if stage.part and stage.images == 1}:
        try:
            alone = copy.deepcopy(network)  # whose running statistics move
        except Exception:  # an own network may hold what has no copy, such as a lock: its training will tell
            return
        # The norms alone are in training mode: others may draw random numbers in it.
        for module in alone.modules():
            module.training = isinstance(module, _NormBase | GhostBatchNorm)
        wide = next((each for each in alone.parameters() if each.dim() > 1), next(alone.parameters()))
        devices = [wide.device] if wide.device.type == "cuda" else []
        image = wide.new_zeros(1, alone.in_channels, size, size)
        try:
            with TURN, torch.random.fork_rng(devices):
                alone(image.contiguous(memory_format=memory_format(alone)))
        except ValueError as error:
            reason = " ".join(str(error).partition("; allowed")[0].split())
            left = f"which leaves 1 image for an epoch's last batch ({reason})"
            raise UserError(
                f"drop_last is false, {left}; allowed: true, or a batch_size that leaves 2 or more"
            ) from None
