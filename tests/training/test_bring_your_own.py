"""Networks, losses, optimizers and transforms of one's own, in this engine."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastcifar
from fastcifar.data import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DiagnoseCurvature
from fastcifar.errors import UserError
from fastcifar.models import ConvBN, GlobalMaxPool, Head, PatchWhitening
from fastcifar.models.davidnet import DavidNet
from fastcifar.optim import SGD
from fastcifar.optim.muon import Muon
from fastcifar.recipes import Augment, EMAConfig, EvaluateConfig, SelectConfig, change
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.start import ShrinkPerturb, WarmStart
from fastcifar.training import Listener, Trainer, evaluate, load_run, train
from tests.small import BARE, MLP

RECIPE = dataclasses.replace(
    MLP,
    epochs=4,
    batch_size=32,
    label_smoothing=0.0,
    optimizer=SGDConfig(lr=0.05, bias_lr_factor=1.0),
    ema=EMAConfig(decay=0.9, every=1),
)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(320, 64)


class Plain(nn.Module):
    """A network as a first course writes it, `view` included."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout(0.1)
        self.scale = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(8 * 8 * 8, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 4)
        return self.fc(self.drop(self.group(x)).view(len(x), -1)) * self.scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_plain_network_learns_in_every_type(data, dtype):
    run = train(dataclasses.replace(RECIPE, dtype=dtype), data, model=Plain)
    assert run.rows[-1].train_loss < 0.8 * run.rows[0].train_loss
    assert type(run.model) is Plain and not run.model.training
    assert run.state.keys() == run.model.state_dict().keys()
    assert run.record.network == "own"
    other = Plain(10)
    other.load_state_dict(run.state)
    assert evaluate(other.eval(), data.test, mean=data.mean, std=data.std).accuracy == pytest.approx(
        run.tta_accuracy, abs=0.05 if dtype != "float32" else 1e-9
    )
    assert evaluate(run.model, data.test, EvaluateConfig(tta="flip")).accuracy == run.tta_accuracy


def test_a_function_may_make_the_network_and_one_of_ours_may_be_it(data):
    recipe = dataclasses.replace(RECIPE, network=DavidNetConfig(widths=(4, 4, 4, 8), ghost_batch=0))
    given = train(recipe, data, model=lambda classes: DavidNet(recipe.network, classes, data.mean, data.std))
    ours = train(recipe, data)
    assert [row.train_loss for row in given.rows] == [row.train_loss for row in ours.rows]
    assert all(torch.equal(given.state[name], ours.state[name]) for name in ours.state)


def test_a_run_of_an_own_network_is_saved_loaded_and_a_warm_start(data, tmp_path):
    run = train(RECIPE, data, model=Plain)
    folder = run.save(tmp_path / "run")
    with pytest.raises(UserError, match="model="):
        load_run(folder)
    _, model, record = load_run(folder, model=Plain)
    assert record == run.record and all(torch.equal(model.state_dict()[name], run.state[name]) for name in run.state)
    warm = train(RECIPE, data, model=Plain, init=WarmStart(folder))
    assert warm.rows[0].train_loss < run.rows[0].train_loss
    with pytest.raises(UserError, match="reset_head is true; allowed: false for a network whose one head is not known"):
        train(RECIPE, data, model=Plain, init=WarmStart(folder, reset_head=True))


class WithMore(Plain):
    """Whose state_dict has an entry that is no tensor."""

    def get_extra_state(self):
        return {"words": 1}

    def set_extra_state(self, state):
        assert state == {"words": 1}


def test_what_a_state_dict_has_besides_tensors_costs_no_training(data, tmp_path):
    run = train(RECIPE, data, model=WithMore, listeners=[DiagnoseCurvature()])
    _, model, _ = load_run(run.save(tmp_path / "run"), model=WithMore)
    assert run.state.keys() == model.state_dict().keys() - {"_extra_state"}
    warm = train(RECIPE, data, model=WithMore, init=WarmStart(tmp_path / "run"))
    assert warm.rows[0].train_loss < run.rows[0].train_loss


