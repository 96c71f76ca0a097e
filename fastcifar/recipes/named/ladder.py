"""The ladder: "How to train your ResNet" (Page 2018-2019, all eight posts) as recipes, each its difference from the one
before it, with the posts' own figures.

Rates, schedules and initial values are those of davidcpage/cifar10-fast (experiments.ipynb, dawn.py,
bag_of_tricks.ipynb, new_dawn.py), converted from the summed loss to the mean. The schedule of the entry to DAWNBench
that post 1 begins with is bkj/basenet's `linear_cycle`: from 0 to 0.1 in 15 epochs, then from 0.105 down to 0.005 at
epoch 30, and to 0 at 35; the jump of 0.005 is what the post calls a kink. The posts' figures are accuracies on the
test set and seconds on one V100, as the posts and experiments.ipynb state them. What differs here: weights have master
copies in single precision, and an epoch's last batch, if it is not full, takes a step at the whole rate.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcifar.recipes.named import RECIPES, add_recipe
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import change

FENWICKS = "fenwicks"


@dataclass(frozen=True)
class Rung:
    """A step of the ladder."""

    recipe: Recipe
    before: str
    """The rung that it is a change of; that of the first is empty."""
    changes: Mapping[str, Any]
    """The difference, by the fields' dotted names; of the first rung from DavidNet's recipe."""
    changed: str
    """The difference in words."""
    post: int
    """The post that it is in; 0: none of them."""
    accuracy: float | None = None
    """The post's accuracy on the test set, without test-time augmentation but in the last rung; None: it has none."""
    seconds: float | None = None
    """The post's seconds of training; None: it has none."""
    is_branch: bool = False
    """It leads nowhere: what follows it changes another rung."""

    @property
    def name(self) -> str:
        """The name of its recipe, and its own."""
        return self.recipe.name


def _triangle(epochs: float, peak: float) -> dict[str, Any]:
    """Return changes: so many epochs, with the highest rate at the epoch `peak`."""
    return {"epochs": epochs, "schedule.knots": (0.0, peak / epochs, 1.0)}


