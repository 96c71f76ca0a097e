"""The start of a training: fresh weights, another run's, or a mixture of both. Standard library only.

The values check themselves; `fastcifar.training.initialize` carries them out, and says how it treats each kind of
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastcifar.errors import UserError
from fastcifar.input import sha256_of, weights_file
from fastcifar.recipes.declare import Checked, setting


@dataclass(frozen=True)
class ColdStart(Checked):
    """A fresh initialization, drawn from the run's seed or, apart from the run's order of images, from `seed`; with all
    matrices and convolution filters that train times `scale`. Raises UserError for a scale that is not above 0."""

    seed: int | None = None
    scale: float = setting(1.0, above=0)

    def describe(self) -> dict[str, object]:
        """Return the entry `init` of run.json."""
        given = {"seed": self.seed} if self.seed is not None else {}
        return {"mode": "cold", **given, **({"scale": self.scale} if self.scale != 1 else {})}

    def weights_seed(self, seed: int) -> int:
        """Return the seed of the fresh weights in a run of `seed`."""
        return seed if self.seed is None else self.seed


class _FromSource(Checked):
    """A start from given weights."""

    mode: ClassVar[str]
    source: str | Path
    shrink: float
    perturb: float
    reset_head: bool | None

    def weights_seed(self, seed: int) -> int:
        """Return the seed of the fresh weights in a run of `seed`, which are mixed with the given ones."""
        return seed

    def describe(self) -> dict[str, object]:
        """Return the entry `init` of run.json, with the sha256 of the file of weights."""
        return {
            "mode": self.mode,
            "source": str(self.source),
            "sha256": sha256_of(weights_file(self.source), "the weights in"),
            "shrink": self.shrink,
            "perturb": self.perturb,
            "reset_head": self.reset_head,
        }


@dataclass(frozen=True)
class WarmStart(_FromSource):
    """The evaluated weights (averages, if the run had any) of `source`, a saved run's folder or a file of weights:
    .safetensors, or .pt, .pth or .ckpt of torch.save (see `load_weights`), or torchvision:IMAGENET1K_V1 (see
    `published`).

    `reset_head` starts the classifier afresh, whatever its shape there; None: where its shape there is another, which
    a `Notice` says.
    Raises UserError if there is no such file.
    """

    source: str | Path
    reset_head: bool | None = False
    mode: ClassVar[str] = "warm"
    shrink: ClassVar[float] = 1.0
    perturb: ClassVar[float] = 0.0

    def _check(self) -> None:
        weights_file(self.source)


@dataclass(frozen=True)
class ShrinkPerturb(_FromSource):
    """`shrink` times the weights of `source` plus `perturb` times a fresh initialization (Ash and Adams 2020).

    Shrink 1 and perturb 0 is `WarmStart`, shrink 0 and perturb 1 is `ColdStart`. `source` and `reset_head` are as in
    `WarmStart`. Raises UserError for factors out of range, and if there is no such file.
    """

    source: str | Path
    shrink: float = setting(0.4, at_least=0, at_most=1)
    perturb: float = setting(0.1, at_least=0)
    reset_head: bool | None = False
    mode: ClassVar[str] = "shrink-perturb"

    def _check(self) -> None:
        check_factors(self.shrink, self.perturb)
        weights_file(self.source)


def check_factors(shrink: float, perturb: float) -> None:
    """Raise UserError where these factors of `ShrinkPerturb` leave no weights."""
    if shrink == perturb == 0:
        raise UserError("shrink and perturb are both 0, which leaves no weights; allowed: one of them above 0")


Start = ColdStart | WarmStart | ShrinkPerturb
