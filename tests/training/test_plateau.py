"""The rate falls where torch's ReduceLROnPlateau would let it fall, at the losses that the rows say."""

import dataclasses
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import Notice, UserError
from fastcifar.experiments.named.ablate import Ablate
from fastcifar.optim import learning_rates
from fastcifar.recipes import LookaheadConfig, Schedule
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.record import EpochRow
from fastcifar.training import Listener, Trainer
from fastcifar.training.plateau import Plateau
from fastcifar.training.state_file import read_state, write_state
from tests.small import BARE

PEAK = 0.4
NEVER_BETTER = Schedule(name="ReduceLROnPlateau", options=("patience=0", "threshold=2"))


def recipe_of(*options, **fields):
    schedule = Schedule(name="ReduceLROnPlateau", options=options)
    return dataclasses.replace(BARE, optimizer=SGDConfig(lr=PEAK, momentum=0.0), schedule=schedule, **fields)


class Rates:
    """An optimizer that only keeps the rate of each step."""

    def __init__(self):
        self.rates = [math.nan] * 100

    def set_rate(self, rate, step):
        self.rates[step:] = [rate] * (len(self.rates) - step)


LOSSES = st.lists(st.floats(0, 5) | st.sampled_from([1.0, 1.0001, math.nan, math.inf]), max_size=20)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "factor": st.floats(0, 0.99),
        "patience": st.integers(0, 3),
        "threshold": st.floats(0, 0.5),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 3),
        "min_lr": st.floats(0, 0.2),
        "eps": st.floats(0, 0.1),
    },
)


@given(LOSSES, OPTIONS, st.integers(0, 20))
def test_the_rates_are_torchs_also_after_a_stop(losses, options, stop):
    recipe = recipe_of(*(f"{name}={value}" for name, value in options.items()))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    ours, plateau = Rates(), None
    for epoch, loss in enumerate(losses):
        if plateau is None or epoch == stop:
            state = plateau and plateau.state_dict()
            plateau = Plateau(recipe, ours)
            plateau.load_state_dict(state) if state else plateau.reset()
        scheduler.step(loss)
        plateau.step(EpochRow(epoch, 0.0, 0.0, 0.0, 0.0, test_loss=loss), epoch)
        assert ours.rates[epoch] == optimizer.param_groups[0]["lr"]


def test_the_validation_loss_goes_before_that_on_the_test_images():
    ours = Rates()
    plateau = Plateau(recipe_of("patience=0"), ours)
    plateau.reset()
    for step, val in enumerate((1.0, 0.5, 0.7)):
        plateau.step(EpochRow(step, 0.0, 0.0, 0.0, 0.0, test_loss=[1, 2, 0.1][step], val_loss=val), step)
    assert ours.rates[:4] == pytest.approx([PEAK, PEAK, PEAK / 10, PEAK / 10])


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 32).hold_out(16)


KINDS = {
    "sgd": {},
    "Adam": {"optimizer": AdamConfig(lr=PEAK)},
    "lookahead": {"lookahead": LookaheadConfig(every=2)},
}


@pytest.mark.parametrize("kind", [*KINDS, "own"])
def test_a_training_goes_by_the_losses_of_its_rows(data, kind):
    recipe = dataclasses.replace(
        recipe_of("patience=0", "factor=0.5", "threshold=0.1", epochs=6), **KINDS.get(kind, {})
    )
    own = {"optimizer": lambda weights: torch.optim.SGD(weights, lr=2 * PEAK)} if kind == "own" else {}
    trainer, seen = Trainer(recipe, data, "cpu", **own), []

    def see(step, total):
        seen.append(trainer.state.optimizer.learning_rate(step - 1))

    for _ in range(2):  # the second begins at the first rate again
        seen.clear()
        rows = trainer.run(1, listeners=[Listener(on_step=see)]).rows
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.1)
        wanted = []
        for row in rows:
            wanted.append(optimizer.param_groups[0]["lr"] * (2 if kind == "own" else 1))
            scheduler.step(row.test_loss)
        assert [row.learning_rate for row in rows] == wanted and wanted[-1] < wanted[0]
        assert seen == [rate for rate in wanted for _ in range(3)]


