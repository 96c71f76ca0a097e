"""The section `ensemble` of a recipe: several networks trained at once, on one loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fastcifar.recipes.declare import Checked, setting

if TYPE_CHECKING:
    from fastcifar.recipes.optimizers import OptimizerConfig

_SEEDS = 2**63


@dataclass(frozen=True)
class EnsembleConfig(Checked):
    """Networks of the recipe's kind that are trained at once, member by member as independent runs would be, but on one
    loss; the mean of their logits is what is evaluated. docs/ensembles.md tells what each loss does to the rates.

    Member m of n in a run of seed s begins with the weights, and with its own order takes the batches, of a run of one
    network of seed s * n + m.
    """

    section: ClassVar[str] = "ensemble"

    members: int = setting(1, at_least=1, at_most=1000, unit="networks")
    """Networks that are trained at once; 1: one network, and nothing else here is read."""
    joint: Literal["mean", "sum", "logits", "shared"] = "mean"
    """The loss. mean: the mean of the members' losses, so that each member's gradient, and with SGD its rate, is
    divided by their number. sum: their sum, as if each were trained alone. logits: the loss of the mean of their
    logits. shared: the mean of the losses of members that share all their weights, one network in disguise."""
    order: Literal["own", "shared"] = "own"
    """own: each member has batches of its own, so that a step takes as many as there are members. shared: all have the
    same one, which joint logits needs."""

    def _check(self) -> None:
        fits = self.members == 1 or self.joint != "logits" or self.order == "shared"
        self._require("order", fits, "shared with ensemble.joint logits, which are means over members for each image")

    @property
    def orders(self) -> int:
        """Batches in a step, each with an order and changes of its own."""
        return self.members if self.order == "own" else 1

    def seeds(self, seed: int) -> tuple[int, ...]:
        """Return the seed of each member in a run of `seed`; those of different runs differ."""
        return tuple((seed * self.members + member) % _SEEDS for member in range(self.members))

    def order_seeds(self, seed: int) -> tuple[int, ...]:
        """Return the seed of each of a step's batches in a run of `seed`."""
        return self.seeds(seed)[: self.orders]

    def rates(self, optimizer: OptimizerConfig) -> str:
        """Return in a line what the loss does to the learning rates and the weight decay of each member; empty where it
        does nothing."""
        if self.members == 1 or self.joint in ("sum", "shared"):
            return ""
        names = [field.name for field in dataclasses.fields(optimizer) if f"_{field.name}".endswith("_lr")]
        rates = {name: getattr(optimizer, name) for name in names if name != "lr" or optimizer.scale_free is False}
        acts = [f"optimizer.{name} {rate:g} acts as {rate / self.members:g}" for name, rate in rates.items()]
        decay = getattr(optimizer, "weight_decay", 0.0) if optimizer.coupled_decay else 0.0
        if decay:
            acts.append(f"optimizer.weight_decay {decay:g} acts as {decay * self.members:g}")
        if optimizer.scale_free:
            why = f"the steps of {optimizer.kind} at it do not depend on the gradients' size"
            why += " but for that decay" * (decay > 0)
            acts.append(f"optimizer.lr {optimizer.lr:g} acts as it is, as {why}")
        if optimizer.scale_free is None:
            acts.append(f"what {optimizer.kind} makes of that at optimizer.lr is not known here")
        return f"joint {self.joint}: the gradient of each member is divided by {self.members}: {', '.join(acts)}"
