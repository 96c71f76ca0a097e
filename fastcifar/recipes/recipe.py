"""`Recipe`: everything about a training method, as frozen values that check themselves.

Standard library only, so that the command line can refuse a bad field before torch is imported. Dataset, subset, seed,
initialization and device are no part of the method: they belong to the run.
"""

# ruff: noqa: RUF009  the sections are frozen: all recipes can share one as their default

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from fastcifar.errors import UserError, brief
from fastcifar.recipes.augmentation import Augment, MixConfig, NormalizeConfig
from fastcifar.recipes.averages import AverageConfig, EMAConfig, LookaheadConfig, refuse_averages
from fastcifar.recipes.declare import Checked, sections_of, setting, trick
from fastcifar.recipes.ensemble import EnsembleConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.freezing import refuse_frozen
from fastcifar.recipes.loading import LoadingConfig
from fastcifar.recipes.networks import NetworkConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers import OptimizerConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.precision import LossScalingConfig
from fastcifar.recipes.replacement import ContinualBackpropConfig, ReDoConfig, refuse_replacement
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.selection import SelectConfig
from fastcifar.recipes.transforms import Transforms


@dataclass(frozen=True)
class Recipe(Checked):
    """A whole training method. The defaults are DavidNet's; `fastcifar recipes` lists the named ones."""

    name: str = "davidnet"
    """Name of the recipe in a run's outputs."""
    epochs: float = setting(10, above=0, at_most=100_000)
    """Passes over the training images (with select, over those it keeps); the last may be a partial one."""
    batch_size: int = setting(512, at_least=1, unit="images")
    """Images per step."""
    early_batches: tuple[int, ...] = trick(
        (),
        off=(),
        at_least=1,
        unit="images",
        source="Smith 2018",
        why=(
            "Small batches early take more steps in as many operations, and their noise does no harm while "
            "the rate is high."
        ),
    )
    """Images per step, at most batch_size, in the epochs of the first size of augment.early_crops, of the second, and
    so on, at the same rates for their mean loss: more steps in as many operations. None: batch_size."""
    drop_last: bool = True
    """Drop an epoch's last batch if it is not full; false: take a step of fewer images, at the same rate for their mean
    loss."""
    label_smoothing: float = trick(
        0.2,
        off=0.0,
        at_least=0,
        at_most=1,
        source="Szegedy 2016",
        why=(
            "A target that is not quite certain keeps logits from growing without bound, which regularizes "
            "and calibrates."
        ),
    )
    """Share of the target spread evenly over the classes; 0: none."""
    l2_init: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        source="Kumar 2023",
        why="A network near its fresh weights is still able to learn what comes later.",
    )
    """Add l2_init / 2 times the squared distance of all trained weights from the run's fresh ones to the mean loss: so
    a warm start too is pulled toward a fresh network, not toward its source; 0: nothing."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: float16 on CUDA; on a CPU bfloat16 where that is measured to be faster, else float32."""
    compile: Literal["off", "step"] = "off"
    """step: compile the network's forward and backward pass with torch.compile, ahead of the training; it counts in
    process_seconds alone. Where that is impossible, a line says so and it stays off."""
    cudnn_search: bool = False
    """Let cuDNN search for the fastest convolution of each shape (torch's cudnn.benchmark, without its limit) in
    warm-up, capture, steps and evaluation; takes seconds at the start. CUDA only. false: as torch is set."""
    freeze: str = setting("none", form="none|backbone|N")
    """Leave layers as the training begins with them. backbone: all but the classifier. A number, as in 3: so many first
    layers with parameters, in the network's order. No gradients are computed below the lowest layer that trains."""
    frozen_mode: Literal["train", "eval", "once"] = "train"
    """Frozen layers in the training. train: as they would train, batch norm by each batch's statistics, with moving
    running ones. eval: in evaluation mode (norm_eval elsewhere), by the running statistics, which stay. once: likewise,
    and what the classifier takes is computed once for each image; with freeze backbone, and no augmentation."""
    network: NetworkConfig = DavidNetConfig()
    loading: LoadingConfig = LoadingConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    augment: Augment = Augment()
    transforms: Transforms = Transforms()
    mix: MixConfig = MixConfig()
    optimizer: OptimizerConfig = SGDConfig()
    schedule: Schedule = Schedule()
    lookahead: LookaheadConfig = LookaheadConfig()
    ema: EMAConfig = EMAConfig()
    select: SelectConfig = SelectConfig()
    average: AverageConfig = AverageConfig()
    redo: ReDoConfig = ReDoConfig()
    continual_backprop: ContinualBackpropConfig = ContinualBackpropConfig()
    loss_scaling: LossScalingConfig = LossScalingConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def _check(self) -> None:
        allowed = "letters, digits and . _ + -, up to 255 of them"
        self._require("name", re.fullmatch(r"[\w.+-]{1,255}", self.name), allowed)
        for prefix, part in sections_of(self):
            for field in dataclasses.fields(part):
                words = getattr(part, field.name)
                for word in words if isinstance(words, tuple) else [words]:
                    if isinstance(word, str) and any("\ud800" <= each <= "\udfff" for each in word):
                        raise UserError(f"{prefix}{field.name} is {brief(word)}; allowed: text that UTF-8 can hold")
        for section, base in (("network", NetworkConfig), ("optimizer", OptimizerConfig)):
            value = getattr(self, section)
            known = isinstance(value, base) and value.kind in base.kinds
            self._require(section, known, f"a registered {base.__name__}")
        refuse_averages(self)
        if self.network.is_joint and self.ensemble.members > 1:
            said = f"ensemble.members is {self.ensemble.members}"
            raise UserError(f"{said}; allowed: 1, the network {self.network.kind} is several networks itself")
        self.loading.refuse(self)
        refuse_frozen(self)
        refuse_replacement(self)
        network, crops = self.network.kind, self.augment.early_crops
        if (self.network.sides or self.network.one_side) and crops:
            raise UserError(f"augment.early_crops is {crops}; allowed: none, the network {network} takes whole images")
        if self.optimizer.needs_filters and not self.network.has_filters:
            optimizer = f"the optimizer {self.optimizer.kind}"
            raise UserError(f"network.kind is {network}; allowed: with {optimizer} one with convolutions")
        whole = self.batch_size % self.ghost_batch == 0
        self._require("batch_size", whole, f"a multiple of network.ghost_batch, {self.ghost_batch}")
        most = len(self.augment.early_crops)
        allowed = f"up to {most}, as many as augment.early_crops has, of up to batch_size, {self.batch_size}"
        fits = len(self.early_batches) <= most and max(self.early_batches, default=0) <= self.batch_size
        self._require("early_batches", fits, allowed)
        whole = not any(images % self.ghost_batch for images in self.early_batches)
        self._require("early_batches", whole, f"multiples of network.ghost_batch, {self.ghost_batch}")

    def refuse_side(self, side: int) -> None:
        """Raise UserError where images of `side` by `side` pixels do not fit this recipe."""
        self.augment.refuse_side(side)
        for each in (side, *(size for size, _ in self.augment.early_crops)):
            self.network.refuse_side(each)

    @property
    def ghost_batch(self) -> int:
        """Number of images that the network normalizes together, which must divide the batch; 1: any batch will do."""
        return self.network.batch_multiple