@pytest.mark.parametrize("optimizer", [SGDConfig(lr=0.1, momentum=0.0, weight_decay=0.0), AdamConfig(lr=0.1)])
def test_the_steps_are_made_at_that_rate(data, optimizer):
    """At rate 0 from the first reduction on, nothing changes any more."""
    schedule = dataclasses.replace(NEVER_BETTER, options=(*NEVER_BETTER.options, "factor=0"))
    trainer, weights = Trainer(dataclasses.replace(BARE, optimizer=optimizer, schedule=schedule), data, "cpu"), []
    trainer.run(listeners=[Listener(on_epoch=lambda row: weights.append(trainer.evaluated_weights()))])
    first, *others = weights
    assert len(others) == 2
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_captured_steps_find_the_rates_where_they_were(data):
    trainer = Trainer(recipe_of(), data, "cpu")
    places = [rates.data_ptr() for rates in trainer.state.optimizer.rates]
    trainer.state.optimizer.set_rate(0.125, 4)
    for rates in trainer.state.optimizer.rates:
        assert rates.tolist() == pytest.approx([PEAK] * 4 + [0.125] * 5)
    trainer.state.optimizer.set_rate(0.25, 100)
    assert [rates[-1].item() for rates in trainer.state.optimizer.rates] == [0.25] * len(places)
    assert [rates.data_ptr() for rates in trainer.state.optimizer.rates] == places


def test_its_state_is_kept_in_a_file(data, tmp_path):
    trainer, found = Trainer(recipe_of("patience=0", "threshold=2"), data, "cpu"), []

    def keep(row):
        write_state(tmp_path / f"{row.epoch}.pt", trainer.state.state_dict())
        found.append(trainer.state.plateau.state_dict())

    whole = trainer.run(3, listeners=[Listener(on_epoch=keep)])
    states = [read_state(tmp_path / f"{epoch}.pt") for epoch in (1, 2)]
    assert [state["plateau"] for state in states] == found[:2] and found[0]["rate"] == pytest.approx(PEAK / 10)
    again = Trainer(recipe_of("patience=0", "threshold=2"), data, "cpu").run(resume=states[0])
    assert all(torch.equal(again.state[name], whole.state[name]) for name in whole.state)
    del states[0]["plateau"]
    with pytest.raises(UserError, match="the training state does not fit: KeyError: 'best'"):
        trainer.run(resume=states[0])


@pytest.mark.parametrize(("option", "said"), [
    ("mode=max", "mode=max; allowed: min"),
    ("patience=2.5", "patience=2.5; allowed: a whole number from 0 up"),
    ("patience=2epochs", "patience=2epochs; allowed: a whole number from 0 up"),
    ("cooldown=-1", "cooldown=-1; allowed: a whole number"),
    ("factor=1", "factor=1; allowed: a number from 0 up, below 1"),
    ("factor=-0.1", "factor=-0.1; allowed: a number from 0 up, below 1"),
    ("min_lr=0.1,0.2", r"min_lr=\[0.1, 0.2\]; allowed: a number from 0 up"),
    ("threshold=nan", "threshold=nan; allowed: a number from 0 up"),
    ("threshold_mode=relative", "threshold_mode=relative; allowed: rel or abs"),
    ("patienc=3", "'patienc=3'; did you mean 'patience'"),
])  # fmt: skip
def test_an_option_that_does_not_fit_is_refused_before_the_training(option, said):
    with pytest.raises(UserError, match=f"schedule.options has {said}"):
        learning_rates(recipe_of(option), 10)


def test_it_needs_every_epochs_loss(data):
    with pytest.raises(UserError, match=r"eval_every is 2; allowed: with .* ReduceLROnPlateau 1, every epoch"):
        Trainer(recipe_of(), data, "cpu").run(eval_every=2)
    bare = make_synthetic(64, 32)
    bare = dataclasses.replace(bare, test=dataclasses.replace(bare.test, labels=torch.full((32,), -1)))
    with pytest.raises(UserError, match=r"schedule\.name is ReduceLROnPlateau; allowed: with labels on validation or"):
        Trainer(recipe_of(), bare, "cpu").run()


def test_an_experiment_evaluates_every_epoch_of_such_a_recipe(data):
    recipe = recipe_of("patience=0", "threshold=2", label_smoothing=0.1)
    result = Ablate(recipe=recipe, only=("label-smoothing",), runs=1).run(data, device="cpu")
    for (run,) in result.outcomes.values():
        assert [row.learning_rate for row in run.history] == pytest.approx([PEAK, PEAK / 10, PEAK / 100])


def test_that_it_goes_by_the_test_images_is_said(data):
    with pytest.warns(Notice, match="lowers the rate by the loss on the test images; --holdout N"):
        Trainer(recipe_of(epochs=1), make_synthetic(64, 32), "cpu").run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(recipe_of(epochs=1), data, "cpu").run()
