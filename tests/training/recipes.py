"""Small recipes for tests that look into every step of a training."""

import dataclasses

from fastcifar.recipes import Augment, AverageConfig, EMAConfig, Recipe, SelectConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig

PLAIN = Recipe(epochs=3, batch_size=16, dtype="float32", network=DavidNetConfig(widths=(4, 4, 4, 8), ghost_batch=16))
EVERYTHING = dataclasses.replace(
    PLAIN,
    epochs=4.5,
    network=SpeedrunConfig(widths=(4, 4, 8), whitening_bias_epochs=1),
    augment=Augment(flip="alternating", cutout=6, brightness=0.1, contrast=0.2, early_crops=((20, 0.4),)),
    optimizer=MuonConfig(lr=0.05, bias_lr=0.05, head_lr=0.05),
    select=SelectConfig(keep=0.6, from_epoch=1),
    ema=EMAConfig(decay=0),
    average=AverageConfig(epochs=1, every=2, images=64),
)
