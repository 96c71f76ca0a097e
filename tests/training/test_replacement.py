"""Hidden units that begin again in a training: ReDo and continual backprop."""

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import (
    ContinualBackpropConfig,
    EMAConfig,
    EnsembleConfig,
    LookaheadConfig,
    Recipe,
    ReDoConfig,
    Schedule,
)
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig, ASGDConfig
from fastcifar.training import Listener, Trainer
from fastcifar.training.replacement import Replacement
from tests.small import BARE, DAVIDNET, MLP

REDO, CONTINUAL = ReDoConfig(every=1, threshold=0.6, images=40), ContinualBackpropConfig(rate=0.05, maturity=3)
SIZES = (3 * 4 * 4, 6, 5)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


def small(seed: int = 0) -> fastcifar.MLP:
    torch.manual_seed(seed)
    return fastcifar.MLP(MLPConfig(hidden=SIZES[1:]), side=4).double()


def slow_loop(model, fresh, batches, rate, maturity, decay, lr):
    """Continual backprop with plain gradient descent, unit by unit."""
    layers = [*model.hidden, model.classifier]
    means, ages = [[0.0] * size for size in SIZES[1:]], [[0] * size for size in SIZES[1:]]
    waiting, replaced = [0.0, 0.0], []
    for step, (images, labels) in enumerate(batches, start=1):
        x, hidden = images.permute(0, 2, 3, 1).flatten(1), []
        for layer in model.hidden:
            hidden.append(x := layer(x).relu())
        loss = F.cross_entropy(layers[-1](x), labels)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter -= lr * grad
            for place, size in enumerate(SIZES[1:]):
                useful = []
                for unit in range(size):
                    ages[place][unit] += 1
                    now = float(hidden[place][:, unit].abs().mean())
                    means[place][unit] = decay * means[place][unit] + (1 - decay) * now
                    corrected = means[place][unit] / (1 - decay ** ages[place][unit])
                    useful.append(corrected * float(layers[place + 1].weight[:, unit].abs().mean()))
                mature = [unit for unit in range(size) if ages[place][unit] > maturity and step < len(batches)]
                waiting[place] += rate * size if mature else 0
                for unit in sorted(mature, key=useful.__getitem__)[: int(waiting[place])]:
                    own = list(fresh(step).hidden)[place]
                    layers[place].weight[unit], layers[place].bias[unit] = own.weight[unit], own.bias[unit]
                    layers[place + 1].weight[:, unit] = 0
                    means[place][unit], ages[place][unit], waiting[place] = 0.0, 0, waiting[place] - 1
                    replaced.append((step, place, unit))
    return replaced


