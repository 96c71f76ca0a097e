"""The recipes of a tutorial on transfer learning (pystatsml, "Pre-trained networks": ResNet-18 on CIFAR-10), for
`fastcifar finetune`: all weights trained further, or the classifier alone, on what a frozen network gives.

As there: images of 32 pixels normalized by 0.5, no augmentation, batches of 100, the rate a tenth every 7 epochs, which
5 epochs do not reach. Frozen batch norms stay in training mode, so that they use each batch's statistics.
"""

from __future__ import annotations

import dataclasses

from fastcifar.recipes.augmentation import Augment, NormalizeConfig
from fastcifar.recipes.averages import EMAConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.named import add_recipe
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.torch import AdamConfig, TorchSGDConfig
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.schedule import Schedule

_ADAM = AdamConfig(lr=0.001)
_SGD = Recipe(
    name="finetune-sgd",
    epochs=5,
    batch_size=100,
    drop_last=False,
    label_smoothing=0.0,
    network=ResNet18Config(stem="imagenet"),
    normalize=NormalizeConfig(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
    augment=Augment(crop=0, flip="none"),
    optimizer=TorchSGDConfig(lr=0.001, momentum=0.9),
    schedule=Schedule(name="StepLR", options=("step_size=7", "gamma=0.1")),
    ema=EMAConfig(decay=0.0),
    evaluate=EvaluateConfig(tta="none"),
)
_EXTRACT = dataclasses.replace(_SGD, name="extract-sgd", freeze="backbone")

add_recipe(
    _SGD, "5 epochs of SGD at 0.001 for given weights, all trained: a tutorial's fine-tuning (see docs/transfer.md)"
)
add_recipe(dataclasses.replace(_SGD, name="finetune-adam", optimizer=_ADAM), "the same with Adam at 0.001")
add_recipe(_EXTRACT, "5 epochs of SGD at 0.001 for the classifier alone: that tutorial's feature extraction")
add_recipe(dataclasses.replace(_EXTRACT, name="extract-adam", optimizer=_ADAM), "the same with Adam at 0.001")
