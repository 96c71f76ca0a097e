"""The speedrun recipes: the network and tricks of the CIFAR-10 speed records, in fewer operations.

They come from KellerJordan/cifar10-airbench (94, 95 and 96%) and hiverge/cifar10-speedrun (jitter of brightness and
contrast); speedrun94's hyper-parameters and the rescaling of its early images from fulcrumresearch/cifar-10-speedrun
(e1), speedrun100's network, image sizes and schedule from AIDDA-Institute/CIFAR-100-speedrun (NAVIER-STOKED, after
futurebiohackers). New here:
- Batches of 512 or 1024 instead of 1536 to 2000: up to four times as many updates from the same images, with Muon's
  rate lower by about the square root of that.
- Early images of 24 and then 28 pixels (speedrun96: 24; speedrun100: 20 and 24), at half and three quarters of the
  operations: whole images, in speedrun96 random crops. The global final pool allows any size.
- From the third epoch on, the easiest images, by their loss at their last visit, are left out: 35% of all in
  speedrun94, 25% in speedrun95; from the sixth on 40% in speedrun96.
- The whitening has no bias, so that nothing below the first trained convolution has a gradient.
- Of 31, 15 and 7 rows a 2x2 pool reads 30, 14 and 6, and the convolution before it computes no more: with a row and a
  column of zeros at the top and left of its input it needs no padding. The result is the same, for 15%, 5% and 11%
  fewer operations of a step at 24, 28 and 32 pixels.
- Test-time augmentation only where the network is unsure.

cuDNN's search takes some seconds before the first step; on an H100 the convolutions that it finds for 512 images take
11 to 24% less than those of its heuristics (bench/results/accelerator.md).

speedrun94: 94.10% with test-time augmentation (n=21, 95% interval 94.04% to 94.17%), 1.84e+14 FLOP with evaluation,
351.1 s of time_seconds (n=1) on 2 cores of Intel(R) Xeon(R) Processor, 24 GiB.
speedrun95: 94.81% with test-time augmentation (n=1), 7.78e+14 FLOP with evaluation; it was tuned on held-out images,
of which it reached 95.00% (n=1, bench/results/speedrun94-search.jsonl). speedrun96: 95.58% (n=1), 1.74e+15 FLOP. Both
miss their names.
speedrun100, for CIFAR-100: 75.66% without test-time augmentation (n=3, 95% interval 75.52% to 75.79%), 4.03e+14 FLOP
with evaluation. It was tuned on held-out images (bench/results/speedrun100-search.jsonl), where 13 epochs of 45,000
images, 559 steps where 11.5 epochs of all are 552, reached 75.23% (n=3, 95% interval 74.17% to 76.28%).
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

# e1's hyper-parameters for its batches of 1536, converted from the summed loss to the mean over 1024 images; Muon's
# rate is lower.
_SPEEDRUN94 = Recipe(
    name="speedrun94",
    epochs=11,
    batch_size=1024,
    label_smoothing=0.09,
    cudnn_search=True,
    network=SpeedrunConfig(whitening_bias_epochs=0, norm_momentum=1 - 0.5566),
    augment=Augment(
        crop=2, flip="alternating", brightness=0.14, contrast=0.13, early_crops=((24, 0.2), (28, 0.6)), early="resize"
    ),
    optimizer=MuonConfig(
        lr=0.19,
        momentum=0.655,
        weight_decay=1.0418e-6 * 1024,
        filter_decay=1.0418e-6 * 1024 * 0.19,
        head_lr=0.5415 * 1024,
        bias_lr=0.0573 * 1024,
        sgd_momentum=0.825,
        ns_coefficients=(3.4576, -4.7391, 2.0843),
        norm_every=2,
        norm_growth=15,
    ),
    schedule=Schedule(knots=(0.0, 1.0), values=(1.0, 0.0)),
    ema=EMAConfig(decay=0),
    select=SelectConfig(keep=0.65, from_epoch=2),
    # Large enough that a GPU does not wait for the host, and that the unsure images are one batch.
    evaluate=EvaluateConfig(tta="flip-crop", tta_share=0.25, batch_size=2500),
)

# airbench95's widths. Without cutout, 14 and 17 epochs fit the training images and reached 94.8% of held-out ones.
_SPEEDRUN95 = dataclasses.replace(
    _SPEEDRUN94,
    name="speedrun95",
    epochs=16,
    network=dataclasses.replace(_SPEEDRUN94.network, widths=(128, 384, 384)),
    augment=dataclasses.replace(_SPEEDRUN94.augment, cutout=8),
    select=SelectConfig(keep=0.75, from_epoch=2),
)

# airbench96's widths, depth, crops and cutout, with airbench94_muon's head, rates and decay, converted from the summed
# loss to the mean over 512 images; running statistics over as many images as its momentum of 0.4 with batches of 2000.
# The easiest images are found by their own losses (airbench96_faster: by a small network's).
_SPEEDRUN96 = dataclasses.replace(
    _SPEEDRUN94,
    name="speedrun96",
    epochs=24,
    batch_size=512,
    label_smoothing=0.1,
    network=SpeedrunConfig(widths=(128, 384, 512), depth=3, residual=True, whitening_bias_epochs=0, norm_momentum=0.1),
    augment=Augment(crop=4, flip="alternating", cutout=12, early_crops=((24, 0.22),)),
    optimizer=MuonConfig(
        lr=0.16,
        momentum=0.6,
        weight_decay=2e-6 * 512,
        head_lr=0.67 * 512,
        bias_lr=0.053 * 512,
        sgd_momentum=0.85,
    ),
    select=SelectConfig(keep=0.6, from_epoch=5),
    evaluate=EvaluateConfig(tta="flip-crop", batch_size=2500),
)

# The network, the sizes of early images and the rise of the rate of CIFAR-100's speed records: most channels where
# images are 3 by 3. Muon and its rates as in speedrun94. A step changes the logits by the head's rate times the square
# of their scale, which 768 inputs make small.
_SPEEDRUN100 = dataclasses.replace(
    _SPEEDRUN94,
    name="speedrun100",
    epochs=11.5,
    label_smoothing=0.25,
    network=dataclasses.replace(
        _SPEEDRUN94.network,
        widths=(64, 256, 768),
        depth=3,
        inner_widths=(0, 192, 512),
        kernels=((3, 1, 1), (3, 3, 1), (2, 3, 3)),
        residual=True,
        residual_after=True,
        activation="silu",
        whitening_activation="silu",
        final_pool="max+avg",
    ),
    augment=Augment(crop=2, flip="alternating", early_crops=((20, 0.15), (24, 0.5)), early="resize"),
    optimizer=dataclasses.replace(
        _SPEEDRUN94.optimizer, lr=0.2, filter_decay=1.0418e-6 * 1024 * 0.2, head_lr=26.9 * 1024
    ),
    schedule=Schedule(knots=(0.0, 0.25, 1.0), values=(0.0, 1.0, 0.0)),
    select=SelectConfig(),
    evaluate=EvaluateConfig(tta="none", batch_size=2500),
)

add_recipe(_SPEEDRUN94, "94.10% with TTA in 11 epochs: airbench's network and Muon, hiverge's and fulcrum's changes")
add_recipe(_SPEEDRUN95, "94.81% with TTA: speedrun94's network, wider, for longer and with cutout; aims at 95%")
add_recipe(_SPEEDRUN96, "95.58% with TTA: deeper, with residuals, in batches of 512 by airbench's rates; aims at 96%")
add_recipe(_SPEEDRUN100, "for CIFAR-100, 75.66% without TTA: bottlenecks, residuals and most channels at the end")