def _walk() -> list[Rung]:
    rungs: list[Rung] = []

    def rung(
        name: str, changes: dict[str, Any], changed: str, post: int, accuracy: float, seconds: float | None = None
    ) -> None:
        before = rungs[-1].recipe if rungs else Recipe()
        recipe = change(before, {"name": name, **changes})
        rungs.append(Rung(recipe, rungs[-1].name if rungs else "", changes, changed, post, accuracy, seconds))

    plain = {
        "label_smoothing": 0.0,
        "drop_last": False,
        "optimizer.bias_lr_factor": 1.0,
        "ema.decay": 0.0,
        "evaluate.tta": "none",
    }
    johnson = {
        "epochs": 35,
        "batch_size": 128,
        "optimizer.lr": 0.1,
        "schedule.knots": (0.0, 15 / 35, 15.001 / 35, 30 / 35, 1.0),
        "schedule.values": (0.0, 1.0, 1.05, 0.05, 0.0),
    }
    network = {"network": {"kind": "myrtle", "norm_precision": "half"}}
    rung("myrtle-baseline", {**network, **johnson, **plain}, "the entry to DAWNBench: 18 layers", 1, 0.94, 356)
    smooth = {"schedule.knots": (0.0, 15 / 35, 30 / 35, 1.0), "schedule.values": (0.0, 1.0, 0.05, 0.0)}
    changes = {"network.stem_norm": False, **smooth}
    rung("myrtle-single-norm", changes, "no doubled norm and ReLU, no kink", 1, 0.94, 323)

    larger = {"batch_size": 512, "optimizer.lr": 0.44, "schedule.values": (0.0, 1.0, 0.005 / 0.44, 0.0)}
    rung("myrtle-minibatch", larger, "batch 512, rate up 10% for it", 2, 0.94, 256)

    rung("myrtle-fast-norm", {"network.norm_precision": "single"}, "norms in single precision", 3, 0.94, 186)
    rung("myrtle-cutout", {"augment.cutout": 8}, "cutout of 8 by 8", 3, 0.943)
    changes = {"batch_size": 768, "optimizer.lr": 0.6, "schedule.values": (0.0, 1.0, 0.0), **_triangle(30, 8)}
    rung("myrtle-regularised", changes, "batch 768, 30 epochs", 3, 0.94, 154)

    changes = {"network.blocks": "shortcut", "batch_size": 512, "optimizer.lr": 0.4, **_triangle(20, 4)}
    rung("myrtle-shortest-path", changes, "the shortest path alone, 20 epochs, batch 512", 4, 0.559, 36)
    changes = {"network.blocks": "convolution", "network.stem_norm": True}
    rung("myrtle-no-repeat", changes, "no repeated norm and ReLU", 4, 0.560, 32)
    rung("myrtle-3x3", {"network.downsampling": "3x3"}, "3x3 downsampling convolutions", 4, 0.856, 36)
    rung("myrtle-max-pool", {"network.downsampling": "max-pool"}, "max-pool downsampling", 4, 0.897, 43)
    changes = {"network.final_pool": "max", "network.widths": (64, 128, 256, 512)}
    rung("myrtle-global-max-pool", changes, "global max-pool alone, last width doubled", 4, 0.907, 47)
    backbone = {
        "kind": "davidnet",
        "whitening": False,
        "residual": (),
        "ghost_batch": 0,
        "freeze_scale": False,
        "activation": "relu",
        "pool_after": "activation",
        "logit_scale": 1 / 8,
    }
    rung("myrtle-scales", {"network": backbone}, "norm scales begin at 1, logits times 1/8", 4, 0.911, 47)
    rung("myrtle-residual", {"network.residual": (1, 3)}, "residual blocks in layers 1 and 3", 4, 0.938, 66)
    changes = {"drop_last": True, **_triangle(24, 5)}
    rung("myrtle-architecture", changes, "24 epochs; only full batches", 4, 0.9408, 79)

    changes = {"network.pool_after": "convolution", **_triangle(25, 5)}
    rung("myrtle-early-pool", changes, "pools before norms, 25 epochs", 8, 0.941, 64)
    changes = {"label_smoothing": 0.2, "epochs": 23}
    rung("myrtle-label-smoothing", changes, "label smoothing 0.2, 23 epochs", 8, 0.941, 59)
    changes = {"network.activation": "celu", "network.celu_alpha": 0.075, "epochs": 20}
    rung("myrtle-celu", changes, "CELU, 20 epochs", 8, 0.941, 52)
    changes = {"network.ghost_batch": 32, "optimizer.lr": 0.6, "epochs": 18}
    rung("myrtle-ghost-norm", changes, "ghost batches of 32, rate 0.6, 18 epochs", 8, 0.941, 46)
    frozen = {
        "network.freeze_scale": True,
        "network.celu_alpha": 0.3,
        "network.logit_scale": 1 / 16,
        "optimizer.bias_lr_factor": 64.0,
        "epochs": 17,
    }
    rung("myrtle-frozen-scales", frozen, "norm scales stay 1, biases at 64 times the rate, 17 epochs", 8, 0.941, 43)
    changes = {"network.whitening": True, "augment.cutout": 5, "optimizer.lr": 1.0, "epochs": 14}
    rung("myrtle-whitening", changes, "patch whitening, rate 1, cutout of 5 by 5, 14 epochs", 8, 0.941, 36)
    floored = {"schedule.knots": (0.0, 0.2, 11 / 13, 1.0), "schedule.values": (0.0, 1.0, 0.1, 0.1)}
    changes = {"ema.decay": 0.99, "epochs": 13, **floored}
    rung("myrtle-ema", changes, "moving average, rate not below a tenth, 13 epochs", 8, 0.941, 34)
    shorter = {"epochs": 10, "schedule.knots": (0.0, 0.2, 0.8, 1.0)}
    changes = {"evaluate.tta": "flip", "augment.cutout": 0, **shorter}
    rung(Recipe.name, changes, "test-time augmentation, no cutout, 10 epochs", 8, 0.941, 26)
    return rungs


