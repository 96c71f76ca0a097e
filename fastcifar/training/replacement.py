"""`Replacement`: hidden units that begin again in the course of a training, as its recipe's sections `redo` and
`continual_backprop` say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastcifar.data import Split
from fastcifar.data.plan import REPLACED, derived_seed, send
from fastcifar.errors import UserError
from fastcifar.kernels import plain_batch
from fastcifar.models import Network
from fastcifar.models.modes import in_evaluation
from fastcifar.models.units import Units
from fastcifar.optim import FlatOptimizer
from fastcifar.optim.flat import copy_tensors
from fastcifar.plasticity.units import dormant, follow, least_useful, magnitudes, replacements, utilities
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
    before. After the training's last step none is replaced: what is evaluated was trained. The host does not wait for
    the device, unless the images that ReDo looks at lie elsewhere. It makes a fresh network for each look of ReDo, and
    for continual backprop at most one in `maturity` + 1 steps, whose rows go to the device in one copy.

    averages: of units' magnitudes at each step, `[U]` for each layer, for continual backprop; from 0.
    born: the step after which each unit was last replaced.
    count: number of units replaced so far, on the device.
    due: by step the layers, by number, of which continual backprop then replaces units, and how many.

    Utilities are computed from `averages`, `born` and the present weights. With neither method on there are no layers.
    Raises UserError where the units of `network` are not known.
    """

    def __init__(self, recipe: Recipe, network: Network, optimizer: FlatOptimizer, total_steps: int) -> None:
        self._redo, self._continual = recipe.redo, recipe.continual_backprop
        self._optimizer, self._recipe = optimizer, recipe
        refuse_unknown_units(recipe, network)
        self.layers = list(network.units()) if replaces_units(recipe) else []
        sizes = [len(network.module.get_submodule(units.maker).weight) for units in self.layers]  # pyright: ignore
        like = optimizer.flat.statistics
        self.count = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.averages = [like.new_zeros(size) for size in sizes]
        self.born = [torch.zeros(size, dtype=torch.int64, device=like.device) for size in sizes]
        self._fresh: tuple[tuple[int, int], dict[str, torch.Tensor]] = (-1, -1), {}
        self.due: dict[int, list[tuple[int, int]]] = {}
        if rate := self._continual.rate:
            for number, (units, average) in enumerate(zip(self.layers, self.averages, strict=True)):
                _watch(network, units, self._following(average))
                counts = replacements(sizes[number], rate, self._continual.maturity, total_steps)
                for step, count in enumerate(counts, start=1):
                    if count and step < total_steps:
                        self.due.setdefault(step, []).append((number, count))

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
        for number, count in self.due.get(step, ()):
            # Between two replacements of a unit are more than `maturity` steps: each gets values of its own.
            fresh = self._fresh_values(trainer, step // (settings.maturity + 1))
            chosen = self._least_useful(number, step, count)
            self._replace(self.layers[number], chosen, fresh)
            self.averages[number].masked_fill_(chosen, 0)
            self.born[number].masked_fill_(chosen, step)

    @torch.no_grad()
    def end_epoch(self, trainer: Trainer, epoch: Epoch) -> None:
        """Replace the units that ReDo finds dormant at the end of `epoch`, if it looks then; after the last nothing
        trains."""
        if not self._looks(epoch, trainer.total_steps):
            return
        fresh = self._fresh_values(trainer, epoch.end)
        for units, found in zip(self.layers, self._magnitudes(trainer, trainer.dataset.train), strict=True):
            self._replace(units, dormant(found, self._redo.threshold), fresh)

    def _looks(self, epoch: Epoch, total_steps: int) -> bool:
        every = self._redo.every
        return every > 0 and (epoch.number + 1) % every == 0 and epoch.end < total_steps

    def steps(self, epochs: Sequence[Epoch]) -> set[int]:
        """Return the steps of a training of `epochs` after which units may be replaced."""
        return {*self.due, *(epoch.end for epoch in epochs if self._looks(epoch, epochs[-1].end))}

    @torch.no_grad()
    def rehearse(self, trainer: Trainer, noise: Split) -> None:
        """Run all of it once, on the images of `noise`, and replace no unit."""
        if not self.layers:
            return
        fresh = self._fresh_values(trainer, 0)
        looked = self._magnitudes(trainer, noise) if self._redo.every else []
        for number, units in enumerate(self.layers):
            chosen = dormant(looked[number], self._redo.threshold) if looked else self._least_useful(number, 1, 1)
            self._replace(units, chosen & False, fresh)

    def _least_useful(self, number: int, step: int, count: int) -> torch.Tensor:
        """Return which `count` units of a layer continual backprop replaces after `step` steps, bool `[U]`."""
        ages, settings = step - self.born[number], self._continual
        (weight, *_) = self._optimizer.flat.copies(f"{self.layers[number].reader}.weight")
        useful = utilities(self.averages[number], ages, settings.decay, weight)
        return least_useful(useful, ages, settings.maturity, count)

    def _magnitudes(self, trainer: Trainer, split: Split) -> list[torch.Tensor]:
        """Return the mean magnitudes of all units over the images of `split` that ReDo looks at."""
        network = trainer.network
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
        decay = self._continual.decay
        return lambda values: follow(average, magnitudes(values, average.dtype), decay)

    def _fresh_values(self, trainer: Trainer, draw: int) -> dict[str, torch.Tensor]:
        """Return the values of a fresh network, of draw number `draw` of the run's seed, that units are made of."""
        key = trainer.state.seed, draw
        if self._fresh[0] != key:
            network = trainer.new_network(derived_seed(trainer.state.seed, REPLACED, draw))
            state = network.module.state_dict()
            made = {name: state[name] for units in self.layers for name in self._made_of(units)}
            flat = send(torch.cat([tensor.flatten() for tensor in made.values()]), self.count.device)
            parts = flat.split([tensor.numel() for tensor in made.values()])
            self._fresh = key, {name: part.view(made[name].shape) for name, part in zip(made, parts, strict=True)}
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
        said = f"{on}, and no hidden units of {type(network.module).__name__} are known that one layer alone reads"
        raise UserError(f"{said}; allowed: 0 for it")


def _watch(
    network: Network, units: Units, note: Callable[[torch.Tensor], object], training: bool = True
) -> torch.utils.hooks.RemovableHandle:
    """Call `note` with the activations of `units` in each pass of `network`; with `training` in those of a training."""
    module = network.module.get_submodule(units.seen)
    own = id(module)

    def see(called: nn.Module, inputs: object, output: torch.Tensor) -> None:
        # A copy of the network has the same hook; kept in it, the module would be in a cycle.
        if id(called) == own and (not training or (called.training and output.requires_grad)):
            with torch.no_grad():
                note(units.values(output))

    return module.register_forward_hook(see)
