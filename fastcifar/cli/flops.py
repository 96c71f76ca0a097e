"""`fastcifar flops`: a recipe's operations and bytes, and the least time of its training at given rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from fastcifar.catalogue import no_training_images
from fastcifar.cli.arguments import parse_with_recipe
from fastcifar.cli.options import FormOptions, Switch
from fastcifar.errors import UserError
from fastcifar.recipes import label
from fastcifar.recipes.declare import setting

if TYPE_CHECKING:
    from fastcifar.costs.flops import RecipeCount, StageCount
    from fastcifar.costs.products import Count

PROG = "fastcifar flops"
_OF_THE_SET = arg(metavar="N", help_behavior_hint="(default: the data set's)")


@dataclass(frozen=True)
class Options(FormOptions):
    """Count the multiply-adds, FLOP and bytes of a recipe's training, by layer and in all, without training it.

    A multiply-add is two FLOP.
    """

    tflops: Annotated[tuple[float, ...], arg(metavar="R [R ...]")] = (790.0,)
    """Rates, in 10^12 FLOP/s, to give the least time for; the default is an H200's for half-precision products."""
    bandwidth: Annotated[tuple[float, ...], arg(metavar="B [B ...]")] = (4300.0,)
    """Memory bandwidths in GB/s: one for all rates, or one for each."""
    train_images: Annotated[int | None, _OF_THE_SET] = setting(None, at_least=1)
    """Training images."""
    test_images: Annotated[int | None, _OF_THE_SET] = setting(None, at_least=1)
    """Images of the final evaluation."""
    json: Switch = False
    """Print the count as JSON and nothing else."""


def main(args: Sequence[str]) -> int:
    options = parse_with_recipe(args, Options, PROG, shorten=None)
    rates = _rates(options)
    classes, side, images = options.form()

    from fastcifar.costs.flops import count_recipe, describe

    train_images, test_images = options.train_images or images[0], options.test_images or images[1]
    if not train_images:
        raise no_training_images(options.dataset)
    count = count_recipe(options.settings, train_images, test_images, classes, side)
    print(json.dumps(describe(count, rates), indent=2) if options.json else _report(count, rates))
    return 0


def _rates(options: Options) -> list[tuple[float, float]]:
    """Return (TFLOP/s, GB/s) pairs. Raises UserError for rates that are not above 0 and for unequal numbers of them."""
    rates, widths = options.tflops, options.bandwidth
    for flag, numbers in (("--tflops", rates), ("--bandwidth", widths)):
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            raise UserError(f"{flag} is {' '.join(map(str, numbers))!r}; allowed: numbers above 0")
    if len(widths) not in (1, len(rates)):
        raise UserError(f"--bandwidth has {len(widths)} numbers and --tflops {len(rates)}; allowed: one, or as many")
    return list(zip(rates, widths if len(widths) > 1 else widths * len(rates), strict=True))


def _report(count: RecipeCount, rates: Sequence[tuple[float, float]]) -> str:
    recipe, largest = count.recipe, max(count.stages, key=lambda stage: stage.stage.size)
    steps = f"{count.steps:,} steps of {'up to ' * bool(recipe.early_batches)}{recipe.batch_size} images"
    lines = [
        f"{label(recipe)}: {recipe.epochs:g} epoch{'s' * (recipe.epochs != 1)}, {steps}, {count.dtype}",
        "",
        *_layers(largest),
        "",
        f"{'stage':<28}{'steps':>9}{'GFLOP an image':>16}{'GFLOP a step':>15}",
    ]
    for stage in count.stages:
        name = f"{stage.stage.size} x {stage.stage.size} pixels"
        name += f", {len(stage.stage.frozen)} frozen" if stage.stage.frozen else ""
        name += f", batch {stage.step.batch}" if stage.step.batch < recipe.batch_size else ""
        lines.append(_steps(name, stage.steps, stage.step))
    if count.optimizer.macs:
        flop = 2 * count.optimizer.macs / 1e9
        lines.append(f"{'optimizer ' + recipe.optimizer.kind:<28}{count.steps:9,}{'':16}{flop:15.1f}")
    if count.statistics:
        lines.append(_steps("statistics of the average", count.statistics_batches, count.statistics))
    if count.features:
        lines.append(_steps("features, once an image", count.feature_images, count.features))
    passes = f"{count.evaluated_images:,} images, {count.evaluation_passes:g} passes each"
    if count.evaluated_members:
        passes += f", and as many through each of {count.evaluated_members} members"
    lines += [
        "",
        f"training    {count.training_flop:.4g} FLOP, {count.optimizer_flop:.3g} of them the optimizer's",
        f"evaluation  {count.evaluation_flop:.4g} FLOP more: {passes}",
        f"memory      {_size(count.activation_bytes)} of activations kept from a forward for its backward pass",
        f"moved       {_size(count.product_bytes)} by the training's products, {_size(count.moved_bytes)} by all else",
        "",
    ]
    for rate, width in rates:
        floor = count.floor(rate, width)
        lines.append(
            f"at {rate:g} TFLOP/s and {width:g} GB/s  {floor['seconds']:.4g} s at least  "
            f"(operations alone {floor['operations']:.4g} s, bytes alone {floor['bytes']:.4g} s)"
        )
    return "\n".join(lines)


def _steps(name: str, steps: int, step: Count) -> str:
    flop = 2 * step.macs / 1e9
    return f"{name:<28}{steps:9,}{flop / step.batch:16.4f}{flop:15.1f}"


def _layers(stage: StageCount) -> list[str]:
    """Return a line for each layer, in millions of multiply-adds for each image."""
    step, side = stage.step, stage.stage.size
    width = max(len(layer.name) for layer in step.layers) + 2
    heads = f"{'from':>12}{'to':>12}{'parameters':>12}{'forward':>10}{'input grad':>12}{'weight grad':>13}"
    lines = [f"millions of multiply-adds an image, of {side} x {side} pixels", f"{'layer':<{width}}{heads}"]
    sums = [0.0, 0.0, 0.0]
    for layer in step.layers:
        numbers = [part / step.batch / 1e6 for part in (layer.forward, layer.input_gradient, layer.weight_gradient)]
        sums = [total + number for total, number in zip(sums, numbers, strict=True)]
        shapes = f"{_shape(layer.input_shape):>12}{_shape(layer.output_shape):>12}"
        lines.append(f"{layer.name:<{width}}{shapes}{layer.parameters:12,}{_millions(numbers)}")
    lines.append(f"{'all':<{width}}{'':24}{step.parameters:12,}{_millions(sums)}")
    return lines


def _millions(numbers: Sequence[float]) -> str:
    forward, input_gradient, weight_gradient = numbers
    return f"{forward:10.3f}{input_gradient:12.3f}{weight_gradient:13.3f}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _size(count: float) -> str:
    """Return `count` bytes in a unit that leaves one to three figures before the point."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.4g} {units[0]}"
