import dataclasses
import json

import numpy as np
import pytest
import torch

from fastcifar.cli import main
from fastcifar.costs.flops import count_recipe, describe
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import Network
from fastcifar.recipes import (
    Augment,
    AverageConfig,
    EMAConfig,
    EvaluateConfig,
    Recipe,
    SelectConfig,
    change,
    get_recipe,
)
from fastcifar.recipes.networks.davidnet import DavidNetInterpolationConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.training import evaluate

NO_EMA = EMAConfig(decay=0.0)
SPEEDRUN = Recipe(network=SpeedrunConfig(), batch_size=2000, epochs=8, ema=NO_EMA, optimizer=MuonConfig())


COMPOSITION = 64 * 27 * 27
"""Multiply-adds that compose the filters of DavidNet's stem."""


def test_davidnet_counted_by_hand():
    """Forward and both gradients of each 3x3 convolution; of the stem's, by the whitening's and the 1x1 convolution's
    composed filters, no input gradient, and the composition and its gradient once a step."""
    threes = [
        (64, 128, 32),
        (128, 128, 16),
        (128, 128, 16),
        (128, 256, 16),
        (256, 512, 8),
        (512, 512, 4),
        (512, 512, 4),
    ]
    image = 3 * sum(9 * before * width * side**2 for before, width, side in threes)
    image += 2 * 27 * 64 * 1024 + 3 * 512 * 10
    count = count_recipe(Recipe())
    assert count.steps == 970
    assert count.stages[0].step.macs == 512 * image + 2 * COMPOSITION
    assert count.training_flop == 2 * 970 * (512 * image + 2 * COMPOSITION)
    assert count.training_flop == pytest.approx(1.13e15, rel=2e-3)
    forward = sum(9 * before * width * side**2 for before, width, side in threes) + 27 * 64 * 1024 + 512 * 10
    assert count.evaluation_flop == 2 * 2 * 10_000 * (forward + COMPOSITION)


def test_a_speedrun_counted_by_hand():
    """A first convolution of a block makes what its pool reads: 22x22 of 23x23 pixels."""
    image = 24 * 12 * 23**2 + 3 * 256 * 10
    filters, sides = ((64, 24), (64, 64), (256, 64), (256, 256), (256, 256), (256, 256)), (22, 11, 10, 5, 4, 2)
    convolutions = [9 * before * width * side**2 for (width, before), side in zip(filters, sides, strict=True)]
    image += 3 * sum(convolutions) - convolutions[0]  # below the first nothing has a gradient
    first = count_recipe(get_recipe("speedrun94")).stages[0]
    assert (first.stage.size, first.step.macs) == (24, 1024 * image)


def test_half_the_epochs_are_half_the_flop_and_a_part_of_one_its_part():
    whole = count_recipe(Recipe()).training_flop
    assert count_recipe(dataclasses.replace(Recipe(), epochs=5)).training_flop * 2 == whole
    part = count_recipe(dataclasses.replace(Recipe(), epochs=2.5))
    assert part.steps == 97 * 2 + 49
    assert part.training_flop * 970 == whole * part.steps


def test_early_crops_and_left_out_images_are_counted_as_they_are_trained():
    recipe = Recipe(epochs=4, augment=Augment(early_crops=((24, 0.5),)), select=SelectConfig(keep=0.5, from_epoch=3))
    count = count_recipe(recipe)
    assert [(stage.stage.size, stage.steps) for stage in count.stages] == [(24, 2 * 97), (32, 97 + 48)]
    small, large = (stage.step for stage in count.stages)
    assert small.macs / large.macs == pytest.approx((24 / 32) ** 2, abs=1e-3)
    assert count.training_flop == 2 * (194 * small.macs + 145 * large.macs)
    smaller = count_recipe(dataclasses.replace(recipe, early_batches=(256,)))
    assert [(stage.step.batch, stage.steps) for stage in smaller.stages] == [(256, 2 * 195), (512, 97 + 48)]
    assert smaller.stages[0].step.macs == pytest.approx(small.macs / 2, rel=1e-3)
    resized = count_recipe(dataclasses.replace(recipe, augment=Augment(early_crops=((24, 0.5),), early="resize")))
    assert resized.training_flop == count.training_flop
    assert resized.moved_bytes - count.moved_bytes == 194 * 512 * 3 * (32**2 - 24**2)  # the whole image is read


def test_a_bias_that_is_frozen_later_takes_its_input_gradient_with_it():
    count = count_recipe(SPEEDRUN)
    assert [stage.steps for stage in count.stages] == [3 * 25, 5 * 25]
    first, rest = (stage.step for stage in count.stages)
    # Without that gradient the whitening can write the border with which the convolution makes 30x30 pixels.
    assert first.macs - rest.macs == 2000 * 24 * 64 * 9 * (3 * 31 * 31 - 2 * 30 * 30)


