"""The classes of torch.optim that treat every weight alike, and so can work on flat buffers.

Left out: LBFGS (computes the loss again), SparseAdam (sparse gradients), Adafactor and Muon (treat each matrix as a
whole). A field is an argument of the class; arguments without a field keep torch's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.optimizers import OptimizerConfig, optimizer

_BUILDER = "fastcifar.optim.torch_optimizer:TorchOptimizer"


@dataclass(frozen=True)
class TorchConfig(OptimizerConfig):
    """The settings that all of these classes share."""

    scale_free: ClassVar[bool | None] = True  # but for what Adam and the like add to the root, eps
    coupled_decay: ClassVar[bool] = True

    lr: float = setting(1e-3, above=0)
    """Peak learning rate; independent of the batch size for classes that divide by the gradients' size."""
    weight_decay: float = trick(0.0, off=0.0, at_least=0, source="Krogh and Hertz 1992")
    """Weight decay, as in the class: added to the gradient as weight_decay * w, decoupled in AdamW."""
    bias_lr_factor: float = trick(1.0, off=1.0, at_least=1e-4, at_most=1e4, name="bias-rate", source="Page 2019")
    """Multiply the rate of biases by this, and divide their weight decay by it; 1: train them like the weights."""


@optimizer("Adam", _BUILDER)
@dataclass(frozen=True)
class AdamConfig(TorchConfig):
    """Adam (Kingma and Ba 2014)."""

    lr: float = setting(2e-3, above=0)
    betas: tuple[float, float] = setting((0.9, 0.999), at_least=0, below=1, from_one=True)
    """Decay per step of the running means of the gradients and of their squares."""


@optimizer("AdamW", _BUILDER)
@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017)."""

    coupled_decay: ClassVar[bool] = False


@optimizer("Adamax", _BUILDER)
@dataclass(frozen=True)
class AdamaxConfig(AdamConfig):
    """Adam with the largest gradient in place of the mean square (Kingma and Ba 2014)."""

    lr: float = setting(4e-3, above=0)


@optimizer("NAdam", _BUILDER)
@dataclass(frozen=True)
class NAdamConfig(AdamConfig):
    """Adam with Nesterov momentum (Dozat 2016)."""


@optimizer("RAdam", _BUILDER)
@dataclass(frozen=True)
class RAdamConfig(AdamConfig):
    """Adam with a rectified variance (Liu 2019)."""

    lr: float = setting(4e-3, above=0)


@optimizer("SGD", _BUILDER)
@dataclass(frozen=True)
class TorchSGDConfig(TorchConfig):
    """SGD as in torch: the rate outside the velocity, without Nesterov momentum."""

    scale_free: ClassVar[bool | None] = False

    lr: float = setting(1.0, above=0, with_batch=True)
    momentum: float = setting(0.9, at_least=0, below=1, from_one=True)
    """Momentum; 0: none."""


@optimizer("ASGD", _BUILDER)
@dataclass(frozen=True)
class ASGDConfig(TorchConfig):
    """Averaged SGD (Polyak and Juditsky 1992)."""

    scale_free: ClassVar[bool | None] = False

    lr: float = setting(1.0, above=0, with_batch=True)


@optimizer("RMSprop", _BUILDER)
@dataclass(frozen=True)
class RMSpropConfig(TorchConfig):
    """RMSprop (Hinton 2012)."""

    momentum: float = setting(0.0, at_least=0, below=1, from_one=True)
    """Momentum; 0: none."""


@optimizer("Rprop", _BUILDER)
@dataclass(frozen=True)
class RpropConfig(TorchConfig):
    """Rprop (Riedmiller and Braun 1993), which uses only the gradients' signs: for full batches, not small ones."""

    coupled_decay: ClassVar[bool] = False  # it has none


@optimizer("Adagrad", _BUILDER)
@dataclass(frozen=True)
class AdagradConfig(TorchConfig):
    """Adagrad (Duchi 2011)."""

    lr: float = setting(1e-2, above=0)


@optimizer("Adadelta", _BUILDER)
@dataclass(frozen=True)
class AdadeltaConfig(TorchConfig):
    """Adadelta (Zeiler 2012)."""

    lr: float = setting(1.0, above=0)
