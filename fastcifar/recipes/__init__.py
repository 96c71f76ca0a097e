"""Training methods as values: the recipe, the named ones, and their TOML files. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fastcifar.errors import UserError
from fastcifar.recipes.change import change
from fastcifar.recipes.fields import did_you_mean
from fastcifar.recipes.recipe import (
    Augment,
    AverageConfig,
    EMAConfig,
    EvaluateConfig,
    LookaheadConfig,
    LossScalingConfig,
    MLPConfig,
    ModelConfig,
    NormalizeConfig,
    OptimConfig,
    Recipe,
    ResNetConfig,
    Schedule,
    SelectConfig,
    SpeedrunConfig,
)
from fastcifar.recipes.speedrun import SPEEDRUN94, SPEEDRUN95, SPEEDRUN96
from fastcifar.recipes.toml import read_toml, recipe_from_dict, to_toml

__all__ = [
    "RECIPES",
    "SUMMARIES",
    "Augment",
    "AverageConfig",
    "EMAConfig",
    "EvaluateConfig",
    "LookaheadConfig",
    "LossScalingConfig",
    "MLPConfig",
    "ModelConfig",
    "NormalizeConfig",
    "OptimConfig",
    "Recipe",
    "ResNetConfig",
    "Schedule",
    "SelectConfig",
    "SpeedrunConfig",
    "change",
    "get_recipe",
    "quick",
    "read_toml",
    "recipe_from_dict",
    "to_toml",
]

# The settings of the experiments on warm starts: bare gradient descent at one rate, with nothing that helps. The
# notebook is teaching-on-testbeds/re_warm_start_nn, experiment 1, on torchvision's own network. Other than there an
# epoch's last partial batch is dropped, and pixels are divided by their standard deviation over all images (there by
# about 0.2 of 1).
_WARM_START = Recipe(
    name="warmstart-resnet18",
    epochs=350,
    batch_size=128,
    label_smoothing=0.0,
    network="resnet18",
    resnet=ResNetConfig(stem="imagenet"),
    augment=Augment(crop=0, flip="none"),
    optim=OptimConfig(lr=0.001, momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0),
    schedule=Schedule(knots=(0.0, 1.0), values=(1.0, 1.0)),
    ema=EMAConfig(decay=0.0),
    evaluate=EvaluateConfig(tta="none"),
)

# The same question at a scale for a CPU: DavidNet at a quarter of its width learns some thousand images by heart in 18
# epochs, of which the last third, at a falling rate, brings all runs to the same training accuracy.
_WARM_START_NARROW = dataclasses.replace(
    _WARM_START,
    name="warmstart-narrow",
    epochs=18,
    network="davidnet",
    model=ModelConfig(widths=(16, 32, 64, 128)),
    resnet=ResNetConfig(width=16, stem="imagenet"),
    optim=dataclasses.replace(_WARM_START.optim, name="Adam", lr=0.002),
    schedule=Schedule(knots=(0.0, 0.7, 1.0), values=(1.0, 1.0, 0.0)),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(),
        SPEEDRUN94,
        SPEEDRUN95,
        SPEEDRUN96,
        _WARM_START,
        dataclasses.replace(_WARM_START, name="warmstart-mlp", network="mlp"),
        _WARM_START_NARROW,
    )
}
"""The named recipes."""

SUMMARIES: dict[str, str] = {
    "davidnet": "94.1% in 10 epochs: the ResNet-9 at the end of 'How to train your ResNet' (Page 2019)",
    "speedrun94": "94.03% with TTA in 10 epochs: Muon and the network of airbench and hiverge (2024-2025)",
    "speedrun95": "the same, wider and longer, aims at 95%",
    "speedrun96": "the same with residuals, cutout and the easiest images left out, aims at 96%",
    "warmstart-resnet18": "350 epochs of plain SGD, no augmentation: 'On Warm-Starting Neural Network Training' (2020)",
    "warmstart-mlp": "the same for that paper's perceptron, 3072-100-100-10",
    "warmstart-narrow": "18 epochs of Adam without augmentation for a narrow DavidNet: that paper's question on a CPU",
}
"""One line on each named recipe."""

QUICK_WIDTH_DIVISOR = 4
QUICK_EPOCHS = 3
QUICK_BATCH_SIZE = 128
QUICK_EMA_DECAY = 0.95
QUICK_TRAIN_SIZE = 8_000
"""What `--quick` makes of a recipe, sized to end in under 60 s on two CPU cores: the widths divided, at most as many
epochs, images and images per step, and an average that forgets at least as fast, there being fewer steps."""


def get_recipe(name_or_path: str) -> Recipe:
    """A recipe by its name in `RECIPES` or by the path of its TOML file. Raises UserError for neither."""
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return read_toml(path)
    hint = did_you_mean(name_or_path, RECIPES)
    raise UserError(f"unknown recipe {name_or_path!r}{hint}; allowed: {', '.join(RECIPES)}, or a .toml file's path")


def _for_batch(optim: OptimConfig, ratio: float) -> OptimConfig:
    """`optim` for batches of another size: rates in proportion to it, and where the decay is written as a share of the
    weight in each step, as with muon, that too. Muon's own rate does not depend on the gradient's scale."""
    muon = optim.name == "muon"
    return dataclasses.replace(
        optim,
        lr=optim.lr if muon else optim.lr * ratio,
        weight_decay=optim.weight_decay * ratio if muon else optim.weight_decay,
        bias_lr=optim.bias_lr * ratio,
        head_lr=optim.head_lr * ratio,
    )


def quick(recipe: Recipe) -> tuple[Recipe, int]:
    """A narrower and shorter `recipe` and the number of training images for it: the same path in under a minute.

    Steps are smaller so that there are enough of them, and the learning rate smaller in proportion.
    """
    ghost = recipe.ghost_batch
    batch_size = min(recipe.batch_size, max(ghost, QUICK_BATCH_SIZE // ghost * ghost))
    widths = tuple(max(1, width // QUICK_WIDTH_DIVISOR) for width in recipe.model.widths)
    width = max(1, recipe.resnet.width // QUICK_WIDTH_DIVISOR)
    speedrun_widths = tuple(max(1, width // QUICK_WIDTH_DIVISOR) for width in recipe.speedrun.widths)
    smaller = dataclasses.replace(
        recipe,
        epochs=min(recipe.epochs, QUICK_EPOCHS),
        batch_size=batch_size,
        model=dataclasses.replace(recipe.model, widths=widths),
        resnet=dataclasses.replace(recipe.resnet, width=width),
        speedrun=dataclasses.replace(recipe.speedrun, widths=speedrun_widths),
        optim=_for_batch(recipe.optim, batch_size / recipe.batch_size),
        ema=dataclasses.replace(recipe.ema, decay=min(recipe.ema.decay, QUICK_EMA_DECAY)),
    )
    return smaller, QUICK_TRAIN_SIZE
