"""The rates of every step are those that torch's schedulers set when they are stepped as their manual says."""

import dataclasses
import json

import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.models.mlp import MLP
from fastcifar.optim import FlatModel, build_optimizer, learning_rates
from fastcifar.recipes import EMAConfig, Recipe, Schedule, change, read_toml, to_toml
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.schedule import TORCH_SCHEDULERS
from fastcifar.recipes.text import read_changes
from fastcifar.record import RunRecord
from tests import kinds

STEPS, PEAK = 20, 0.4

ARGUMENTS = {
    "StepLR": ({"step_size": 6, "gamma": 0.5}, ("step_size=30%", "gamma=0.5")),
    "MultiStepLR": ({"milestones": [10, 15]}, ("milestones=50%,15steps",)),
    "ConstantLR": ({"factor": 0.25, "total_iters": 7}, ("factor=0.25", "total_iters=7steps")),
    "LinearLR": (
        {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 20},
        ("start_factor=1", "end_factor=0", "total_iters=100%"),
    ),
    "ExponentialLR": ({"gamma": 0.9}, ("gamma=0.9",)),
    "PolynomialLR": ({"total_iters": 20, "power": 2.0}, ("total_iters=100%", "power=2")),
    "CosineAnnealingLR": ({"T_max": 20, "eta_min": 0.01}, ("eta_min=1e-2",)),
    "CosineAnnealingWarmRestarts": ({"T_0": 5, "T_mult": 2}, ("T_0=25%", "T_mult=2")),
    "CyclicLR": (
        {"base_lr": 0.1, "max_lr": PEAK, "step_size_up": 4, "mode": "triangular2"},
        ("base_lr=0.1", "step_size_up=20%", "mode=triangular2"),
    ),
    "OneCycleLR": (
        {"max_lr": PEAK, "total_steps": 20, "three_phase": True, "anneal_strategy": "linear"},
        ("three_phase=true", "anneal_strategy=linear"),
    ),
}


def recipe_of(name, *options):
    return Recipe(epochs=10, optimizer=SGDConfig(lr=PEAK), schedule=Schedule(name=name, options=options))


@pytest.mark.parametrize("name", TORCH_SCHEDULERS)
def test_a_class_of_torch_gives_the_rates_that_it_sets(name):
    arguments, options = ARGUMENTS[name]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < STEPS:
            scheduler.step()
    rates = learning_rates(recipe_of(name, *options), STEPS)
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert len(set(rates)) > 1 and all(type(rate) is float for rate in rates)


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("StepLR", ("step_size=3",), ("step_size=6steps",)),
        ("StepLR", ("step_size=1.5",), ("step_size=3steps",)),
        ("StepLR", ("step_size=.1e1",), ("step_size=2steps",)),
        ("StepLR", ("step_size=0.01epochs", "gamma=0.9"), ("step_size=2%", "gamma=0.9")),
        ("StepLR", ("step_size=2%", "gamma=0.9"), ("step_size=1steps", "gamma=0.9")),
        ("StepLR", ("step_size=3epochs", "gamma=0.5"), ("step_size=30%", "gamma=0.5")),
        ("MultiStepLR", ("milestones=3,5steps,80%",), ("milestones=6steps,5steps,16steps",)),
        ("MultiStepLR", ("milestones=3",), ("milestones=6steps,",)),
        ("CosineAnnealingLR", ("T_max=5",), ("T_max=10steps",)),
        ("CosineAnnealingWarmRestarts", ("T_0=2", "T_mult=2"), ("T_0=4steps", "T_mult=2")),
        ("CyclicLR", ("base_lr=0.1", "step_size_up=2"), ("base_lr=0.1", "step_size_up=4steps")),
        ("OneCycleLR", ("total_steps=12",), ("total_steps=24steps",)),
        ("LinearLR", ("total_iters=10",), ("total_iters=100%",)),
    ],
)
def test_lengths_count_epochs_unless_they_say_otherwise(name, options, same):
    rates = learning_rates(recipe_of(name, *options), STEPS)
    assert rates == learning_rates(recipe_of(name, *same), STEPS)
    assert len(set(rates)) > 1
    words = [f"schedule.name={name}", f"schedule.options={json.dumps(options)}", f"optimizer.lr={PEAK}"]
    assert learning_rates(change(recipe_of("ConstantLR"), read_changes(words)), STEPS) == rates


@pytest.mark.parametrize(("share", "steps"), [(0.3, 6), (0.02, 0), (0.99, 19)])
def test_a_warm_up_is_torchs_sequence_of_schedulers(share, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - steps, eta_min=0.01)
    if steps:
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (steps + 1), total_iters=steps)
        cosine = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, cosine], [steps])
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    schedule = Schedule(name="CosineAnnealingLR", options=("eta_min=0.01",), warmup=share)
    rates = learning_rates(Recipe(epochs=10, optimizer=SGDConfig(lr=PEAK), schedule=schedule), STEPS)
    assert rates == pytest.approx(expected, rel=1e-9)
    assert rates.index(max(rates)) == steps


def test_a_warm_up_is_of_torchs_classes():
    with pytest.raises(UserError, match=r"^schedule.warmup is 0.1; allowed: 0 with schedule.name linear$"):
        Schedule(warmup=0.1)


