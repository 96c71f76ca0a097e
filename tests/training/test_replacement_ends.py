"""Hidden units that begin again: at a training's end, beside other methods, in a network of the user's own."""

import dataclasses

import pytest
import torch
from torch import nn

import fastcifar
from fastcifar.cli.screen import stopwatches
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import Notice, UserError
from fastcifar.models import Units
from fastcifar.models.own import OwnNetwork
from fastcifar.plasticity.units import dormant
from fastcifar.recipes import ContinualBackpropConfig, EMAConfig, LossScalingConfig, ReDoConfig, SelectConfig, change
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Listener, Trainer, train
from fastcifar.training.rehearse import warm_up_the_rest
from tests.small import BARE, MLP

BOTH = ["redo", "continual"]
REDO, CONTINUAL = ReDoConfig(every=1, threshold=0.6, images=40), ContinualBackpropConfig(rate=0.05, maturity=3)
SLOW = dataclasses.replace(BARE, epochs=8, batch_size=32, network=MLPConfig(hidden=(16,)), optimizer=SGDConfig(lr=0.02))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 40)


class Plain(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=8), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(96, classes)

    def forward(self, x):
        return self.classifier(self.body(x))

    def units(self):
        return [Units("body.0", "classifier", seen="body.2", norm="body.1")]


def test_no_unit_begins_again_after_the_last_step():
    data, continual = make_synthetic(480, 200), ContinualBackpropConfig(rate=1.0, maturity=119)
    recipe = dataclasses.replace(SLOW, epochs=4, batch_size=16, network=MLPConfig(hidden=(64, 64)))
    with pytest.warns(Notice, match="1.0 and maturity 119: no whole unit is due before the last of the 120 steps"):
        run = fastcifar.train(dataclasses.replace(recipe, continual_backprop=continual), data, device="cpu")
    plain = fastcifar.train(recipe, data, device="cpu")
    assert run.record.steps == 120 and run.record.units_replaced == 0 and plain.record.units_replaced is None
    assert all(torch.equal(run.state[name], plain.state[name]) for name in plain.state)
    earlier = change(recipe, {"continual_backprop.rate": 1.0, "continual_backprop.maturity": 118})
    record = fastcifar.train(earlier, data, device="cpu").record
    assert record.units_replaced == 128
    assert "units        128    that began again" in stopwatches(record).splitlines()
    assert "units" not in stopwatches(plain.record)


def test_the_last_epoch_is_due_and_nothing_is_replaced(data):
    recipe, counts = dataclasses.replace(MLP, epochs=4, redo=dataclasses.replace(REDO, every=2)), []
    trainer = Trainer(recipe, data, "cpu")
    watching = Listener(on_epoch=lambda row: counts.append(int(trainer.state.replacement.count)))
    run = trainer.run(3, listeners=[watching])
    assert counts[0] == 0 < counts[1] == counts[2] == counts[3] == run.record.units_replaced


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"redo.every": 3}, "redo.every is 3, and the training ends with epoch 3"),
        ({"ema.decay": 0.9, "ema.return_every": 4}, "ema.return_every is 4, and the training ends with epoch 3"),
        ({"continual_backprop.rate": 1e-4}, "rate is 0.0001 and maturity 100: no whole unit is due"),
    ],
)
def test_a_training_that_is_too_short_for_it_says_so_in_a_line(data, fields, said):
    trainer = Trainer(change(MLP, fields), data, "cpu")
    with pytest.warns(Notice, match=said) as told:
        run = trainer.run(0, eval_every=0)
    assert len(told) == 1 and not run.record.units_replaced


METHODS = {
    "redo": {"redo": REDO},
    "continual backprop": {"continual_backprop": ContinualBackpropConfig(rate=0.0625, maturity=2)},
    "return": {"ema": EMAConfig(decay=0.9, every=1, return_every=1)},
}


