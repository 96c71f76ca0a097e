"""Hare and Tortoise and L2 Init in trainings: against a loop in plain torch, resumed, from a source, ended early."""

import dataclasses
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.cli import main
from fastcifar.data import EpochPlan
from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DiagnoseUpdates
from fastcifar.errors import UserError
from fastcifar.experiments.named.ablate import Ablate
from fastcifar.recipes import Augment, EMAConfig, LossScalingConfig, change
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig, TorchSGDConfig
from fastcifar.start import ColdStart, ShrinkPerturb, WarmStart
from fastcifar.training import Listener, Trainer, load_run, train
from tests.small import BARE, DAVIDNET, MLP

RATE = 2.0**-6
"""A number of single precision, in which rates are kept."""
BATCH, DECAY, STRENGTH = 32, 0.75, 0.05
HARE = EMAConfig(decay=DECAY, every=1, return_every=2)
RECIPE = dataclasses.replace(BARE, epochs=5, batch_size=BATCH)
OPTIMIZERS = {
    "sgd": (SGDConfig(lr=RATE, momentum=0, weight_decay=0, bias_lr_factor=1), torch.optim.SGD, {}),
    "SGD": (TorchSGDConfig(lr=RATE, momentum=0.5, weight_decay=0), torch.optim.SGD, {"momentum": 0.5}),
    "Adam": (AdamConfig(lr=RATE, weight_decay=0), torch.optim.Adam, {}),
}


class Normalized(nn.Sequential):
    def __init__(self, classes):
        first = nn.Linear(3072, 6, bias=False)  # a bias would have rounding errors as its gradients, which Adam scales
        super().__init__(nn.Flatten(), first, nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 40)


@pytest.fixture
def in_float64(monkeypatch):
    """Train in float64, which a recipe does not offer."""
    module = importlib.import_module("fastcifar.training.train")
    monkeypatch.setattr(module, "resolve_dtype", lambda *given: torch.float64)


