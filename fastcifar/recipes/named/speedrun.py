"""The speedrun recipes: the network and tricks of the CIFAR-10 speed records, in fewer operations.

Where they come from: KellerJordan/cifar10-airbench (94, 95 and 96%) and hiverge/cifar10-speedrun, the latter's jitter
of brightness and contrast with it. What is ours: batches of 512 instead of 1536 to 2000, so that the same images give
three to four times as many updates, with Muon's rate lower in about the square root of that; random crops of 24 and
then 28 pixels, without resampling, in the first six of ten epochs, at half and three quarters of the operations, which
the global final pool allows; from the third epoch on the easiest quarter of the images, by their loss at their last
visit, is left out; a whitening without bias, so that nothing below the first trained convolution has a gradient; and
test-time augmentation only where the network is unsure. cuDNN's search takes some seconds before the first step; on an
H100 the convolutions that it finds take 11 to 24% less than those of its heuristics (bench/results/accelerator.md).

speedrun94: 94.03% with test-time augmentation (n=7, 95% interval 93.89% to 94.17%), 2.22e+14 FLOP with evaluation,
330.3 s of time_seconds (n=1) on 2 cores of Intel(R) Xeon(R) Processor @ 2.10GHz with AMX, 24 GiB.
speedrun95: once, on held-out images (bench/results/speedrun94-search.jsonl); speedrun96 has not been measured.
"""

from __future__ import annotations

import dataclasses

from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.averages import EMAConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.named import add_recipe
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.selection import SelectConfig

_BATCH = 512
# Running statistics over as many images as airbench's share of 0.4 makes of its batches of 2000.
_NETWORK = SpeedrunConfig(whitening_bias_epochs=0, norm_momentum=0.1)

_SPEEDRUN94 = Recipe(
    name="speedrun94",
    epochs=10,
    batch_size=_BATCH,
    label_smoothing=0.1,
    cudnn_search=True,
    network=_NETWORK,
    augment=Augment(crop=2, flip="alternating", brightness=0.14, contrast=0.13, early_crops=((24, 0.2), (28, 0.6))),
    # airbench94_muon's rates and decay for a summed loss, written for the mean over a batch of this size.
    optimizer=MuonConfig(
        lr=0.16,
        momentum=0.6,
        weight_decay=2e-6 * _BATCH,
        head_lr=0.67 * _BATCH,
        bias_lr=0.053 * _BATCH,
        sgd_momentum=0.85,
    ),
    schedule=Schedule(knots=(0.0, 1.0), values=(1.0, 0.0)),
    ema=EMAConfig(decay=0),
    select=SelectConfig(keep=0.75, from_epoch=2),
    # So large that a GPU is not kept waiting by the host, and that the unsure images are one batch.
    evaluate=EvaluateConfig(tta="flip-crop", tta_share=0.25, batch_size=2500),
)

# airbench95's widths; as many epochs as 95% took on held-out images, where eleven fell short.
_SPEEDRUN95 = dataclasses.replace(
    _SPEEDRUN94,
    name="speedrun95",
    epochs=14,
    network=dataclasses.replace(_NETWORK, widths=(128, 384, 384)),
)

# airbench96's widths, depth, crops and cutout, with airbench94_muon's head, which Muon's rates are for; the easiest
# images are left out by their own losses, where airbench96_faster asks a small network. Its accuracy with these
# settings has not been measured.
_SPEEDRUN96 = dataclasses.replace(
    _SPEEDRUN94,
    name="speedrun96",
    epochs=24,
    network=dataclasses.replace(_NETWORK, widths=(128, 384, 512), depth=3, residual=True),
    augment=Augment(crop=4, flip="alternating", cutout=12, early_crops=((24, 0.22),)),
    select=SelectConfig(keep=0.6, from_epoch=5),
    evaluate=EvaluateConfig(tta="flip-crop", batch_size=2500),
)

add_recipe(_SPEEDRUN94, "94.03% with TTA in 10 epochs: Muon and the network of airbench and hiverge (2024-2025)")
add_recipe(_SPEEDRUN95, "the same, wider and longer, aims at 95%")
add_recipe(_SPEEDRUN96, "the same with residuals, cutout and the easiest images left out, aims at 96%")