@pytest.mark.parametrize("method", [{"redo": REDO}, {"continual_backprop": ContinualBackpropConfig(0.25, maturity=1)}])
def test_weights_of_an_epoch_are_those_that_were_trained_in_it(data, method):
    """Units are replaced after the evaluation, so that none of the best epoch's is fresh."""
    recipe = dataclasses.replace(SLOW, epochs=6, optimizer=SGDConfig(lr=1.5), **method)
    weights = {}
    listener = Listener(on_epoch=lambda row: weights.setdefault(row.epoch, trainer.state.flat.state_dict()))
    best = []
    for seed in range(4):
        trainer = Trainer(recipe, data.hold_out(40), "cpu")
        run = trainer.run(seed, keep="best", listeners=[listener])
        best.append(run.record.best_epoch)
        assert run.record.units_replaced and run.state["classifier.weight"].abs().sum(0).all()
    assert min(best) < 6 and any((each["classifier.weight"] == 0).all(0).any() for each in weights.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_ends_early_ends_on_weights_that_were_trained(data, name):
    recipe, after = dataclasses.replace(SLOW, **METHODS[name]), {}
    whole = Trainer(recipe, data, "cpu").run(3, eval_every=0)
    goal = whole.rows[3].train_accuracy
    reached = next(row.epoch for row in whole.rows if row.train_accuracy >= goal)
    assert 1 < reached < 8
    trainer = Trainer(recipe, data, "cpu")

    def keep(step, total):
        after[step] = trainer.state.state_dict()

    run = trainer.run(3, until_train_accuracy=goal, listeners=[Listener(on_step=keep)])
    assert [row.train_accuracy for row in run.rows] == [row.train_accuracy for row in whole.rows[:reached]]
    shorter = Trainer(dataclasses.replace(recipe, epochs=reached), data, "cpu")
    wanted = shorter.run(3)
    assert all(torch.equal(run.state[key], wanted.state[key]) for key in wanted.state)
    assert run.tta_accuracy == wanted.tta_accuracy and run.record.units_replaced == wanted.record.units_replaced
    for mine, theirs in zip(trainer.state.flat.groups, shorter.state.flat.groups, strict=True):
        assert torch.equal(mine.weights, theirs.weights)
        assert name != "return" or not torch.equal(mine.weights, mine.ema)
    again = Trainer(recipe, data, "cpu").run(resume=after[3 * (reached - 1)], until_train_accuracy=goal)
    assert all(torch.equal(run.state[key], again.state[key]) for key in run.state)


SCALED = LossScalingConfig(dynamic=True, initial=2.0**26)
TOGETHER = {"l2_init": 0.01, "ema.decay": 0.9, "ema.return_every": 1, "dtype": "float16", "loss_scaling": SCALED}
TOGETHER |= {"select": SelectConfig(keep=0.7, from_epoch=1), "optimizer.lr": 0.01}


@pytest.mark.parametrize(
    "method",
    [{"redo": ReDoConfig(every=1, threshold=0.95)}, {"continual_backprop": CONTINUAL}],
    ids=BOTH,
)
def test_beside_all_else_a_training_goes_on_bit_for_bit(data, method):
    recipe = change(MLP, {**TOGETHER, **method})
    trainer, kept, scales = Trainer(recipe, data, "cpu"), {}, []
    first = trainer.timeline.epochs[0].end

    def keep(step, total):
        scales.append(trainer.state.loss_scale.scale)
        if step in (first - 1, first, first + 2):
            kept[step] = trainer.state.state_dict()

    whole = trainer.run(3, listeners=[Listener(on_step=keep)])
    assert scales[-1] < 2.0**26 / 16, "some steps were left out"
    assert whole.record.units_replaced > 0 and len(kept) == 3
    for state in kept.values():
        again = Trainer(recipe, data, "cpu").run(resume=state)
        assert all(torch.equal(again.state[key], whole.state[key]) for key in whole.state)
        assert again.record.units_replaced == whole.record.units_replaced


@pytest.mark.parametrize("method", [{"redo": REDO}, {"continual_backprop": CONTINUAL}], ids=BOTH)
def test_a_module_of_the_users_own_says_which_units_it_has(data, method):
    recipe = change(MLP, {"ema.decay": 0.0, **method})
    trainer = Trainer(recipe, data, "cpu", model=Plain)
    run = trainer.run(3)
    assert run.record.units_replaced > 0
    replacement, chosen = trainer.state.replacement, torch.tensor([True, False, False, True, False, False])
    fresh = trainer.new_network(5).module.state_dict()
    with torch.no_grad():
        replacement._replace(replacement.layers[0], chosen, fresh)
    for name in ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.running_var"):
        found = trainer.model.state_dict()[name]
        assert torch.equal(found[chosen], fresh[name][chosen]) and not torch.equal(found, fresh[name])
    columns = trainer.model.classifier.weight.view(10, 6, 16)
    assert not columns[:, chosen].any() and columns[:, ~chosen].all()
    drawn = replacement._fresh_values(trainer, 1)
    assert {name: value.shape for name, value in drawn.items()} == {name: fresh[name].shape for name in drawn}
    assert len(drawn) == 6


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ([], r"redo\.every is 1, and no hidden units of Own are known that one layer alone reads; allowed: 0 for it"),
        (3, r"Own\.units\(\) has 3; allowed: fastcifar\.models\.Units"),
        (
            [Units("body.0", "head", seen="body.2")],
            r"Own\.units\(\) has the reader 'head'; allowed: the name",
        ),
        ([Units("body.0", "classifier", seen="")], r"has the seen ''; allowed: the name of a module"),
        (
            [Units("body.1", "classifier", seen="body.2")],
            r"the maker body\.1; allowed: a convolution or a linear",
        ),
        ([Units("classifier", "body.0", seen="body.2")], r"body\.0, which reads 3 of the 10 of classifier; allowed"),
    ],
)
def test_units_that_a_module_does_not_have_are_refused_by_its_name(data, units, said):
    own = type("Own", (Plain,), {"units": lambda self: units})
    with pytest.raises(UserError, match=said):
        Trainer(dataclasses.replace(MLP, redo=REDO), data, "cpu", model=own)