def test_a_whitening_is_counted_alike_with_and_without_a_gradient():
    first, rest = (stage.step for stage in count_recipe(SPEEDRUN).stages)
    assert first.layers[0] == dataclasses.replace(rest.layers[0], output_shape=(24, 31, 31))  # without the border
    assert (rest.layers[0].name, rest.layers[0].forward) == ("whitening", 2000 * 24 * 12 * 31 * 31)
    out, bordered = 2000 * 24 * 31 * 31 * 2, 2000 * 24 * 32 * 32 * 2
    bias = 24 * 4
    operands = 2000 * 3 * 32 * 32 * 2 + 24 * 12 * 2
    assert rest.products[0] == (rest.layers[0].forward, operands + bias + bordered)
    # GELU's two tensors, its gradient's three, the bias's gradient's one; of the bias some bytes. Without the border
    # the first pool reads 31x31 pixels, and its gradient is as many.
    pool = 2 * 2000 * 64 * (31 * 31 - 30 * 30) * 2
    assert first.moved_bytes - rest.moved_bytes == pytest.approx(6 * out + pool, abs=5 * bias)


def test_newton_schulz_is_counted_by_its_products():
    shapes = [(64, 216), (64, 576), (256, 576), *[(256, 2304)] * 3]
    # One Gram matrix and one application; for three steps 4, 5 and 2 products of squares.
    products = sum(2 * rows * rows * columns + 11 * rows**3 for rows, columns in shapes)
    count = count_recipe(SPEEDRUN)
    assert count.optimizer.macs == products
    assert count.optimizer_flop == 2 * 200 * products
    assert count_recipe(Recipe()).optimizer_flop == 0


def test_an_optimizer_of_torch_moves_bytes_and_multiplies_nothing():
    count = count_recipe(Recipe(optimizer=AdamConfig(lr=1e-3)))
    assert count.optimizer.macs == 0
    assert count.optimizer.moved_bytes > count_recipe(Recipe()).optimizer.moved_bytes


def test_the_statistics_of_an_average_are_forward_passes():
    recipe = Recipe(ema=NO_EMA, average=AverageConfig(epochs=1, images=5000))
    count, plain = count_recipe(recipe), count_recipe(Recipe(ema=NO_EMA))
    assert count.statistics_batches == 9
    assert count.training_flop - plain.training_flop == 2 * 9 * count.statistics.macs
    assert count.statistics.macs == 512 * (count.evaluation.macs - COMPOSITION) + COMPOSITION
    assert count.moved_bytes - plain.moved_bytes == 9 * count.statistics.moved_bytes > 0
    assert count.product_bytes - plain.product_bytes == 9 * count.statistics.product_bytes > 0


@pytest.mark.parametrize(("tta", "share", "passes"), [("none", 1, 1), ("flip", 1, 2), ("flip-crop", 0.25, 2.25)])
def test_passes_are_those_that_the_evaluator_makes(tta, share, passes):
    class Counts(Network):
        config_class = dict

        def build(self, config, classes):
            self.weight = torch.nn.Parameter(torch.zeros(1, 1))
            self.images = 0

        def unscaled(self, x):
            self.images += len(x)
            return torch.zeros(len(x), 10)

    network, dataset = Counts(), make_synthetic(train_size=10, test_size=40)
    config = EvaluateConfig(tta=tta, tta_share=share, batch_size=16)
    evaluate(network, dataset.test, config)
    count = count_recipe(Recipe(evaluate=config), test_images=40)
    assert network.images / 40 == count.evaluation_passes == passes
    assert count.evaluation_flop == 2 * count.evaluation.macs * network.images


def test_members_are_evaluated_alone_too_and_an_average_runs_all_networks():
    def count(network, **changes):
        return count_recipe(change(Recipe(network=network, ema=NO_EMA), changes))

    one = count(MLPConfig()).evaluation_flop
    assert count(MLPConfig(), **{"ensemble.members": 3}).evaluation_flop == 2 * 3 * one
    config = DavidNetInterpolationConfig(widths=(8, 16, 32, 64), loss="coin")
    wide, narrow = (count(each, **{"average.epochs": 1}) for each in (config.wide(), config.narrow()))
    both = count(config, **{"average.epochs": 1})
    assert both.evaluated_members == 4 and wide.evaluated_members == 0
    assert both.evaluation.macs == wide.evaluation.macs + 4 * narrow.evaluation.macs
    assert both.statistics.macs == wide.statistics.macs + 4 * narrow.statistics.macs


def test_wider_numbers_move_more_bytes_and_as_many_flop():
    half, single = count_recipe(Recipe()), count_recipe(Recipe(dtype="float32"))
    assert half.training_flop == single.training_flop
    assert 1.8 < single.activation_bytes / half.activation_bytes <= 2
    assert 1.8 < single.product_bytes / half.product_bytes <= 2


