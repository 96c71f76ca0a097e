"""Counts what a recipe's training computes and moves, without training it, and the least time that this takes.

Counted: every matrix product and convolution of forward pass, input gradients, weight gradients and optimizer, in all
steps with the image size and the frozen parameters of each stage; and the bytes of everything else. Not counted: the
whitening's eigenproblem and its patches (some GFLOP, once) and the plans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcifar.catalogue import DATASETS, dataset_for
from fastcifar.costs.products import Count, count_module, count_products
from fastcifar.errors import UserError
from fastcifar.host import TORCH, building
from fastcifar.kernels import cross_entropy
from fastcifar.models import Network, build_model
from fastcifar.models.ensemble import distinct
from fastcifar.models.network import CENTERED
from fastcifar.optim import FlatModel, GroupOptimizer, build_optimizer
from fastcifar.recipes import Recipe
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.registry import resolve
from fastcifar.training import resolve_dtype
from fastcifar.training.refusals import refuse_batches, refuse_for_features
from fastcifar.training.timeline import Stage, Timeline

VIEWS = {"none": 1, "flip": 2, "flip-crop": 6}
"""Passes through the network of an image that gets all views of a test-time augmentation."""


@dataclass(frozen=True)
class StageCount:
    """The steps of a training that have one image size, one batch size and the same frozen parameters."""

    stage: Stage
    steps: int
    step: Count
    """Augmentation, forward pass, loss and backward pass of one batch; the optimizer is counted apart."""


@dataclass(frozen=True)
class RecipeCount:
    """The operations and bytes of a whole training. A multiply-add is two FLOP."""

    recipe: Recipe
    dtype: str
    stages: list[StageCount]
    """In the order in which they begin."""
    optimizer: Count
    """One step of the optimizer. An average that moves every few steps is counted in every step."""
    statistics: Count | None
    """One batch of the `statistics_batches` that batch norm's statistics are estimated from after averaging; None: no
    averaging."""
    statistics_batches: int
    features: Count | None
    """One image through the network, for features that are computed once, of all `feature_images`; None: of no image,
    and a step passes through the whole network."""
    feature_images: int
    evaluation: Count
    """One image through the network and, as a run keeps what each of its members says alone, through each of these."""
    evaluated_images: int
    evaluated_members: int
    """Networks in it that are evaluated alone, besides (`Network.members`)."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def _parts(self) -> list[tuple[int, Count]]:
        """Return the training's parts, without the evaluation, each with the number of times that it runs."""
        parts = [*((stage.steps, stage.step) for stage in self.stages), (self.steps, self.optimizer)]
        once = ((self.statistics_batches, self.statistics), (self.feature_images, self.features))
        return parts + [(times, count) for times, count in once if count]

    @property
    def training_flop(self) -> int:
        """Return the FLOP of the whole training, optimizer included, evaluation not."""
        return 2 * sum(times * count.macs for times, count in self._parts)

    @property
    def optimizer_flop(self) -> int:
        """Return the optimizer's FLOP over the training: Muon's Newton-Schulz iterations; 0 for most others."""
        return 2 * self.steps * self.optimizer.macs

    @property
    def evaluation_passes(self) -> float:
        """Return the mean passes through the network, and each of its members, for each evaluated image."""
        evaluate = self.recipe.evaluate
        return 1 + evaluate.tta_share * (VIEWS[evaluate.tta] - 1)

    @property
    def evaluation_flop(self) -> int:
        """Return the FLOP of the final evaluation with its test-time augmentation, that of the members included."""
        return round(2 * self.evaluation.macs * self.evaluation_passes * self.evaluated_images)

    @property
    def activation_bytes(self) -> int:
        """Return the bytes kept from a forward for its backward pass, in the stage where that is most."""
        return max(stage.step.activation_bytes for stage in self.stages)

    @property
    def moved_bytes(self) -> int:
        """Return the bytes that all but the matrix products read and write over the training."""
        return sum(times * count.moved_bytes for times, count in self._parts)

    @property
    def product_bytes(self) -> int:
        """Return the bytes that the matrix products read and write over the training."""
        return sum(times * count.product_bytes for times, count in self._parts)

    def floor(self, tflops: float, bandwidth: float) -> dict[str, float]:
        """Return the least `seconds` of the training at `tflops` (10**12 FLOP/s) and `bandwidth` (GB/s).

        Operators run one after the other, each bound by whichever of the two is slower. `operations` and `bytes` are
        the seconds that either alone would take. Raises UserError for rates that are not above 0.
        """
        if not (tflops > 0 and bandwidth > 0):
            raise UserError(f"the rates are {tflops:g} TFLOP/s and {bandwidth:g} GB/s; allowed: above 0")
        rate, width = tflops * 1e12, bandwidth * 1e9
        return {
            "tflops": tflops,
            "bandwidth": bandwidth,
            "seconds": sum(times * count.seconds(rate, width) for times, count in self._parts),
            "operations": self.training_flop / rate,
            "bytes": (self.moved_bytes + self.product_bytes) / width,
        }