def by_hand(data, loss, steps_of_epoch=10, nesterov=True):
    """Make a few steps of torch's own SGD on the engine's first batches; return the mean losses, and the weights."""
    trainer, losses = Trainer(STEPS, data, "cpu"), []
    batches = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
    trainer.run(3)
    plan_labels = data.train.labels[trainer.state.tensors.plan.indices]
    model = trainer.new_network(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=nesterov)
    for number in range(steps_of_epoch):
        labels = plan_labels[32 * number : 32 * number + 32]
        value = loss(model(batches[number]), labels).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, model.state_dict()


STEPS = change(BARE, {"epochs": 1, "batch_size": 32, "optimizer.momentum": 0.9})


def squares(logits, labels):
    return ((logits - F.one_hot(labels, logits.shape[1])) ** 2).mean(1)


@pytest.mark.parametrize("reduced", [False, True], ids=["by image", "mean"])
def test_an_own_loss_is_what_is_trained_on(data, reduced):
    def loss(logits, labels):
        return squares(logits, labels).mean() if reduced else squares(logits, labels)

    run = train(STEPS, data, seed=3, loss=loss)
    losses, state = by_hand(data, squares)
    assert run.rows[0].train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for name, expected in state.items():
        torch.testing.assert_close(run.state[name], expected, rtol=1e-3, atol=1e-5)


def test_cross_entropy_given_as_a_loss_is_the_recipes_own(data):
    given, ours = train(RECIPE, data, loss=F.cross_entropy), train(RECIPE, data)
    for one, other in zip(given.rows, ours.rows, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.train_accuracy == pytest.approx(other.train_accuracy, abs=0.01)


def test_images_are_selected_by_an_own_loss_of_each(data):
    recipe = dataclasses.replace(RECIPE, select=SelectConfig(keep=0.5, from_epoch=1))
    trainer = Trainer(recipe, data, "cpu", loss=squares)
    run = trainer.run(0)
    assert run.record.steps == 10 + 5 + 5 + 5 and trainer.state.tensors.image_losses.isfinite().all()
    with pytest.raises(UserError, match=r"select.keep is below 1, which needs each image's loss"):
        train(recipe, data, loss=F.cross_entropy)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        torch.optim.SGD,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
        lambda parameters: SGD(parameters, lr=0.05, momentum=0.9),
    ],
    ids=["our class", "torch's class", "torch's", "ours"],
)
def test_an_own_optimizer_takes_the_steps(data, optimizer):
    run = train(STEPS, data, seed=3, optimizer=optimizer)
    # The class of torch's is without Nesterov unless told.
    loss = partial(F.cross_entropy, reduction="none")
    losses, state = by_hand(data, loss, nesterov=optimizer is not torch.optim.SGD)
    assert run.rows[0].train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    for name, expected in state.items():
        torch.testing.assert_close(run.state[name], expected, rtol=1e-3, atol=1e-5)


def test_an_own_optimizer_follows_the_recipes_schedule(data):
    rates = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def two_groups(parameters):
        first, *rest = parameters
        return Noting([{"params": [first], "lr": 0.4}, {"params": rest}], lr=0.1)

    run = train(RECIPE, data, optimizer=two_groups)
    schedule = [RECIPE.schedule((step + 1) / 40) for step in range(40)]
    assert rates == [pytest.approx([0.4 * share, 0.1 * share]) for share in schedule]
    assert run.rows[-1].learning_rate == pytest.approx(0.4 * schedule[-1])


def test_matrices_reach_an_own_optimizer_as_matrices(data):
    shapes = []

    def mine(parameters):
        parameters = list(parameters)
        shapes.extend(tuple(parameter.shape) for parameter in parameters)
        return Muon([parameter for parameter in parameters if parameter.dim() > 1], lr=0.02)

    run = train(RECIPE, data, optimizer=mine)
    assert set(shapes) == {(8, 3072), (8,), (10, 8), (10,)}
    assert run.rows[-1].train_loss < run.rows[0].train_loss


