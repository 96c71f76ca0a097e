"""Small networks and recipes, for tests that look into every step of a training."""

import dataclasses

from fastcifar.recipes import RECIPES, Augment, AverageConfig, EMAConfig, Recipe, Schedule, SelectConfig, get_recipe
from fastcifar.recipes.named.ladder import LADDER
from fastcifar.recipes.networks.alexnet import AlexNetConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig

ALEXNET = AlexNetConfig(widths=(4, 4, 8, 8, 4), hidden=(8, 8), dropout=0.0)
NARROW = DavidNetConfig(widths=(4, 8, 12, 16), ghost_batch=4)
MLP = Recipe(name="small", epochs=3, batch_size=16, dtype="float32", network=MLPConfig(hidden=(8,)))
BARE = dataclasses.replace(
    MLP,
    label_smoothing=0.0,
    augment=Augment(crop=0, flip="none"),
    optimizer=SGDConfig(lr=0.05, momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0),
    schedule=Schedule(knots=(0.0, 1.0), values=(1.0, 1.0)),
    ema=EMAConfig(decay=0.0),
)
"""Gradient descent at one rate and nothing else."""
PERCEPTRON = dataclasses.replace(
    get_recipe("warmstart-mlp"),
    batch_size=32,
    dtype="float32",
    network=MLPConfig(hidden=(16,)),
    optimizer=dataclasses.replace(get_recipe("warmstart-mlp").optimizer, lr=0.1),
    epochs=3,
)
"""That of the experiments on warm starts."""
DAVIDNET = dataclasses.replace(MLP, network=DavidNetConfig(widths=(4, 4, 4, 8), ghost_batch=16))
EVERYTHING = dataclasses.replace(
    MLP,
    epochs=4.5,
    early_batches=(10,),
    network=SpeedrunConfig(widths=(4, 4, 8), whitening_bias_epochs=1),
    augment=Augment(flip="by-visit", cutout=6, brightness=0.1, contrast=0.2, early_crops=((20, 0.4),), early="resize"),
    optimizer=MuonConfig(lr=0.05, bias_lr=0.05, head_lr=0.05),
    select=SelectConfig(keep=0.6, from_epoch=1),
    ema=EMAConfig(decay=0),
    average=AverageConfig(epochs=1, every=2, images=64),
)
_RUNGS = (
    "davidnet",
    "baseline",
    "shortest-path",
    "max-pool",
    "early-pool",
    "host-preprocess",
    "weight-decay",
    "extra-1",
)
_LIKE_OTHERS = {"alexnet", "resnet18", "resnet18-mediumimagenet"}
TYPICAL = [
    name
    for name in RECIPES
    if name not in {rung.name for rung in LADDER} | _LIKE_OTHERS or name.removeprefix("myrtle-") in _RUNGS
]
"""Names of recipes, for what takes a while with each: of the ladder's rungs those that differ in kind, and of the
course's one of those that differ in the network alone."""
