"""A state saved in the middle of a training goes on in other objects with the same bits; steps may be left out."""

import copy
import dataclasses
import io

import pytest
import torch
from torch import nn

from fastcifar.errors import UserError
from fastcifar.models.resnet import ResNet18
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import FlatModel, Lookahead, build_optimizer, learning_rates
from fastcifar.recipes import EMAConfig, LookaheadConfig, Recipe
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from tests import kinds

BATCH, HALF = 8, 3
OURS = Recipe(
    network=SpeedrunConfig(widths=(4, 8, 8), whitening_bias_epochs=1),
    batch_size=BATCH,
    ema=EMAConfig(decay=0.9, every=2),
)
VARIANTS = {
    "normuon": ("muon", {"row_momentum": 0.7}),
    "layers": ("sgd", {"layers": ("blocks.1:lr=0.5,momentum=0.5", "whitening:momentum=0.8")}),
    "smoothed": ("lars", {"norm_smoothing": 0.7}),
}
OWN = {
    "class": torch.optim.SGD,
    "lookahead": lambda parameters: Lookahead(torch.optim.SGD(parameters, lr=0.01, momentum=0.9), every=2),
    "function": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "groups": lambda parameters: torch.optim.RMSprop(
        [{"params": [p], "lr": 0.01 / (1 + place)} for place, p in enumerate(parameters)], momentum=0.5
    ),
}


def recipe_of(name):
    kind, fields = VARIANTS.get(name, (name, {}))
    rates = {"lr": 0.05, "bias_lr": 0.05, "head_lr": 0.05, "bias_lr_factor": 2}
    optimizer = kinds.optimizer(kind, norm_every=2, **rates, **fields)
    return dataclasses.replace(OURS, optimizer=optimizer)