def test_an_own_transform_comes_after_the_recipes(data):
    seen, given = [], []

    def augment(images):
        given.append(images.clone())
        return images.flip(2)

    trainer = Trainer(RECIPE, data, "cpu", augment=augment)
    trainer.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    run = trainer.run(3)
    assert len(seen) == len(given) == 40
    assert all(torch.equal(one, other.flip(2)) for one, other in zip(seen, given, strict=True))
    plain = Trainer(RECIPE, data, "cpu")
    first = []
    plain.model.register_forward_pre_hook(lambda module, inputs: first.append(inputs[0].clone()))
    plain.run(3)
    assert torch.equal(first[0], given[0])
    with pytest.raises(
        UserError, match=r"augment makes \[31, 3, 32, 32\] of \[32, 3, 32, 32\]; allowed: as many images"
    ):
        train(RECIPE, data, augment=lambda images: images[1:])
    assert run.record.steps == 40


def test_fields_are_changed_by_their_dotted_names(data):
    run = train("davidnet", data, epochs=0.5, batch_size=64, **{"optimizer.lr": 0.2, "network.widths": (4, 4, 4, 4)})
    assert (run.recipe.epochs, run.recipe.optimizer.lr, run.recipe.network.widths) == (0.5, 0.2, (4, 4, 4, 4))
    assert run.recipe.name == "davidnet"
    section = train(RECIPE, data, epochs=0.1, optimizer=SGDConfig(lr=0.3))
    assert section.recipe.optimizer == SGDConfig(lr=0.3)
    with pytest.raises(UserError, match=r"unknown field optimizer\.rate"):
        train("davidnet", data, **{"optimizer.rate": 1})
    with pytest.raises(UserError, match="unknown field epoch; did you mean 'epochs'"):
        train("davidnet", data, epoch=1)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"model": 3}, "model is"),
        ({"model": lambda classes: nn.Flatten()}, r"the model gives \[2, 3072\]"),
        ({"loss": "squares"}, "loss is of type str; allowed: a function of logits and labels"),
        ({"loss": lambda logits, labels: logits}, r"the loss has shape \[32, 10\]"),
        ({"loss": nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss; allowed: a function of logits"),
        ({"loss": lambda logits, labels: (logits, labels)}, "the loss gives a tuple; allowed: a tensor"),
        ({"loss": lambda logits, labels: labels.float()}, "the loss gives a Tensor without a gradient"),
        ({"augment": lambda images: (images, 1)}, r"augment makes a tuple of \[32, 3, 32, 32\]; allowed"),
        ({"augment": lambda images: images.flatten(1)}, r"augment makes \[32, 3072\]"),
        ({"listeners": Listener()}, "listeners is of type Listener; allowed: a list of them"),
        ({"seed": 1.5}, "seed is 1.5; allowed: a whole number, 0 up to"),
        ({"seed": -1}, "seed is -1; allowed"),
        ({"eval_every": -1}, "eval_every is -1; allowed: a whole number, 0 or more epochs"),
        ({"init": "runs/x"}, r"init is of type str; allowed: ColdStart\(\)"),
        ({"model": lambda classes: nn.Linear(3, classes)}, r"the model does not take images \[2, 3, 32, 32\]: "),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=1.0)}, "optimizer"),
        ({"optimizer": lambda parameters: None}, "optimizer"),
        ({"augment": Augment(cutout=8)}, "augment is of type Augment; allowed: a function of a batch of images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_taken_is_refused_in_one_line(data, given, refusal):
    with pytest.raises(UserError, match=refusal) as said:
        train(RECIPE, data, **given)
    assert "\n" not in str(said.value)


def test_an_own_network_is_tried_at_every_size_that_the_recipe_has(data):
    recipe = dataclasses.replace(
        RECIPE, augment=Augment(early_crops=((24, 0.5),)), network=DavidNetConfig(ghost_batch=0)
    )
    with pytest.raises(UserError, match=r"the model does not take images \[2, 3, 24, 24\]: "):
        train(recipe, data, model=Plain)


def test_an_own_networks_batches_may_have_any_size(data):
    assert train("davidnet", data, model=Plain, batch_size=50, epochs=0.1, device="cpu").record.steps == 1


def test_what_is_no_recipe_or_no_data_is_refused_in_one_line(data):
    random = np.random.default_rng(0)
    for given in ((3, data), (RECIPE, 3), (RECIPE, data.train)):
        with pytest.raises(UserError, match=r"the (recipe|dataset) is of type \w+; allowed: a (Recipe|Dataset)"):
            train(*given)
    wide = Dataset.from_arrays(
        random.integers(0, 256, (64, 8, 10, 3)), [0, 1] * 32, np.zeros((2, 8, 10, 3), np.uint8), [0, 1]
    )
    with pytest.raises(UserError, match="images are 8 by 10 pixels; allowed: square ones"):
        train(RECIPE, wide, model=Plain)


def test_a_whitening_in_an_own_network_is_fitted(data):
    def whitened(classes):
        return nn.Sequential(
            PatchWhitening(), ConvBN(27, 8, pool=True, kernel_size=1), GlobalMaxPool(), Head(8, classes)
        )

    run = train(RECIPE, data, model=whitened)
    expected = PatchWhitening()
    expected.fit(data.train.images, data.mean, data.std)
    assert torch.equal(run.state["0.weight"], expected.weight)


class Tied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.flat, self.one, self.two = nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 8)
        self.three, self.head = nn.Linear(8, 8), nn.Linear(8, classes)
        self.three.weight = self.two.weight

    def forward(self, x):
        return self.head(self.three(self.two(self.one(self.flat(x)).relu()).relu()).relu())