def slow_loop(trainer, data, start, anchor, returns_after=()):
    """The training as the papers have it, a parameter after another: `(weights, average)` by name after it."""
    recipe, model = trainer.recipe, start.double().train()
    cls, settings = next(rest for section, *rest in OPTIMIZERS.values() if section == recipe.optimizer)
    optimizer = cls(model.parameters(), lr=RATE, **settings)
    floating = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    first = {name: tensor.double() for name, tensor in anchor.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in floating.items()}
    for epoch in range(int(recipe.epochs)):
        plan = EpochPlan.draw(len(data.train), recipe.augment, epoch, 3)
        for number in range(len(data.train) // BATCH):
            batch = plan.batch(number, BATCH)
            images = batch.augment(data.train.images, mean=data.mean, std=data.std, dtype=torch.float64)
            loss = F.cross_entropy(model(images), data.train.labels[batch.indices])
            for name, parameter in model.named_parameters():
                loss = loss + recipe.l2_init / 2 * (parameter - first[name]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, tensor in floating.items():
                average[name] = DECAY * average[name] + (1 - DECAY) * tensor
        if epoch + 1 in returns_after:
            for name, tensor in floating.items():
                tensor.copy_(average[name])
    return floating, average


def assert_equal_to(trainer, weights, average):
    averages = {p: a for g in trainer.state.flat.groups for p, a in zip(g.parameters, g.views(g.ema), strict=True)}
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(averages[parameter], average[name], rtol=1e-12, atol=1e-12)
    for name, buffer in trainer.model.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, weights[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("l2_init", [0.0, STRENGTH])
def test_trainings_are_those_of_a_slow_loop(data, in_float64, name, l2_init):
    recipe = dataclasses.replace(RECIPE, optimizer=OPTIMIZERS[name][0], l2_init=l2_init, ema=HARE)
    trainer = Trainer(recipe, data, "cpu", model=Normalized)
    trainer.run(3, eval_every=0)
    start, anchor = (trainer.new_network(3).module for _ in range(2))
    assert_equal_to(trainer, *slow_loop(trainer, data, start, anchor, returns_after=(2, 4)))


def test_a_warm_start_is_pulled_toward_the_fresh_network_of_its_own_seed(data, in_float64, tmp_path):
    recipe = dataclasses.replace(RECIPE, optimizer=OPTIMIZERS["Adam"][0], l2_init=STRENGTH, ema=EMAConfig(decay=DECAY))
    recipe = change(recipe, {"ema.every": 1})
    train(recipe, data, seed=8, model=Normalized, device="cpu").save(tmp_path / "source")
    for init in (WarmStart(tmp_path / "source"), ShrinkPerturb(tmp_path / "source", 0.5, 0.25), ColdStart(5, 3.0)):
        trainer = Trainer(recipe, data, "cpu", model=Normalized)
        trainer.run(3, eval_every=0, init=init)
        fresh = init if isinstance(init, ColdStart) else ColdStart(init.weights_seed(3))
        anchor, start = (trainer.new_network(3, each).module for each in (fresh, init))
        assert torch.equal(start[1].weight, anchor[1].weight) == (fresh is init)
        assert_equal_to(trainer, *slow_loop(trainer, data, start, anchor))


BOTH = {"l2_init": 0.01, "ema.decay": 0.9, "ema.every": 2, "ema.return_every": 1}
MUON = MuonConfig(lr=0.05, bias_lr=0.05, head_lr=0.05)
SCALED = LossScalingConfig(dynamic=True, initial=2.0**26)
SPEEDRUN = {"network": SpeedrunConfig(widths=(4, 4, 8), whitening_bias_epochs=1), "optimizer": MUON}
KINDS = {
    "bfloat16": change(DAVIDNET, {**BOTH, "dtype": "bfloat16", "epochs": 2}),
    "float16": change(MLP, {**BOTH, "dtype": "float16", "optimizer.lr": 0.01, "loss_scaling": SCALED}),
    "muon": change(
        MLP, {**BOTH, **SPEEDRUN, "epochs": 1.5, "augment": Augment(early_crops=((20, 0.6),)), "early_batches": (12,)}
    ),
    "Adam": change(MLP, {**BOTH, "optimizer": AdamConfig(lr=0.01), "freeze": "1"}),
    "lookahead": change(MLP, {"l2_init": 0.01, "lookahead.every": 3}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_training_goes_on_from_any_epochs_end_and_from_between_bit_for_bit(data, name):
    recipe, states = KINDS[name], {}
    trainer = Trainer(recipe, data, "cpu")
    per_epoch = trainer.timeline.epochs[0].steps
    steps = {per_epoch, per_epoch + 1}

    def save(step, total):
        if step in steps:
            states[step] = trainer.state.state_dict()

    whole = trainer.run(3, listeners=[Listener(on_step=save)])
    other = Trainer(recipe, data, "cpu")
    other.reset(9)  # whatever is in its buffers is replaced
    assert states.keys() == steps
    for state in states.values():
        again = other.run(resume=state)
        assert all(torch.equal(again.state[key], whole.state[key]) for key in whole.state)
        assert torch.equal(again.tta_logits, whole.tta_logits)


@pytest.mark.filterwarnings("ignore:ema.return_every is 3:fastcifar.errors.Notice")
def test_a_return_that_never_comes_changes_no_bit(data):
    plain = change(MLP, {"ema.decay": 0.9})
    never = change(plain, {"ema.return_every": 3})  # due after the last epoch alone
    runs = [train(recipe, data, seed=2, device="cpu", model=Normalized, eval_every=0) for recipe in (plain, never)]
    assert all(torch.equal(runs[0].state[key], runs[1].state[key]) for key in runs[0].state)


def test_weights_are_their_average_after_the_epochs_that_are_due_and_no_others(data):
    recipe = change(MLP, {"epochs": 4.5, "dtype": "bfloat16", "ema.decay": 0.9, "ema.return_every": 2})
    trainer, returned = Trainer(recipe, data, "cpu", model=Normalized), []

    def look(row):
        flat = trainer.state.flat
        same = [torch.equal(group.weights, group.ema) for group in flat.groups]
        same.append(torch.equal(flat.statistics, flat.statistics_ema))
        assert len({*same}) == 1
        assert all(torch.equal(group.compute, group.weights.to(group.compute.dtype)) for group in flat.groups)
        if same[0]:
            returned.append(row.epoch)

    trainer.run(1, listeners=[Listener(on_epoch=look)], eval_every=0)
    assert returned == [2, 4]


def test_what_is_frozen_stays_where_it_was_frozen(data):
    """Its average goes on toward it."""
    recipe = change(MLP, {**BOTH, **SPEEDRUN, "epochs": 3, "ema.return_every": 2})
    trainer, seen = Trainer(recipe, data, "cpu"), []
    name = next(iter(trainer.network.frozen_from))
    parameter = trainer.model.get_parameter(name)
    trainer.run(1, eval_every=0, listeners=[Listener(on_epoch=lambda row: seen.append(parameter.detach().clone()))])
    assert all(torch.equal(seen[0], later) for later in seen[1:]) and len(seen) == 3
    group = trainer.state.flat.group_of(name)
    assert not torch.equal(group.weights, group.ema)


def test_a_training_that_ends_early_ends_on_the_average_of_its_last_epoch(data):
    recipe = dataclasses.replace(RECIPE, epochs=5, optimizer=SGDConfig(lr=0.02), l2_init=1e-3)
    recipe = dataclasses.replace(recipe, ema=EMAConfig(decay=0.9, every=1, return_every=1))
    whole = train(recipe, data, seed=3, device="cpu")
    goal = whole.rows[2].train_accuracy
    reached = next(row.epoch for row in whole.rows if row.train_accuracy >= goal)
    trainer = Trainer(recipe, data, "cpu")
    run = trainer.run(3, until_train_accuracy=goal)
    assert run.record.epochs == reached < 5
    assert run.accuracy == whole.rows[reached - 1].test_accuracy
    shorter = train(dataclasses.replace(recipe, epochs=reached), data, seed=3, device="cpu")
    assert all(torch.equal(run.state[key], shorter.state[key]) for key in run.state)


def test_a_return_is_no_update(data):
    recipe = change(MLP, {"ema.decay": 0.9, "ema.return_every": 1})
    updates = DiagnoseUpdates()
    run = train(recipe, data, device="cpu", eval_every=0, listeners=[updates])
    found, per_epoch = updates.found, run.record.steps // 3
    place = found.layers.index("classifier.weight")
    empty = [int(step) for step, value in zip(found.steps, found.update[:, place], strict=True) if value != value]
    assert empty == [0, per_epoch, 2 * per_epoch]


REFUSALS = {
    ("ema.decay=0", "ema.return_every=3"): (
        r"ema\.return_every is 3 and ema\.decay is 0; allowed: 0, or an average \(0\.99\)"
    ),
    ("ema.return_every=2", "lookahead.every=5"): (
        r"ema\.return_every is 2 and lookahead\.every is 5; allowed: one of the two, the other 0"
    ),
    ("ema.return_every=-1",): r"ema\.return_every is -1; allowed: 0 or more epochs",
    ("ema.return_every=0.5",): r"ema\.return_every is 0\.5; allowed: a whole number",
    ("l2_init=-1",): r"l2_init is -1\.0; allowed: 0 or more",
    ("l2_init=nan",): r"l2_init is nan; allowed: a finite number",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_what_cannot_be_is_refused_in_a_line(words):
    fields = {name: float(value) for name, value in (word.split("=") for word in words)}
    fields = {name: int(value) if value.is_integer() else value for name, value in fields.items()}
    with pytest.raises(UserError, match=f"^recipe: {REFUSALS[words]}$"):
        change(MLP, fields)


def test_an_ablation_sees_both_and_takes_the_return_away_with_the_average():
    recipe = change(DAVIDNET, {"l2_init": 0.01, "ema.return_every": 3})
    off = Ablate(recipe=recipe).off
    assert off["l2-init"] == {"l2_init": 0.0} and off["hare-tortoise"] == {"ema.return_every": 0}
    assert off["ema"] == {"ema.decay": 0.0, "ema.return_every": 0}
    assert Ablate(recipe=DAVIDNET).off["ema"] == {"ema.decay": 0.0}
    for changes in (off["l2-init"], off["hare-tortoise"], off["ema"]):
        change(recipe, changes)


def test_both_from_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = "train --dataset synthetic --device cpu --recipe warmstart-mlp --network.hidden 8 --train-size 256"
    words += " --batch-size 64 --epochs 3 --out run --ema.decay 0.9 --ema.return-every 1 --l2-init 0.001"
    assert main(words.split()) == 0
    recipe = load_run("run")[0]
    assert (recipe.l2_init, recipe.ema.return_every) == (0.001, 1)
    capsys.readouterr()
    assert main([*words.split(), "--lookahead.every", "5"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "allowed: one of the two, the other 0" in said[0]