def test_lengths_of_files_from_when_they_counted_steps_are_not_taken_for_epochs(tmp_path, new_record):
    """A kept run says what it did; of a recipe file nobody knows when it was written."""
    values = new_record(recipe=recipe_of("StepLR", "step_size=6steps")).to_json()
    record = RunRecord.from_json(values)
    values["recipe"]["schedule"]["options"] = ["step_size=6"]
    assert RunRecord.from_json(values) == record
    path = tmp_path / "mine.toml"
    path.write_text("[schedule]\nname = 'StepLR'\noptions = ['step_size=6', 'gamma=0.5']\n")
    with pytest.raises(UserError, match=r"mine\.toml: schedule\.options has step_size=6, gamma=0\.5; allowed: lengths"):
        read_toml(path)
    path.write_text("[schedule]\nname = 'StepLR'\noptions = ['step_size=6epochs', 'gamma=0.5']\n")
    assert read_toml(path).schedule == Schedule(name="StepLR", options=("step_size=6", "gamma=0.5"))


def test_our_line_reaches_airbenchs_rates_one_step_ahead_and_torchs_exactly():
    airbench = [PEAK * (1 - step / STEPS) for step in range(STEPS)]
    ours = learning_rates(Recipe(optimizer=SGDConfig(lr=PEAK), schedule=Schedule((0, 1), (1, 0))), STEPS)
    assert ours == pytest.approx([*airbench[1:], 0])
    options = ("start_factor=1", "end_factor=0", "total_iters=100%")
    assert learning_rates(recipe_of("LinearLR", *options), STEPS) == pytest.approx(airbench)


@pytest.mark.parametrize("name", ["sgd", "Adam"])
def test_an_optimizer_trains_at_these_rates(name):
    recipe = dataclasses.replace(
        recipe_of("CosineAnnealingLR"),
        network=MLPConfig(hidden=(3,)),
        batch_size=2,
        optimizer=kinds.optimizer(name, lr=PEAK, momentum=0, weight_decay=0),
        ema=EMAConfig(decay=0),
    )
    flat, steps = FlatModel(MLP(recipe.network)), []
    optimizer = build_optimizer(flat, recipe, STEPS)
    for _ in range(STEPS):
        before = flat.groups[0].weights.clone()
        flat.groups[0].grads.fill_(2.0)  # of the mean loss: 1, to which Adam's step too is its rate
        optimizer.step()
        steps.append((before - flat.groups[0].weights)[0].item())
    assert steps == pytest.approx(learning_rates(recipe, STEPS), rel=1e-3, abs=1e-5)


def test_a_schedule_survives_its_file_and_comes_from_words(tmp_path):
    recipe = recipe_of("MultiStepLR", "milestones=50%,75%", "gamma=0.2")
    (tmp_path / "mine.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert read_toml(tmp_path / "mine.toml") == recipe
    options = 'schedule.options=["milestones=50%,75%", "gamma=0.2"]'
    words = ["schedule.name=MultiStepLR", options, f"optimizer.lr={PEAK}"]
    assert change(Recipe(), read_changes(words)) == recipe


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "LambdaLR",
            (),
            "schedule.name is 'LambdaLR'; allowed: linear, StepLR, ",
        ),
        ("cosine", (), "schedule.name is 'cosine'; allowed: linear, StepLR, "),
        ("OneCycle", (), "schedule.name is 'OneCycle'; did you mean 'OneCycleLR'?; allowed: linear, StepLR, "),
        ("linear", ("gamma=1",), "schedule.options is ('gamma=1',); allowed: none with schedule.name linear"),
        ("StepLR", ("gamma",), "schedule.options is ('gamma',); allowed: words NAME=VALUE"),
        (
            "StepLR",
            ("gama=1", "step_size=3"),
            "schedule.options has 'gama=1'; did you mean 'gamma'?; allowed: step_size",
        ),
        ("StepLR", ("optimizer=1",), "schedule.options has 'optimizer=1'; allowed: step_size, gamma"),
        ("StepLR", ("gamma=0.5",), "schedule.options lacks step_size=..., which StepLR needs"),
        *(
            ("StepLR", (f"step_size={value}",), f"schedule.options is ('step_size={value}',); allowed: a length above")
            for value in ("0", "-3", "0steps", "-5%", "inf", "nanepochs", "1e999", "many", "epochs", "7days")
        ),
        ("MultiStepLR", ("milestones=3,0",), "schedule.options is ('milestones=3,0',); allowed: a length above 0"),
        ("OneCycleLR", ("total_steps=5",), "schedule.options do not fit OneCycleLR over 20 steps: "),
        ("OneCycleLR", ("anneal_strategy=x",), "schedule.options do not fit OneCycleLR over 20 steps: "),
        (
            "ExponentialLR",
            ("gamma=-1",),
            "schedule.options lead ExponentialLR to a rate that is negative or not finite",
        ),
        ("ExponentialLR", ("gamma=1e300",), "schedule.options "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, options, message):
    with pytest.raises(UserError) as refusal:
        learning_rates(recipe_of(name, *options), STEPS)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
