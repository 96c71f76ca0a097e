"""The recipes of a first vision course: LeNet, AlexNet and ResNet-18 from its homework, and a stronger ResNet-18.

The homework's training is one for all its networks: AdamW at 3e-4 with torch's defaults, batches of 256, 50 epochs, a
cosine over all of them to 0, horizontal flips, and brightness, contrast and saturation at random. How far these go it
does not say: 0.3 is ours. Its figures: 38.6% for LeNet, 76.8% for AlexNet at 70 pixels, 88.6% for ResNet-18.
"""

from __future__ import annotations

import dataclasses

import fastcifar.recipes.named.warm_start  # noqa: F401  (its ResNet-18 stays the first: `network_of` takes that)
from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.averages import EMAConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.named import add_recipe
from fastcifar.recipes.networks.alexnet import AlexNetConfig
from fastcifar.recipes.networks.lenet import LeNetConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamWConfig
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.text import change

_LENET = change(
    Recipe(
        name="lenet",
        epochs=50,
        batch_size=256,
        drop_last=False,
        label_smoothing=0.0,
        network=LeNetConfig(),
        augment=Augment(crop=0, flip="random"),
        optimizer=AdamWConfig(lr=3e-4, weight_decay=0.01),
        schedule=Schedule(name="CosineAnnealingLR", options=("eta_min=0",)),
        ema=EMAConfig(decay=0.0),
        evaluate=EvaluateConfig(tta="none"),
    ),
    {f"transforms.color_jitter.{name}": 0.3 for name in ("brightness", "contrast", "saturation")},
)
_RESNET18 = dataclasses.replace(_LENET, name="resnet18", network=ResNet18Config())

# Zagoruyko and Komodakis's weight decay and Nesterov momentum, DeVries and Taylor's crops and cutout (95.3% and 96.0%
# for ResNet-18 in 200 epochs, without and with cutout), in one cycle (Smith 2017) of 30 epochs.
_STRONG = Recipe(
    name="resnet18-95",
    epochs=30,
    batch_size=128,
    label_smoothing=0.1,
    network=ResNet18Config(),
    augment=Augment(crop=4, flip="random", cutout=8),
    optimizer=SGDConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, bias_lr_factor=1.0),
    schedule=Schedule(name="OneCycleLR", options=("pct_start=0.2", "div_factor=10")),
    ema=EMAConfig(decay=0.0),
    evaluate=EvaluateConfig(tta="flip"),
)

add_recipe(_LENET, "the course's LeNet: AdamW and a cosine, 50 epochs")
add_recipe(
    dataclasses.replace(_LENET, name="alexnet", network=AlexNetConfig()),
    "the same for AlexNet, on images brought to 70 pixels",
)
add_recipe(_RESNET18, "the same for ResNet-18 with a 3x3 stem")
add_recipe(
    dataclasses.replace(_RESNET18, name="resnet18-mediumimagenet", network=ResNet18Config(stem="imagenet")),
    "the same with torchvision's stem, for 96 or 224 pixels: --dataset medium-imagenet-96.hdf5",
)
add_recipe(_STRONG, "30 epochs of SGD for ResNet-18, one cycle, crops, cutout: aims at 95%")