class Session:
    """A network, its buffers and an optimizer, as a fresh process makes them."""

    def __init__(self, recipe, dtype=torch.float32, own=None, seed=0):
        torch.manual_seed(seed)
        self.flat = FlatModel(SpeedrunNet(recipe.network), dtype)
        self.flat.group_of("whitening.bias").steps = HALF + 1
        self.optimizer = build_optimizer(self.flat, recipe, 2 * HALF, own)

    def train(self, steps):
        model = self.flat.model.train()
        for step in steps:
            model.whitening.bias.requires_grad_(step < HALF + 1)
            images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            logits = model(images.to(self.flat.dtype).contiguous(memory_format=torch.channels_last))
            self.flat.backward(logits.float().square().sum(), halfway=self.optimizer.step_above)
            self.optimizer.step()

    def save(self):
        file = io.BytesIO()
        torch.save({"flat": self.flat.training_state(), "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()

    def load(self, saved):
        state = torch.load(io.BytesIO(saved))
        self.flat.load_training_state(state["flat"])
        self.optimizer.load_state_dict(state["optimizer"])


def equal(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sgd", "muon", "lars", "Adam", "SGD", *VARIANTS, *OWN])
def test_a_training_goes_on_from_a_saved_state_with_the_same_bits(name, dtype):
    own = OWN.get(name)
    recipe = recipe_of("sgd" if own else name)
    whole, first, second = (Session(recipe, dtype, own, seed) for seed in (0, 0, 1))
    whole.train(range(2 * HALF))
    first.train(range(HALF))
    saved = first.save()
    first.train(range(HALF, 2 * HALF))  # what was saved is not what goes on
    second.train(range(1))  # it need not be fresh
    second.load(saved)
    assert not equal(second.flat.training_state(), first.flat.training_state())
    for group in second.flat.groups:
        assert torch.equal(group.compute, group.weights.to(group.compute.dtype))
    second.train(range(HALF, 2 * HALF))
    for session in (first, second):
        assert equal(session.flat.training_state(), whole.flat.training_state())
        assert equal(session.flat.state_dict(), whole.flat.state_dict())
        assert session.optimizer.count.item() == 2 * HALF


def test_the_state_is_the_tensors_themselves_and_all_of_them():
    session = Session(recipe_of("sgd"))
    state = session.flat.training_state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    session.train(range(2))
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    frozen = {name for name, p in session.flat.model.named_parameters() if not p.requires_grad}
    assert changed == state.keys() - {f"model.{name}" for name in frozen} and "whitening.weight" in frozen
    session.flat.model.whitening.weight.data.add_(1)
    assert not torch.equal(state["model.whitening.weight"], before["model.whitening.weight"])


def test_integer_buffers_and_those_outside_the_state_dict_are_part_of_it():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 2)
            self.register_buffer("scale", torch.ones(3), persistent=False)

        def forward(self, x):
            self.scale.mul_(0.5)
            return self.head(self.norm(x) * self.scale)

    flats = [FlatModel(Counting()) for _ in range(2)]
    flats[0].model(torch.randn(4, 3))
    flats[1].load_training_state(flats[0].training_state())
    model = flats[1].model
    assert model.norm.num_batches_tracked == 1 and torch.equal(model.scale, torch.full((3,), 0.5))
    assert torch.equal(model.norm.running_mean, flats[0].model.norm.running_mean)


def test_the_state_of_another_network_is_refused_and_changes_nothing():
    session, other = Session(recipe_of("sgd")), FlatModel(ResNet18(ResNet18Config(width=2)))
    before = {name: tensor.clone() for name, tensor in session.flat.training_state().items()}
    with pytest.raises(UserError, match=r"^groups\.0\.ema of the training's state is \[\d+\]; allowed: \[32\]$"):
        session.flat.load_training_state(other.training_state())
    with pytest.raises(UserError, match=r"^statistics of the training's state is absent; allowed: \[\d+\]$"):
        session.flat.load_training_state({name: before[name] for name in before if name != "statistics"})
    assert equal(session.flat.training_state(), before)


def described(value):
    """All of an optimizer's state, as text: tensors in full."""
    if isinstance(value, dict):
        return {name: described(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [described(inner) for inner in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


DAMAGE = {
    "count": (lambda state: state.pop("count"), r"^count of the training's state is absent; allowed: \[1\]$"),
    "step": (lambda state: state.pop("step"), "^the training's state has no state of an optimizer of torch's; allowed"),
    "groups": (lambda state: state["optimizer"]["param_groups"].pop(), "^the state of Adam does not fit: loaded state"),
    "shape": (
        lambda state: state["optimizer"]["state"].update({0: {"exp_avg": torch.ones(3)}}),
        r"^exp_avg of .* is \[3",
    ),
    "slow": (lambda state: state["slow"].pop(), r"^slow\.\d of the training's state is absent; allowed: \[\d+\]$"),
    "inner": (lambda state: state.pop("inner"), r"^count of the training's state is absent; allowed: \[1\]$"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_state_of_another_optimizer_is_refused_and_changes_nothing(damage):
    """Of one within lookahead too."""
    lookahead = LookaheadConfig(every=2)
    for recipe in (recipe_of("Adam"), dataclasses.replace(recipe_of("Adam"), lookahead=lookahead)):
        session = Session(recipe)
        session.train(range(2))
        state = copy.deepcopy(session.optimizer.state_dict())
        session.train(range(2, 3))
        change, message = DAMAGE[damage]
        within = state["inner"] if "inner" in state and damage not in ("inner", "slow") else state
        if damage in ("inner", "slow") and damage not in state:
            continue
        change(within)
        before = described(session.optimizer.state_dict())
        with pytest.raises(UserError, match=message):
            session.optimizer.load_state_dict(state)
        assert described(session.optimizer.state_dict()) == before


def test_the_mean_squares_of_rows_are_part_of_the_state_where_rows_are_evened_out():
    with_rows, without = Session(recipe_of("normuon")), Session(recipe_of("muon"))
    with_rows.train(range(1))
    state = with_rows.optimizer.state_dict()
    assert state["row_squares"].all() and list(without.optimizer.state_dict()) == ["count"]
    before = state["row_squares"].clone()
    with pytest.raises(UserError, match=r"^row_squares of the training's state is absent; allowed: \[\d+\]$"):
        with_rows.optimizer.load_state_dict({"count": torch.tensor([7])})
    assert with_rows.optimizer.count == 1 and torch.equal(state["row_squares"], before)
    with_rows.optimizer.reset()
    assert not state["row_squares"].any()


def test_the_averages_of_gradient_norms_are_part_of_the_state_where_norms_are_smoothed():
    smoothed, plain = Session(recipe_of("smoothed")), Session(recipe_of("lars"))
    smoothed.train(range(1))
    state = smoothed.optimizer.state_dict()
    assert list(state) == ["count", "gradient_norms.0"] and list(plain.optimizer.state_dict()) == ["count"]
    norms = state["gradient_norms.0"]
    assert len(norms) == 7 and norms.all()  # of each filter and the classifier
    before = norms.clone()
    with pytest.raises(UserError, match=r"^gradient_norms\.0 of the training's state is absent; allowed: \[7\]$"):
        smoothed.optimizer.load_state_dict({"count": torch.tensor([7])})
    assert smoothed.optimizer.count == 1 and torch.equal(norms, before)
    smoothed.optimizer.reset()
    assert not norms.any()


@pytest.mark.parametrize("name", ["sgd", "muon", "lars", "Adam", *VARIANTS])
def test_a_step_that_is_left_out_is_counted_and_changes_nothing(name):
    """And what follows is what would follow an update of zero: only the rates move on."""
    recipe = dataclasses.replace(recipe_of(name), ema=EMAConfig(decay=0.9, every=1))
    session = Session(recipe)
    session.train(range(2))
    before = {name: tensor.clone() for name, tensor in session.flat.training_state().items()}
    for group in session.flat.groups:
        for gradient in group.gradients:
            gradient.fill_(torch.nan)
    session.optimizer.skip()
    assert equal(session.flat.training_state(), before)
    assert session.optimizer.count.item() == 3
    counted = Session(recipe)
    counted.train(range(2))
    state = counted.optimizer.state_dict()
    counted.optimizer.load_state_dict({**state, "count": torch.tensor([3]), **({"step": 3} if "step" in state else {})})
    for one in (session, counted):
        one.train(range(3, 6))
    assert equal(session.flat.training_state(), counted.flat.training_state())


@pytest.mark.parametrize("name", ["sgd", "layers", "muon", "lars", "Adam"])
def test_the_rate_of_the_weights_is_known_on_the_host(name):
    optimizer = Session(recipe_of(name)).optimizer
    expected = learning_rates(optimizer.recipe, 2 * HALF)  # not the bias's, whose group comes first and trains for less
    assert [optimizer.learning_rate(step) for step in range(2 * HALF)] == expected and len(set(expected)) > 1
    assert optimizer.learning_rate(99) == expected[-1]
    assert type(optimizer.learning_rate(0)) is float