def _branches(walk: list[Rung]) -> list[Rung]:
    before = {rung.name: rung.recipe for rung in walk}
    branches: list[Rung] = []

    def rung(name: str, of: str, changes: dict[str, Any], changed: str, post: int, **figures: float) -> None:
        before[name] = change(before[of], {"name": name, **changes})
        branches.append(Rung(before[name], of, changes, changed, post, **figures, is_branch=True))  # pyright: ignore[reportArgumentType]

    # Off the walk, since on a GPU of today the loader would be all that the other rungs' times say.
    last, once, bulk, main = "myrtle-single-norm", "myrtle-preprocess-once", "myrtle-bulk-random", "myrtle-main-thread"
    several = {"loading.loader": "host", "loading.workers": 4}
    rung("myrtle-dataloader", last, several, "torch's DataLoader, 4 processes", 1, accuracy=0.94, seconds=323)
    changes: dict[str, Any] = {"loading.preprocess": "host", "loading.workers": 1}
    rung(once, "myrtle-dataloader", changes, "preprocessed once, 1 process", 1, accuracy=0.94, seconds=308)
    rung(bulk, once, {"loading.random": "epoch"}, "random numbers in bulk", 1, accuracy=0.94, seconds=301)
    rung(main, bulk, {"loading.workers": 0}, "no process but the main one", 1, accuracy=0.94, seconds=297)
    changes = {"loading.loader": "host", "loading.workers": 0, "loading.random": "epoch"}
    last = "myrtle-architecture"
    rung("myrtle-host-preprocess", last, {**changes, "loading.preprocess": "host"}, "a DataLoader, as so far there", 8)
    changes = {"loading.preprocess": "device"}
    rung("myrtle-device-preprocess", "myrtle-host-preprocess", changes, "preprocessed on the device", 8, seconds=70)
    kinds = {"extra": "an extra convolution", "residual": "a residual block"}
    for (kind, what), count in itertools.product(kinds.items(), (1, 2, 3)):
        for layers in itertools.combinations((1, 2, 3), count):
            if (kind, layers) != ("residual", (1, 3)):  # which is on the walk
                name = "-".join(["myrtle", kind, *map(str, layers)])
                where = "layer" + "s" * (count > 1) + " " + " and ".join(map(str, layers))
                rung(name, "myrtle-scales", {f"network.{kind}": layers}, f"{what} in {where}", 4)
    # The posts train no whole recipe with LARS or without norm. LARS has the rates of its kind's defaults, for a rate
    # of 1 of SGD, in proportion; without norm the rate is one that post 7's stress test was stable at.
    lars = {"kind": "lars", "lr": 8.0, "bias_lr": 0.4, "sgd_momentum": 0.9}
    rung("myrtle-weight-decay", last, {"optimizer": lars}, "LARS", 6)
    rung("myrtle-batch-norm", last, {"network.norm": False, "optimizer.lr": 0.1}, "no batch norm, rate 0.1", 7)
    changes = {"optimizer.weight_decay": 1.25e-4}
    changed = "Fenwicks: weight decay 1.25e-4; its schedule is called slanted triangular"
    rung(FENWICKS, last, changes, changed, 0, accuracy=0.9424, seconds=60)
    return branches


WALK = tuple(_walk())
"""The rungs from the entry to DAWNBench to DavidNet's recipe, in order."""
LADDER = (*WALK, *_branches(list(WALK)))
"""All rungs: the walk, then its branches."""

len(RECIPES)  # imports all others, unless that is going on and has come here
for _other in ("speedrun", "warm_start", "wide"):  # whose few recipes are listed first
    importlib.import_module(f"fastcifar.recipes.named.{_other}")
for _rung in LADDER:
    if _rung.name != Recipe.name:  # which is there already
        _post = f", post {_rung.post} (Page {2018 if _rung.post < 7 else 2019})" if _rung.post else ""
        add_recipe(_rung.recipe, f"ladder{_post}: {_rung.changed}")
