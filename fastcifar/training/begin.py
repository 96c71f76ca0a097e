"""How a training begins: fresh or given weights, what is computed from them, whitening, the first epoch's plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastcifar.host import TORCH, building
from fastcifar.models import Network, build_model
from fastcifar.registry import resolve
from fastcifar.start import ColdStart, Start
from fastcifar.training import methods
from fastcifar.training.initialize import initialize

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer


@TORCH.applied()
def new_network(trainer: Trainer, seed: int, init: Start, sha256: object = None) -> tuple[Network, set[str]]:
    """Return the network that a training begins with, or that `Fire` and `Dash` are computed from, on the CPU, and the
    names of its tensors that are reset. `sha256`: what `init` says of its file."""
    recipe, data, own, seed = trainer.recipe, trainer.dataset, trainer.own_model, init.weights_seed(seed)
    sides = (data.train.side, *(side for side, _ in recipe.augment.early_crops))
    with building(seed, own or resolve(recipe.network.builder)):
        model = build_model(recipe, len(data.classes), data.mean, data.std, own, sides, seed)
    return model, initialize(model, init, sha256)


def resetting(trainer: Trainer, seed: int, init: Start) -> Callable[[], None]:
    """Return what starts a training afresh. Raises UserError where the initial weights do not fit."""
    methods.refuse(init, trainer.network)
    described = init.describe()
    network, fresh = new_network(trainer, seed, init, described.get("sha256"))
    anchor = network if trainer.recipe.l2_init else None  # a cold start's own weights, else those that it would have
    if anchor and not isinstance(init, ColdStart):
        anchor = trainer.new_network(seed, ColdStart(init.weights_seed(seed)))

    def reset() -> None:
        seconds = 0.0
        if methods.is_computed(init):
            trainer.state.random.seed(seed)
            with trainer.phases("training: start"):
                seconds = methods.compute(init, network, fresh, trainer.recipe, trainer.dataset, trainer.own_loss)
        trainer.state.begin(network, seed, described, seconds, anchor)

    return reset


def prepare(trainer: Trainer, load: Callable[[], object], init: Start | None) -> None:
    """Prepare the first step: weights, whitening and the first epoch's plan; without `init`, `load` loads all."""
    network, state, phases = trainer.network, trainer.state, trainer.phases
    with phases("model and optimizer"):
        load()
    if init and not init.keeps_frozen:
        with phases("training: whitening"), state.stopwatch:
            if count := network.whitening_images:
                network.fit_whitening(trainer.dataset.train.first(count))
    if trainer.features:
        with phases("training: features"), state.stopwatch:
            trainer.features.compute()
    if init:
        with phases("training: plans"), state.stopwatch:
            state.begin_epoch(trainer.timeline.epochs[0])
