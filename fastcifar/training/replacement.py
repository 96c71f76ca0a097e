"""`Replacement`: hidden units that begin again in the course of a training, as its recipe's sections `redo` and
`continual_backprop` say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastcifar.data.plan import REPLACED, derived_seed
from fastcifar.errors import UserError
from fastcifar.kernels import plain_batch
from fastcifar.models import Network
from fastcifar.models.modes import in_evaluation
from fastcifar.models.units import Units
from fastcifar.optim import FlatOptimizer
from fastcifar.optim.flat import copy_tensors
from fastcifar.plasticity.units import dormant, least_useful, magnitudes, replacements, utilities
from fastcifar.recipes import Recipe
from fastcifar.recipes.replacement import replaces_units
from fastcifar.training.timeline import Epoch

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer


class Replacement:
    """What replaces the hidden units (`Network.units`) of the network that `optimizer` trains.

    A unit that is replaced gets the incoming weights, bias, scale and running statistics of its place in a fresh
    network, and outgoing weights of 0. Averages of all these become the same, and what the optimizer gathered of their
    gradients 0. The layers are taken in the order of a forward pass, so that a replaced unit may read one of the layer
    before. Nothing waits for the device.

    averages: of units' magnitudes at each step, `[U]` for each layer, for continual backprop; from 0.
    born: the step after which each unit was last replaced.
    count: number of units replaced so far, on the device.

    Utilities are computed from `averages`, `born` and the present weights. With neither method on there are no layers.
    Raises UserError where the units of `network` are not known.
    """

    def __init__(self, recipe: Recipe, network: Network, optimizer: FlatOptimizer, total_steps: int) -> None:
        self._redo, self._continual = recipe.redo, recipe.continual_backprop
        self._optimizer, self._recipe = optimizer, recipe
        refuse_unknown_units(recipe, network)
        self.layers = list(network.units()) if replaces_units(recipe) else []
        sizes = [len(network.get_submodule(units.maker).weight) for units in self.layers]  # pyright: ignore
        like = optimizer.flat.statistics
        self.count = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.averages = [like.new_zeros(size) for size in sizes]
        self.born = [torch.zeros(size, dtype=torch.int64, device=like.device) for size in sizes]
        self._fresh: tuple[tuple[int, int], dict[str, torch.Tensor]] = (-1, -1), {}
        self._due: dict[int, list[tuple[int, int]]] = {}
        """By step the layers, by number, of which units are then replaced, and how many."""
        if rate := self._continual.rate:
            for number, (units, average) in enumerate(zip(self.layers, self.averages, strict=True)):
                _watch(network, units, self._following(average))
                counts = replacements(sizes[number], rate, self._continual.maturity, total_steps)
                for step, count in enumerate(counts, start=1):
                    if count:
                        self._due.setdefault(step, []).append((number, count))

    def reset(self) -> None:
        """Start again at step 0."""
        for tensor in self.state_dict().values():
            tensor.zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all that changes while training; not copies."""
        state = {"count": self.count} if self.layers else {}
        for number, (average, born) in enumerate(zip(self.averages, self.born, strict=True)):
            state |= {f"averages.{number}": average, f"born.{number}": born}
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state_dict`. Raises UserError for one that does not fit."""
        copy_tensors(state, self.state_dict())

    @torch.no_grad()
    def end_step(self, trainer: Trainer) -> None:
        """Replace the units that continual backprop replaces after the step that was just made."""
        step, settings = trainer.state.step, self._continual
        for number, count in self._due.get(step, ()):
            # Between two replacements of a unit are more than `maturity` steps: each gets values of its own.
            fresh = self._fresh_values(trainer, step // (settings.maturity + 1))
            units, ages = self.layers[number], step - self.born[number]
            (weight, *_) = self._optimizer.flat.copies(f"{units.reader}.weight")
            useful = utilities(self.averages[number], ages, settings.decay, weight)
            chosen = least_useful(useful, ages, settings.maturity, count)
            self._replace(units, chosen, fresh)
            self.averages[number].masked_fill_(chosen, 0)
            self.born[number].masked_fill_(chosen, step)

    @torch.no_grad()
    def end_epoch(self, trainer: Trainer, epoch: Epoch) -> None:
        """Replace the units that ReDo finds dormant at the end of `epoch`, if it looks then; after the last nothing
        trains."""
        every = self._redo.every
        if not every or (epoch.number + 1) % every or epoch.end >= trainer.total_steps:
            return
        fresh = self._fresh_values(trainer, epoch.end)
        for units, found in zip(self.layers, self._magnitudes(trainer), strict=True):
            self._replace(units, dormant(found, self._redo.threshold), fresh)

    def _magnitudes(self, trainer: Trainer) -> list[torch.Tensor]:
        """Return the mean magnitudes of all units over the images that ReDo looks at."""
        network, split = trainer.network, trainer.dataset.train
        sums = [torch.zeros_like(average) for average in self.averages]

        def adding(total: torch.Tensor) -> Callable[[torch.Tensor], object]:
            return lambda values: total.add_(magnitudes(values, total.dtype), alpha=len(values))

        with in_evaluation(network):
            hooks = [
                _watch(network, units, adding(total), training=False)
                for units, total in zip(self.layers, sums, strict=True)
            ]
            try:
                places = torch.arange(min(self._redo.images, len(split)), device=split.device)
                for part in places.split(self._recipe.batch_size):
                    network(plain_batch(*split.at(part), network.mean, network.std, trainer.dtype))
            finally:
                for hook in hooks:
                    hook.remove()
        return [total / len(places) for total in sums]

    def _following(self, average: torch.Tensor) -> Callable[[torch.Tensor], object]:
        share = 1 - self._continual.decay
        return lambda values: average.lerp_(magnitudes(values, average.dtype), share)

    def _fresh_values(self, trainer: Trainer, draw: int) -> dict[str, torch.Tensor]:
        """Return the values of a fresh network, of draw number `draw` of the run's seed, that units are made of."""
        key = trainer.state.seed, draw
        if self._fresh[0] != key:
            network = trainer.new_network(derived_seed(trainer.state.seed, REPLACED, draw))
            state, made = network.state_dict(), (name for units in self.layers for name in self._made_of(units))
            self._fresh = key, {name: state[name].to(self.count.device, non_blocking=True) for name in made}
        return self._fresh[1]

    def _made_of(self, units: Units) -> list[str]:
        """Return the names of the tensors that have a row or an entry for each of `units`."""
        model = self._optimizer.flat.model
        return [
            f"{layer}.{name}"
            for layer in (units.maker, units.norm)
            if layer
            for module in [model.get_submodule(layer)]
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
            if tensor.dim()  # not torch's count of batches
        ]

    def _replace(self, units: Units, chosen: torch.Tensor, fresh: Mapping[str, torch.Tensor]) -> None:
        """Replace those of `units` that are `chosen`, bool `[U]`."""
        flat, optimizer, reader = self._optimizer.flat, self._optimizer, f"{units.reader}.weight"
        self.count.add_(chosen.sum())
        for name in self._made_of(units):
            for tensor in (*flat.copies(name), *optimizer.averages(name)):
                tensor.copy_(torch.where(_along(chosen, tensor, 0), fresh[name].to(tensor.dtype), tensor))
            for tensor in optimizer.moments(name):
                tensor.masked_fill_(_along(chosen, tensor, 0), 0)
        for tensor in (*flat.copies(reader), *optimizer.averages(reader), *optimizer.moments(reader)):
            tensor.masked_fill_(_along(chosen, tensor, 1), 0)


def _along(chosen: torch.Tensor, tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Return `chosen` `[U]` along dimension `dim` of `tensor`, where each unit may have several places."""
    shape = [1] * tensor.dim()
    shape[dim] = -1
    return chosen.repeat_interleave(tensor.shape[dim] // len(chosen)).view(shape)


def refuse_unknown_units(recipe: Recipe, network: Network) -> None:
    """Raise UserError where `recipe` replaces hidden units, and those of `network` are not known."""
    on = replaces_units(recipe)
    if on and not network.units():
        said = f"{on}, and no hidden units of {type(network).__name__} are known that one layer alone reads"
        raise UserError(f"{said}; allowed: 0 for it")


def _watch(
    network: nn.Module, units: Units, note: Callable[[torch.Tensor], object], training: bool = True
) -> torch.utils.hooks.RemovableHandle:
    """Call `note` with the activations of `units` in each pass of `network`; with `training` in those of a training."""
    module = network.get_submodule(units.seen)
    own = id(module)

    def see(called: nn.Module, inputs: object, output: torch.Tensor) -> None:
        # A copy of the network has the same hook; kept in it, the module would be in a cycle.
        if id(called) == own and (not training or (called.training and output.requires_grad)):
            with torch.no_grad():
                note(units.values(output))

    return module.register_forward_hook(see)