def test_the_floor_lies_between_its_parts_and_their_sum():
    count = count_recipe(Recipe())
    floor = count.floor(790, 4300)
    assert floor["operations"] == pytest.approx(count.training_flop / 790e12)
    assert floor["bytes"] == pytest.approx((count.moved_bytes + count.product_bytes) / 4300e9)
    assert max(floor["operations"], floor["bytes"]) < floor["seconds"] < floor["operations"] + floor["bytes"]
    with pytest.raises(UserError, match="allowed: above 0"):
        count.floor(0, 4300)


def test_the_description_has_every_layer_and_adds_up():
    count = count_recipe(SPEEDRUN)
    said = describe(count, [(790, 4300), (312, 1555)])
    for stage in said["stages"]:
        layers = [layer[part] for layer in stage["layers"] for part in ("forward", "input_gradient", "weight_gradient")]
        assert 2 * sum(layers) * 2000 == pytest.approx(stage["flop_per_step"])
    total = sum(stage["steps"] * stage["flop_per_step"] for stage in said["stages"]) + said["optimizer_flop"]
    assert total == said["training_flop"]
    assert [floor["tflops"] for floor in said["floors"]] == [790, 312]


def test_a_recipe_that_does_not_fit_the_images_is_refused():
    with pytest.raises(UserError, match="batch_size is 512"):
        count_recipe(Recipe(), train_images=100)
    with pytest.raises(UserError, match="drop_last is false, which leaves 336 images"):
        count_recipe(Recipe(drop_last=False))
    with pytest.raises(UserError, match="classes is -1; allowed: 1 or more"):
        count_recipe(Recipe(), classes=-1)


def test_a_last_batch_that_is_not_full_is_counted_as_it_is():
    recipe = Recipe(network=MLPConfig(), epochs=2, drop_last=False)
    full, rest = count_recipe(recipe).stages
    assert [(stage.steps, stage.step.batch) for stage in (full, rest)] == [(2 * 97, 512), (2, 336)]
    assert rest.step.macs * 512 == full.step.macs * 336


@pytest.mark.parametrize(
    ("name", "given", "classes"), [("davidnet", None, 10), ("davidnet", 7, 7), ("speedrun100", None, 100)]
)
def test_the_classifier_has_the_classes_that_are_given_or_those_of_the_recipes_data_set(name, given, classes):
    count = count_recipe(dataclasses.replace(get_recipe(name), epochs=1), classes=given)
    for layer in (count.stages[0].step.layers[-1], count.evaluation.layers[-1]):
        assert (layer.name, layer.output_shape) == ("classifier", (classes,))


def test_the_command_counts_images_of_the_sets_side_or_another(capsys):
    words = ["flops", "--train-images", "512", "--test-images", "1", "--epochs", "1", "--json"]
    for more, side in (([], 32), (["--dataset", "mnist"], 28), (["--resize", "64"], 64)):
        assert main([*words, *more]) == 0
        (stage,) = json.loads(capsys.readouterr().out)["stages"]
        assert stage["size"] == side
        expected = count_recipe(dataclasses.replace(Recipe(), epochs=1), 512, 1, 10, side)
        assert stage["flop_per_step"] == 2 * expected.stages[0].step.macs


@pytest.mark.parametrize("words", [["mine.npz"], ["gone.npz", "--data-dir", "mine.npz"]])
def test_the_command_counts_the_images_of_a_path(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (700, 6, 4, 3), dtype="uint8")
    np.savez("mine.npz", x_train=images, y_train=np.arange(700) % 3, x_test=images[:90], y_test=np.arange(90) % 3)
    flags = ["--resize", "32", "--epochs", "1", "--batch-size", "128", "--json"]
    assert main(["flops", "--dataset", *words, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["flops", "--dataset", *words]) == 2
    assert "6 by 4 pixels; allowed: square ones, as by --resize N" in capsys.readouterr().err
    assert found["steps"] == sum(stage["steps"] for stage in found["stages"]) == 5
    expected = count_recipe(dataclasses.replace(Recipe(), epochs=1, batch_size=128), 700, 90, 3, 32)
    assert found["stages"][0]["flop_per_step"] == 2 * expected.stages[0].step.macs
    assert main(["flops", "--dataset", "cifar10.1"]) == 2
    assert "cifar10.1 has test images only" in capsys.readouterr().err


def test_features_computed_once_are_one_pass_of_all_images_and_a_classifier_in_each_step():
    small = {"network.width": 4, "network.stem": "cifar", "epochs": 3, "batch_size": 32}
    recipe = change(get_recipe("extract-sgd"), {**small, "frozen_mode": "once"})
    once, whole = (count_recipe(each, 100, 40) for each in (recipe, change(recipe, {"frozen_mode": "eval"})))
    classifier = 32 * 10  # 8 * width features; forward and, as nothing below it trains, the weights' gradient
    features = whole.evaluation.macs - classifier
    assert once.training_flop == 2 * (3 * 100 * 2 * classifier + (100 + 40) * features)
    assert whole.training_flop == 2 * 3 * 100 * (whole.evaluation.macs + classifier)
    assert once.evaluation_flop == whole.evaluation_flop  # the whole network's, once
    assert once.moved_bytes < whole.moved_bytes