OWN_LAYERS = {
    "tied": (lambda own: setattr(own, "same", own.classifier), None),
    "computed": (
        lambda own: nn.utils.parametrizations.weight_norm(own.classifier),
        r"the reader classifier, whose weight is computed from others or another layer's too; allowed: a weight of",
    ),
    "of another length": (
        lambda own: own.body[0].register_buffer("gain", torch.ones(4)),
        r"the layer body\.0, and gain of it is \[4\]; allowed: tensors of its own in its state_dict, a row for each",
    ),
    "not kept": (
        lambda own: own.body[0].register_buffer("mask", torch.ones(6, 3, 3, 3), persistent=False),
        r"the layer body\.0, and mask of it is \[6, 3, 3, 3\]; allowed: tensors of its own in its state_dict",
    ),
    "transposed": (
        lambda own: own.body.__setitem__(0, nn.ConvTranspose2d(3, 6, 3, padding=15)),
        r"the maker body\.0; allowed: a convolution or a linear layer",
    ),
    "weight norm of the maker": (lambda own: nn.utils.parametrizations.weight_norm(own.body[0]), None),
}


@pytest.mark.parametrize("name", OWN_LAYERS)
def test_layers_whose_units_cannot_begin_again_are_refused_before_a_training(data, name):
    change_layer, said = OWN_LAYERS[name]

    class Own(Plain):
        def __init__(self, classes):
            super().__init__(classes)
            change_layer(self)

    recipe = dataclasses.replace(MLP, redo=REDO)
    if said is None:
        assert train(recipe, data, model=Own).record.units_replaced >= 0
        return
    with pytest.raises(UserError, match=said):
        Trainer(recipe, data, "cpu", model=Own)


def test_what_is_no_method_units_says_nothing():
    module = Plain(10)
    without = type("Without", (Plain,), {"units": 7})(10)
    assert len(OwnNetwork(module).units()) == 1 and OwnNetwork(without).units() == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_is_the_first_that_begins_again_and_spoils_nothing(data, bad):
    found = torch.tensor([1.0, bad, 0.01, 3.0])
    assert dormant(found, 0.01).tolist() == [False, True, True, False]
    continual = ContinualBackpropConfig(rate=0.125, maturity=2)  # a unit a step
    trainer = Trainer(dataclasses.replace(MLP, continual_backprop=continual), data, "cpu")
    trainer.reset(3)
    replacement, network = trainer.state.replacement, trainer.network.train()
    for _ in range(3):
        trainer.state.step += 1
        with torch.no_grad():
            network.hidden[0].bias[5] = bad if trainer.state.step != 2 else 9.0
        network(torch.zeros(4, 3, 32, 32))
        assert replacement.averages[0].isfinite().all() == (trainer.state.step == 2)
        replacement.end_step(trainer)
    assert replacement.born[0].tolist() == [0, 0, 0, 0, 0, 3, 0, 0]
    assert network.hidden[0].bias.isfinite().all() and replacement.averages[0].isfinite().all()


RETURNS = {"ema.decay": 0.9, "ema.return_every": 1}


@pytest.mark.parametrize("method", [{"redo": REDO}, {"continual_backprop": CONTINUAL}], ids=BOTH)
def test_a_warm_up_runs_all_of_it_and_leaves_no_trace(data, method, monkeypatch):
    trainer, done = Trainer(change(MLP, {**RETURNS, **method}), data, "cpu"), []
    for part, name in ((trainer.state.flat, "return_to_average"), (trainer.state.replacement, "_replace")):
        call = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *given, call=call, name=name: (done.append(name), call(*given)))
    trainer.reset(1)
    before = {name: tensor.clone() for name, tensor in trainer.state.flat.state_dict().items()}
    warm_up_the_rest(trainer)
    assert done == ["_replace", "return_to_average"] and not trainer.state.replacement.count
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.state.flat.state_dict().items())
    run, plain = trainer.run(3), Trainer(trainer.recipe, data, "cpu").run(3)
    assert all(torch.equal(run.state[name], plain.state[name]) for name in plain.state)