def test_shrink_and_perturb_mix_tied_weights_once(data, tmp_path):
    folder = train(RECIPE, data, model=Tied).save(tmp_path / "run")
    source = load_run(folder, Tied)[1].state_dict()
    trainer = Trainer(RECIPE, data, "cpu", model=Tied)
    fresh = trainer.new_network(3).module.state_dict()
    mixed = trainer.new_network(3, ShrinkPerturb(folder, 0.5, 0.25)).module.state_dict()
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.5 * source[name] + 0.25 * fresh[name])


def test_a_loaded_own_network_is_evaluated_as_the_run_was(data, tmp_path):
    class Normalizing(Plain):
        def __init__(self, classes):
            super().__init__(classes)
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.std = "of its own"

    run = train(RECIPE, data, model=Normalizing)
    _, model, _ = load_run(run.save(tmp_path / "run"), Normalizing)
    assert evaluate(run.model, data.test).accuracy == evaluate(model, data.test).accuracy == run.tta_accuracy


def test_everything_of_ones_own_goes_together(data):
    rows = []
    run = fastcifar.train(
        RECIPE,
        data,
        dtype="bfloat16",
        model=lambda classes: nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 16), nn.LayerNorm(16), nn.Linear(16, classes)
        ),
        loss=squares,
        optimizer=torch.optim.AdamW,
        augment=lambda images: images + 0.05 * torch.randn_like(images),
        listeners=[Listener(on_epoch=rows.append)],
        **{"optimizer.lr": 0.003},
    )
    assert len(rows) == 4 and rows[-1].train_loss < rows[0].train_loss
    assert (run.record.dtype, run.record.network) == ("bfloat16", "own")


@pytest.mark.parametrize("given", ["Adam", AdamConfig(), AdamConfig], ids=["kind", "configuration", "class"])
def test_an_optimizer_of_the_recipes_may_be_named_or_configured(data, given):
    run = train(RECIPE, data, epochs=0.5, optimizer=given, **{"optimizer.lr": 0.003})
    expected = dataclasses.replace(RECIPE, epochs=0.5, optimizer=AdamConfig(lr=0.003))
    assert run.recipe == expected
    plain = train(expected, data)
    assert all(torch.equal(tensor, plain.state[name]) for name, tensor in run.state.items())


def test_an_unknown_kind_of_optimizer_is_refused_with_what_was_probably_meant(data):
    with pytest.raises(UserError, match="did you mean 'Adam'") as said:
        train(RECIPE, data, optimizer="adam")
    assert "\n" not in str(said.value)