@TORCH.applied()
def count_recipe(
    recipe: Recipe, train_images: int = 50_000, test_images: int = 10_000, classes: int | None = None, side: int = 32
) -> RecipeCount:
    """Count a training of `recipe` on `train_images` and its evaluation on `test_images`.

    classes: their number; None: that of the data set that the recipe is made for, which its name tells.
    side: of the images, in pixels.

    A `dtype` of "auto" is counted as two bytes wide. Raises UserError if the recipe does not fit the images.
    """
    dtype = torch.float16 if recipe.dtype == "auto" else resolve_dtype(recipe.dtype, torch.device("cpu"))
    classes = DATASETS[dataset_for(recipe.name)].classes if classes is None else classes
    counts = {"train_images": train_images, "test_images": test_images, "classes": classes, "side": side}
    for name, value in counts.items():
        checked(name, value, int, Declaration(at_least=name != "test_images"))
    network, _ = _model(recipe, classes, side, dtype, "meta")
    timeline = Timeline(recipe, train_images, side, network.frozen_from)
    refuse_batches(network, recipe, timeline)
    features, width = None, 0
    if recipe.frozen_mode == "once":
        refuse_for_features(network)
        features = count_module(network, (1, 3, side, side), call=_run_features, training=False)
        width = network.get_parameter(f"{network.head}.weight").shape[1]

    def call(network: Any, images: Tensor) -> Tensor:
        if features:
            return network.get_submodule(network.head)(images)
        return network(images, every=True) if network.outputs != 1 else network(images)

    def loss(logits: Tensor) -> Tensor:
        outputs = logits.view(-1, *logits.shape[-2:])
        labels = torch.empty(outputs.shape[1], dtype=torch.int64, device="meta")
        return torch.stack([cross_entropy(each, labels, recipe.label_smoothing)[0] for each in outputs]).sum()

    stages = []
    for stage, steps in timeline.steps_by_stage().items():
        for name, parameter in network.named_parameters():
            if name in network.frozen_from:
                parameter.requires_grad_(name not in stage.frozen)
        images = stage.images * recipe.ensemble.orders
        shape = (images, width) if features else (images, 3, stage.size, stage.size)
        step = count_module(network, shape, loss, call)
        if features:
            step.moved_bytes += 2 * images * width * dtype.itemsize  # a batch of them is gathered
        else:  # augment: of bytes, the type
            read = side if recipe.augment.early == "resize" else stage.size
            step.moved_bytes += step.batch * 3 * (read**2 + stage.size**2 * dtype.itemsize)
        stages.append(StageCount(stage, steps, step))

    statistics, batches = None, 0
    if recipe.average.epochs:
        batches = max(1, min(recipe.average.images, train_images) // recipe.batch_size)
        batch = min(recipe.batch_size, train_images)
        statistics = count_module(network, (batch, 3, side, side), call=_run_all, training=False)
    return RecipeCount(
        recipe,
        str(dtype).removeprefix("torch."),
        stages,
        _count_optimizer(recipe, classes, side, dtype, timeline),
        statistics,
        batches,
        features,
        train_images + test_images if features else 0,
        count_module(network, (1, 3, side, side), call=_run_evaluated, training=False),
        test_images,
        len(network.members),
    )


def describe(count: RecipeCount, rates: Sequence[tuple[float, float]] = ()) -> dict[str, Any]:
    """Return `count` as what JSON can hold, with its floor at each (TFLOP/s, GB/s) of `rates`.

    The layers' numbers are multiply-adds for each image, all others FLOP and bytes.
    """
    stages = []
    for stage in count.stages:
        layers = [dataclasses.asdict(layer) for layer in stage.step.layers]
        for layer in layers:
            for part in ("forward", "input_gradient", "weight_gradient"):
                layer[part] /= stage.step.batch
        stages.append(
            {
                "size": stage.stage.size,
                "frozen": sorted(stage.stage.frozen),
                "steps": stage.steps,
                "flop_per_step": 2 * stage.step.macs,
                "activation_bytes": stage.step.activation_bytes,
                "moved_bytes_per_step": stage.step.moved_bytes,
                "product_bytes_per_step": stage.step.product_bytes,
                "layers": layers,
            }
        )
    return {
        "recipe": count.recipe.name,
        "dtype": count.dtype,
        "batch_size": count.recipe.batch_size,
        "epochs": count.recipe.epochs,
        "steps": count.steps,
        "parameters": count.stages[0].step.parameters,
        "trained_parameters": count.stages[0].step.trained_parameters,
        "stages": stages,
        "training_flop": count.training_flop,
        "optimizer_flop": count.optimizer_flop,
        "evaluation_flop": count.evaluation_flop,
        "evaluation_passes": count.evaluation_passes,
        "evaluated_images": count.evaluated_images,
        "evaluated_members": count.evaluated_members,
        "activation_bytes": count.activation_bytes,
        "moved_bytes": count.moved_bytes,
        "product_bytes": count.product_bytes,
        "floors": [count.floor(*pair) for pair in rates],
    }


def _run_all(network: Any, images: Tensor) -> Tensor:
    return [each(images) for each in distinct(network)][-1]


def _run_features(network: Any, images: Tensor) -> Tensor:
    return network.features(images)


def _run_evaluated(network: Any, images: Tensor) -> Tensor:
    return [each(images) for each in (network, *network.members)][-1]


def _model(recipe: Recipe, classes: int, side: int, dtype: torch.dtype, device: str) -> tuple[Network, FlatModel]:
    sides = (side, *(size for size, _ in recipe.augment.early_crops))
    with building(0, resolve(recipe.network.builder)):  # with data: a network from outside may look at it
        network = build_model(recipe, classes, CENTERED, CENTERED, sides=sides).to(device)
    with torch.device(device):
        return network, FlatModel(network.module, dtype)


def _count_optimizer(recipe: Recipe, classes: int, side: int, dtype: torch.dtype, timeline: Timeline) -> Count:
    # Torch's own fused optimizers refuse meta tensors; on a few million real weights a step takes milliseconds.
    builder = resolve(recipe.optimizer.builder)
    of_groups = isinstance(builder, type) and issubclass(builder, GroupOptimizer)
    network, flat = _model(recipe, classes, side, dtype, "meta" if of_groups else "cpu")
    for name in network.frozen_from:
        flat.group_of(name).steps = timeline.steps_until_frozen(name)
    return count_products(build_optimizer(flat, recipe, timeline.total_steps).step)