def test_continual_backprop_is_the_slow_loop_in_float64():
    rate, maturity, decay, lr, steps = 0.11, 4, 0.8, 0.125, 30
    continual = ContinualBackpropConfig(rate=rate, maturity=maturity, decay=decay)
    sgd = SGDConfig(lr=lr, momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0)
    recipe = Recipe(batch_size=8, network=MLPConfig(hidden=SIZES[1:]), optimizer=sgd, ema=EMAConfig(decay=0.5, every=1))
    recipe = dataclasses.replace(recipe, schedule=Schedule(knots=(0.0, 1.0), values=(1.0, 1.0)))
    recipe = dataclasses.replace(recipe, continual_backprop=continual)
    torch.manual_seed(1)
    batches = [(torch.randn(8, 3, 4, 4, dtype=torch.float64), torch.randint(10, (8,))) for _ in range(steps)]
    drawn = {}  # the fresh networks by their seeds, in the order in which they are asked for

    def new_network(seed):
        return drawn.setdefault(seed, small(100 + len(drawn)))

    network, plain = small(), small()
    flat = FlatModel(network, torch.float64)
    optimizer = build_optimizer(flat, recipe, steps)
    replacement = Replacement(recipe, network, optimizer, steps)
    trainer = SimpleNamespace(state=SimpleNamespace(step=0, seed=7), new_network=new_network)
    blocks = []  # of maturity + 1 steps, in which the same fresh network is used
    for images, labels in batches:
        flat.backward(F.cross_entropy(network(images), labels), torch.tensor(8.0, dtype=torch.float64))
        optimizer.step()
        trainer.state.step += 1
        before = len(drawn)
        replacement.end_step(trainer)
        if len(drawn) > before:
            blocks.append(trainer.state.step // (maturity + 1))
    networks = dict(zip(blocks, drawn.values(), strict=True))
    replaced = slow_loop(plain, lambda step: networks[step // (maturity + 1)], batches, rate, maturity, decay, lr)
    assert int(replacement.count) == len(replaced) > 20
    assert len({(place, unit) for _, place, unit in replaced}) < len(replaced), "some more than once"
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


RECIPES = {
    "redo": dataclasses.replace(DAVIDNET, epochs=2, redo=REDO),
    "bfloat16": dataclasses.replace(MLP, epochs=2, dtype="bfloat16", continual_backprop=CONTINUAL),
    "Adam, layer norm": dataclasses.replace(
        MLP, epochs=2, network=MLPConfig(hidden=(8, 7), norm="layer"), optimizer=AdamConfig(lr=0.01), redo=REDO
    ),
    "Lookahead": dataclasses.replace(
        MLP, epochs=2, lookahead=LookaheadConfig(every=2), ema=EMAConfig(decay=0.9), continual_backprop=CONTINUAL
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_goes_on_from_any_step_bit_for_bit(data, name):
    trainer, kept = Trainer(RECIPES[name], data, "cpu"), {}

    def keep(step, total):
        if step in (5, 7):
            kept[step] = trainer.state.state_dict()

    whole = trainer.run(3, listeners=[Listener(on_step=keep)])
    count = int(trainer.state.replacement.count)
    assert count > 0 and len(kept) == 2
    for state in kept.values():
        another = Trainer(RECIPES[name], data, "cpu")
        run = another.run(resume=state)
        assert all(torch.equal(run.state[name], whole.state[name]) for name in whole.state)
        assert int(another.state.replacement.count) == count


def test_off_there_is_nothing_of_it(data):
    replacement = Trainer(MLP, data, "cpu").state.replacement
    assert replacement.state_dict() == {} and not replacement.layers


OPTIMIZERS = {
    "SGD": {},
    "Adam": {"optimizer": AdamConfig(lr=0.01)},
    "ASGD": {"optimizer": ASGDConfig(lr=0.01)},
    "Lookahead of Adam": {"optimizer": AdamConfig(lr=0.01), "lookahead": LookaheadConfig(every=2)},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_that_is_kept_of_a_dormant_unit_begins_again(data, name):
    dtype = "bfloat16" if name == "Adam" else "float32"
    recipe = dataclasses.replace(DAVIDNET, dtype=dtype, epochs=2, redo=REDO, **OPTIMIZERS[name])
    recipe = dataclasses.replace(recipe, network=dataclasses.replace(DAVIDNET.network, freeze_scale=False))
    trainer = Trainer(recipe, data, "cpu")
    trainer.run(3)
    state, flat = trainer.state, trainer.state.flat
    replacement, units = state.replacement, trainer.network.units()[1]
    chosen, others = torch.tensor([0, 2]), torch.tensor([1, 3])
    mask = torch.zeros(4, dtype=torch.bool).index_fill(0, chosen, True)
    names = [f"{units.maker}.weight", *(f"{units.norm}.{each}" for each in ("weight", "bias", "running_var"))]
    reader = f"{units.reader}.weight"

    def everything(name):
        averages = [*flat.copies(name), *state.optimizer.averages(name)]
        return averages, state.optimizer.moments(name)

    before = {name: [[each.clone() for each in part] for part in everything(name)] for name in (*names, reader)}
    slow, adam = name.startswith("Lookahead"), "Adam" in name
    assert [len(part) for part in before[names[0]]] == [3 + slow, 2 if adam else 0 if name == "ASGD" else 1]
    assert [len(part) for part in before[names[3]]] == [3 - 1 + slow, 0]
    fresh = trainer.new_network(11).state_dict()
    with torch.no_grad():
        replacement._replace(units, mask, fresh)
    for each in names:
        values, moments = everything(each)
        for tensor, old in zip(values, before[each][0], strict=True):
            assert torch.equal(tensor[chosen], fresh[each][chosen].to(tensor.dtype))
            assert torch.equal(tensor[others], old[others])
        for tensor, old in zip(moments, before[each][1], strict=True):
            assert not tensor[chosen].any() and torch.equal(tensor[others], old[others]) and old[others].any()
    for tensor, old in zip(*(itertools.chain(*each) for each in (everything(reader), before[reader])), strict=True):
        assert not tensor[:, chosen].any() and torch.equal(tensor[:, others], old[:, others])
    module = trainer.network.get_submodule(units.maker)
    assert torch.equal(module.weight[chosen], fresh[names[0]][chosen].to(module.weight.dtype))


def test_redo_replaces_at_an_epochs_end_the_units_that_are_dormant_then(data):
    recipe = dataclasses.replace(BARE, epochs=5, redo=ReDoConfig(every=2, threshold=0.0, images=70))
    recipe = dataclasses.replace(recipe, network=MLPConfig(hidden=(8, 5)))
    trainer, counts, dead = Trainer(recipe, data, "cpu"), [], {}

    def kill(step, total):  # below all images' values: such units stay dead
        counts.append(int(trainer.state.replacement.count))
        if step == 1:
            with torch.no_grad():
                for tensor in trainer.state.flat.copies("hidden.0.bias"):
                    tensor[[2, 5]] = -1e4
        if step == 11:
            dead["before"] = trainer.network.hidden[0].bias[[2, 5]].tolist()

    trainer.run(3, listeners=[Listener(on_step=kill)])
    ends = [epoch.end for epoch in trainer.timeline.epochs]
    changes = [now - before for before, now in itertools.pairwise([0, *counts])]
    assert max(dead["before"]) < -1e3
    found = {step for step, change in enumerate(changes, 1) if change}
    assert changes[ends[1] - 1] >= 2 and ends[1] in found and found <= {ends[1], ends[3]}
    assert trainer.network.hidden[0].bias.abs().max() < 10


def test_a_copy_of_the_network_and_an_evaluation_are_not_counted(data):
    trainer = Trainer(dataclasses.replace(MLP, continual_backprop=CONTINUAL), data, "cpu")
    x = torch.randn(4, 3, 32, 32)
    averages = trainer.state.replacement.averages
    copy.deepcopy(trainer.network).train()(x)
    with torch.no_grad():
        trainer.network(x)
    trainer.network.eval()(x)
    assert not averages[0].any()
    trainer.network.train()(x)
    assert averages[0].any()


def test_what_they_are_refused_with(data):
    on = {"redo": REDO}
    for changes, said in (
        ({"freeze": "2", **on}, "redo.every is 1, and freeze is 2; allowed: with it freeze none"),
        ({"continual_backprop": CONTINUAL, **on}, "continual_backprop.rate is 0.05; allowed: with it .*rate 0"),
        ({"continual_backprop": CONTINUAL, "compile": "step"}, "compile is step; allowed: with it compile off"),
        ({"ensemble": EnsembleConfig(members=2), **on}, "ensemble.members is 2"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(MLP, **changes)
    wide = dataclasses.replace(MLP, network=MLPConfig(hidden=()), **on)
    with pytest.raises(UserError, match=r"redo\.every is 1, and no hidden units of MLP are known"):
        Trainer(wide, data, "cpu")
    with pytest.raises(UserError, match="no hidden units of Sequential are known"):
        fastcifar.train(
            dataclasses.replace(MLP, **on),
            data,
            model=lambda classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, classes)),
        )
