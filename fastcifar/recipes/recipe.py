"""`Recipe`: everything about a training method, as frozen values that check themselves.

Standard library only, so that the command line can refuse a bad field before torch is imported. What is outside the
method (dataset, subset, seed, initialization, device) belongs to the run. Each section is in the module it is imported
from here.
"""

# ruff: noqa: RUF009  the sections are frozen: one can be every recipe's default

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fastcifar.errors import UserError
from fastcifar.recipes.augmentation import Augment, NormalizeConfig
from fastcifar.recipes.averages import AverageConfig, EMAConfig
from fastcifar.recipes.declare import Checked, setting, trick
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.lookahead import LookaheadConfig
from fastcifar.recipes.networks import NetworkConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers import OptimizerConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.precision import LossScalingConfig
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.selection import SelectConfig
from fastcifar.recipes.transforms import Transforms


@dataclass(frozen=True)
class Recipe(Checked):
    """A whole training method. The defaults are DavidNet's; `fastcifar recipes` lists the named ones."""

    name: str = "davidnet"
    """What the run's outputs call it."""
    epochs: float = setting(10, above=0)
    """Passes over the training images (with select, over those it keeps); the last may be in part."""
    batch_size: int = setting(512, at_least=1, unit="images")
    """Images per step."""
    drop_last: bool = True
    """Drop an epoch's last batch where the images left over do not fill it; false: a step of fewer images, at the same
    rate for their mean loss."""
    label_smoothing: float = trick(0.2, off=0.0, at_least=0, at_most=1, source="Szegedy 2016")
    """Share of the target spread evenly over the classes; 0: none."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: float16 on CUDA, bfloat16 on a CPU that has it in hardware, else float32."""
    compile: Literal["off", "step"] = "off"
    """step: the network's forward and backward pass in a training step through torch.compile, ahead of the training and
    counted in process_seconds alone; where that cannot be, one line says so and it stays off."""
    cudnn_search: bool = False
    """cuDNN's own search for the fastest convolution of each shape (torch's cudnn.benchmark), around warm-up, capture,
    steps and evaluation; costs seconds at the start. CUDA only. false: as torch is set."""
    network: NetworkConfig = DavidNetConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    augment: Augment = Augment()
    transforms: Transforms = Transforms()
    optimizer: OptimizerConfig = SGDConfig()
    schedule: Schedule = Schedule()
    lookahead: LookaheadConfig = LookaheadConfig()
    ema: EMAConfig = EMAConfig()
    select: SelectConfig = SelectConfig()
    average: AverageConfig = AverageConfig()
    loss_scaling: LossScalingConfig = LossScalingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def _check(self) -> None:
        self._require("name", re.fullmatch(r"[\w.+-]+", self.name), "letters, digits and . _ + -")
        for section, base in (("network", NetworkConfig), ("optimizer", OptimizerConfig)):
            value = getattr(self, section)
            self._require(
                section, isinstance(value, base) and value.kind in base.kinds, f"a registered {base.__name__}"
            )
        if self.ema.decay and self.average.epochs:
            both = f"ema.decay is {self.ema.decay} and average.epochs is {self.average.epochs}"
            raise UserError(f"{both}; allowed: one average of the two, the other 0")
        kind = self.network.kind
        if self.network.sides and self.augment.early_crops:
            crops = self.augment.early_crops
            raise UserError(f"augment.early_crops is {crops}; allowed: none, the network {kind} takes whole images")
        if self.optimizer.needs_filters and not self.network.has_filters:
            optimizer = f"the optimizer {self.optimizer.kind}"
            raise UserError(f"network.kind is {kind}; allowed: with {optimizer} one with convolutions")
        if self.batch_size % self.ghost_batch:
            self._refuse("batch_size", f"a multiple of network.ghost_batch, {self.ghost_batch}")

    @property
    def ghost_batch(self) -> int:
        """Images that the network normalizes together, which must divide the batch; 1 where any batch will do."""
        return self.network.batch_multiple
