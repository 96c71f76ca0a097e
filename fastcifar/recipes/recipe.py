"""`Recipe`: everything about a training method, as frozen values that check themselves.

Standard library only, so that the command line can refuse a bad field before torch is imported. What is outside the
method (dataset, subset, seed, initialisation, device) belongs to the run. Each section is in the module it is imported
from here.
"""

# ruff: noqa: RUF009  the sections are frozen: one can be every recipe's default

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fastcifar.errors import UserError
from fastcifar.recipes.checked import Checked
from fastcifar.recipes.images import Augment, EvaluateConfig, NormalizeConfig, SelectConfig
from fastcifar.recipes.networks import MLPConfig, ModelConfig, ResNetConfig, SpeedrunConfig
from fastcifar.recipes.optimisation import TORCH_OPTIMIZERS as TORCH_OPTIMIZERS
from fastcifar.recipes.optimisation import TORCH_SCHEDULERS as TORCH_SCHEDULERS
from fastcifar.recipes.optimisation import (
    AverageConfig,
    EMAConfig,
    LookaheadConfig,
    LossScalingConfig,
    OptimConfig,
    Schedule,
)


@dataclass(frozen=True)
class Recipe(Checked):
    """A whole training method. The defaults are DavidNet's; `fastcifar recipes` lists the named ones."""

    name: str = "davidnet"
    """What the run's outputs call it."""
    epochs: float = 10
    """Passes over the training images (with select, over those it keeps); the last may be in part."""
    batch_size: int = 512
    """Images per step."""
    drop_last: bool = True
    """Drop an epoch's last batch where the images left over do not fill it; false: a step of fewer images, at the same
    rate for their mean loss."""
    label_smoothing: float = 0.2
    """Share of the target spread evenly over the classes (Szegedy 2016); 0: none."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: float16 on CUDA, bfloat16 on a CPU that has it in hardware, else float32."""
    compile: Literal["off", "step"] = "off"
    """step: the network's forward and backward pass in a training step through torch.compile, ahead of the training and
    counted in process_seconds alone; where that cannot be, one line says so and it stays off."""
    cudnn_search: bool = False
    """cuDNN's own search for the fastest convolution of each shape (torch's cudnn.benchmark), around warm-up, capture,
    steps and evaluation; costs seconds at the start. CUDA only. false: as torch is set."""
    network: Literal["davidnet", "resnet18", "mlp", "speedrun"] = "davidnet"
    """Which network; its own section is read (model, resnet, mlp or speedrun) and the others are not."""
    model: ModelConfig = ModelConfig()
    resnet: ResNetConfig = ResNetConfig()
    mlp: MLPConfig = MLPConfig()
    speedrun: SpeedrunConfig = SpeedrunConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    augment: Augment = Augment()
    optim: OptimConfig = OptimConfig()
    schedule: Schedule = Schedule()
    lookahead: LookaheadConfig = LookaheadConfig()
    ema: EMAConfig = EMAConfig()
    select: SelectConfig = SelectConfig()
    average: AverageConfig = AverageConfig()
    loss_scaling: LossScalingConfig = LossScalingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def _check(self) -> None:
        self._require("name", re.fullmatch(r"[\w.+-]+", self.name), "letters, digits and . _ + -")
        self._require("epochs", self.epochs > 0, "above 0")
        self._require("batch_size", self.batch_size >= 1, "1 or more images")
        self._require("label_smoothing", 0 <= self.label_smoothing <= 1, "0 to 1")
        if self.ema.decay and self.average.epochs:
            both = f"ema.decay is {self.ema.decay} and average.epochs is {self.average.epochs}"
            raise UserError(f"{both}; allowed: one average of the two, the other 0")
        if self.network == "mlp" and self.augment.early_sizes:
            sizes = self.augment.early_sizes
            raise UserError(f"augment.early_sizes is {sizes}; allowed: none, an mlp takes whole images")
        if self.optim.name == "muon":
            self._require("network", self.network != "mlp", "with optim.name muon one with convolutions, not mlp")
        if self.batch_size % self.ghost_batch:
            section = "model" if self.network == "davidnet" else "speedrun"
            self._refuse("batch_size", f"a multiple of {section}.ghost_batch, {self.ghost_batch}")

    @property
    def ghost_batch(self) -> int:
        """Images that the network normalises together, which must divide the batch; 1 where any batch will do."""
        if self.network == "davidnet" and self.model.norm and self.model.ghost_batch:
            return self.model.ghost_batch
        if self.network == "speedrun" and self.speedrun.ghost_batch:
            return self.speedrun.ghost_batch
        return 1
