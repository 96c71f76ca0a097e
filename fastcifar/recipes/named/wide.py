"""Wide networks, for comparisons with ensembles of narrow ones: the same training at another width.

Twice the width is about four times the weights and the multiply-adds: what four of the narrow networks have.
"""

from __future__ import annotations

import math

from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.averages import EMAConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.named import add_recipe
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.text import change

_WIDE = change(Recipe(name=f"wide-{Recipe.name}"), {"network.widths": (128, 256, 512, 1024)})

# "WRN-18-2" as Zagoruyko and Komodakis (2016) count, depth and factor of the width, with all layers doubled: the stem
# too, which they leave at 64 channels (45.6 million weights for ImageNet; here 45.7). Trained as that network is in
# cellistigs/interp_ensembles (2021): the rate rises for 30 of 100 epochs and falls along a cosine, here in tenths.
_COSINE = tuple(tenth / 10 for tenth in range(3, 11))
_WIDE_RESNET18 = Recipe(
    name="wide-resnet18-2",
    epochs=100,
    batch_size=256,
    label_smoothing=0.0,
    network=ResNet18Config(width=128),
    augment=Augment(crop=4, flip="random"),
    optimizer=SGDConfig(lr=0.01, momentum=0.9, weight_decay=0.01, bias_lr_factor=1.0),
    schedule=Schedule(
        knots=(0.0, *_COSINE),
        values=(0.0, *(round((1 + math.cos(math.pi * (place - 0.3) / 0.7)) / 2, 6) for place in _COSINE)),
    ),
    ema=EMAConfig(decay=0.0),
    evaluate=EvaluateConfig(tta="none"),
)

add_recipe(_WIDE, f"{Recipe.name} at twice the width: four times the weights, as four networks have")
add_recipe(_WIDE_RESNET18, "100 epochs of SGD for ResNet-18 at twice the width (Zagoruyko 2016: WRN-18-2)")
