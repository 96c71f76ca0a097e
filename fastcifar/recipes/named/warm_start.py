"""The recipes of the experiments on warm starts: plain gradient descent at one rate, without any trick.

They follow the notebook teaching-on-testbeds/re_warm_start_nn, experiment 1, on torchvision's network. Unlike there, an
epoch's last partial batch is dropped, and pixels are divided by their standard deviation over all images (there by
about 0.2 of 1).
"""

from __future__ import annotations

import dataclasses

from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.averages import EMAConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.named import add_recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.text import change

_RESNET18 = Recipe(
    name="warmstart-resnet18",
    epochs=350,
    batch_size=128,
    label_smoothing=0.0,
    network=ResNet18Config(stem="imagenet"),
    augment=Augment(crop=0, flip="none"),
    optimizer=SGDConfig(lr=0.001, momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0),
    schedule=Schedule(knots=(0.0, 1.0), values=(1.0, 1.0)),
    ema=EMAConfig(decay=0.0),
    evaluate=EvaluateConfig(tta="none"),
)

# The same question at the scale of a CPU: DavidNet at a quarter of its width memorizes some thousand images in 18
# epochs. In the last third the rate falls, which brings all runs to the same training accuracy.
_NARROW = dataclasses.replace(
    _RESNET18,
    name="warmstart-narrow",
    epochs=18,
    network=change(Recipe(), {"network.widths": (16, 32, 64, 128)}).network,
    optimizer=AdamConfig(lr=0.002),
    schedule=Schedule(knots=(0.0, 0.7, 1.0), values=(1.0, 1.0, 0.0)),
)

add_recipe(_RESNET18, "350 epochs of plain SGD, no augmentation: 'On Warm-Starting Neural Network Training' (2020)")
add_recipe(
    dataclasses.replace(_RESNET18, name="warmstart-mlp", network=MLPConfig()),
    "the same for that paper's perceptron, 3072-100-100-10",
)
add_recipe(_NARROW, "18 epochs of Adam without augmentation for a narrow DavidNet: that paper's question on a CPU")
