"""A training goes on from its state as if it had never stopped."""

import dataclasses
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import LookaheadConfig, LossScalingConfig, Schedule, to_toml
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.lars import LARSConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.training import Listener, Trainer
from tests.small import DAVIDNET, MLP
from tests.small import EVERYTHING as WITHOUT_LOOKAHEAD

EVERYTHING = dataclasses.replace(WITHOUT_LOOKAHEAD, lookahead=LookaheadConfig(every=3))
RECIPES = {
    "plain": DAVIDNET,
    "everything": EVERYTHING,
    "bfloat16": dataclasses.replace(DAVIDNET, dtype="bfloat16"),
    "Adam": dataclasses.replace(MLP, optimizer=AdamConfig(lr=0.01)),
    "normuon": dataclasses.replace(
        DAVIDNET, optimizer=MuonConfig(bias_lr=0.1, head_lr=0.1, row_momentum=0.9, polar_express=1e-3)
    ),
    "lars": dataclasses.replace(DAVIDNET, optimizer=LARSConfig(bias_lr=0.1, norm_smoothing=0.5)),
    "float16": dataclasses.replace(
        MLP,
        dtype="float16",
        optimizer=SGDConfig(lr=0.01),
        loss_scaling=LossScalingConfig(dynamic=True, initial=2.0**26),
    ),
    "plateau": dataclasses.replace(
        MLP, schedule=Schedule(name="ReduceLROnPlateau", options=("patience=0", "threshold=2"))
    ),
    "drop_last": dataclasses.replace(
        DAVIDNET, drop_last=False, batch_size=32, network=DavidNetConfig((4, 4, 4, 8), ghost_batch=0)
    ),
}


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


class Saved(Exception):
    """The training was stopped, its state being saved."""


def saved_after(step, path, trainer, **arguments):
    """Train, save the state after `step` steps and stop."""

    def save(now, total):
        if now == step:
            torch.save(trainer.state.state_dict(), path)
            raise Saved

    with pytest.raises(Saved):
        trainer.run(3, listeners=[Listener(on_step=save)], **arguments)
    return torch.load(path, weights_only=True)


def assert_same(one, other):
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert torch.equal(one.tta_logits, other.tta_logits)
    rows = [[dataclasses.replace(row, seconds=0) for row in run.rows] for run in (one, other)]
    assert rows[0] == rows[1]
    assert one.record.steps == other.record.steps


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau")
@pytest.mark.parametrize("name", RECIPES)
def test_a_training_goes_on_from_any_step_bit_for_bit(data, name, tmp_path):
    recipe = RECIPES[name]
    first, second = (Trainer(recipe, data, "cpu") for _ in range(2))
    whole = first.run(3)
    second.run(9)  # whatever was in its buffers is replaced
    total = whole.record.steps
    steps = {1, total // 3, whole.rows[0].images // recipe.batch_size, total - 1, total}

    def save(step, total):
        if step in steps:
            torch.save(first.state.state_dict(), tmp_path / f"{step}.pt")

    first.run(3, listeners=[Listener(on_step=save)])
    for step in sorted(steps):
        state = torch.load(tmp_path / f"{step}.pt", weights_only=True)
        assert state["step"] == step and state["seed"] == 3
        assert_same(second.run(resume=state), whole)


def test_a_state_is_a_copy_and_holds_all_that_changes(data, tmp_path):
    trainer, states = Trainer(EVERYTHING, data, "cpu"), []
    trainer.run(3, listeners=[Listener(on_step=lambda step, total: states.append(trainer.state.state_dict()))])
    assert [state["step"] for state in states] == list(range(1, trainer.total_steps + 1))
    seconds = [state["train_seconds"] for state in states]
    assert all(one < other for one, other in itertools.pairwise(seconds))
    # Loaded in any order, each is the same again.
    for state in (states[7], states[2]):
        trainer.state.load_state_dict(state)
        again = trainer.state.state_dict()
        assert again.pop("processes")["resumed"] == [state["step"]] and state.pop("processes")["resumed"] == []
        assert str(again) == str(state) and list(again) == list(state)


class Noisy(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3072, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, classes))


def test_dropout_and_a_transform_of_ones_own_go_on_too_and_leave_the_process_alone(data, tmp_path):
    def augment(images):
        return images + 0.1 * torch.randn_like(images)

    own = {"model": Noisy, "augment": augment, "optimizer": torch.optim.AdamW}
    recipe = dataclasses.replace(DAVIDNET, optimizer=SGDConfig(lr=0.01))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = Trainer(recipe, data, "cpu", **own).run(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    state = saved_after(8, tmp_path / "state.pt", Trainer(recipe, data, "cpu", **own))
    torch.manual_seed(2)
    assert_same(Trainer(recipe, data, "cpu", **own).run(resume=state), whole)
    other = Trainer(recipe, data, "cpu", **own)
    assert not torch.equal(other.run(4).tta_logits, whole.tta_logits)
    state["random"].clear()  # as of a device that has other generators than the one where it goes on
    runs = [trainer.run(resume=state) for trainer in (Trainer(recipe, data, "cpu", **own), other)]
    assert_same(*runs)


def test_another_process_goes_on_with_the_same_bits(data, tmp_path):
    threads, whole = torch.get_num_threads(), Trainer(EVERYTHING, data, "cpu").run(3)
    saved_after(8, tmp_path / "state.pt", Trainer(EVERYTHING, data, "cpu"))
    (tmp_path / "recipe.toml").write_text(to_toml(EVERYTHING))
    code = (
        "import sys, torch\n"
        "from fastcifar.data.synthetic import make_synthetic\n"
        "from fastcifar.recipes import read_toml\n"
        "from fastcifar.training import Trainer\n"
        f"torch.set_num_threads({threads})\n"
        "recipe, state, end = sys.argv[1:]\n"
        "trainer = Trainer(read_toml(recipe), make_synthetic(100, 20), 'cpu')\n"
        "run = trainer.run(resume=torch.load(state, weights_only=True))\n"
        "torch.save({'state': run.state, 'logits': run.tta_logits}, end)\n"
    )
    files = [str(tmp_path / name) for name in ("recipe.toml", "state.pt", "end.pt")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert all(torch.equal(end["state"][name], whole.state[name]) for name in whole.state)
    assert torch.equal(end["logits"], whole.tta_logits)


def test_a_training_goes_on_from_before_its_first_step_too(data):
    whole = Trainer(EVERYTHING, data, "cpu").run(3)
    for how in ("on_start", "on_epoch"):
        trainer, states = Trainer(EVERYTHING, data, "cpu"), []

        def save(_, trainer=trainer, states=states):
            states.append(trainer.state.state_dict())

        trainer.run(3, listeners=[Listener(**{how: save})], evaluate_at_start=how == "on_epoch")
        assert (states[0]["step"], len(states[0]["history"])) == (0, how == "on_epoch")
        states[0]["history"] = []
        assert_same(Trainer(EVERYTHING, data, "cpu").run(resume=states[0]), whole)


def test_a_training_that_has_reached_its_goal_does_not_go_on(data, tmp_path):
    goal = Trainer(MLP, data, "cpu").run(3).rows[0].train_accuracy
    whole = Trainer(MLP, data, "cpu").run(3, until_train_accuracy=goal)
    assert whole.record.steps == 6
    state = saved_after(6, tmp_path / "state.pt", Trainer(MLP, data, "cpu"), until_train_accuracy=goal)
    assert_same(Trainer(MLP, data, "cpu").run(resume=state, until_train_accuracy=goal), whole)


def test_a_listener_draws_random_numbers_of_the_process(data):
    recipe, drawn = dataclasses.replace(DAVIDNET, optimizer=SGDConfig(lr=0.01)), []
    plain = Trainer(recipe, data, "cpu", model=Noisy).run(3)
    torch.manual_seed(5)
    heard = Trainer(recipe, data, "cpu", model=Noisy).run(
        3, listeners=[Listener(on_step=lambda *_: drawn.append(torch.rand(2)))]
    )
    assert_same(heard, plain)
    torch.manual_seed(5)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(2) for _ in drawn]))


@pytest.mark.parametrize("names", [["row_momentum"], ["row_momentum", "polar_express"]])
def test_a_state_from_before_a_field_was_there_is_of_a_training_with_its_default(data, tmp_path, names):
    recipe = dataclasses.replace(DAVIDNET, epochs=1, optimizer=MuonConfig(bias_lr=0.1, head_lr=0.1))
    trainer = Trainer(recipe, data, "cpu")
    state = saved_after(2, tmp_path / "state.pt", trainer)
    for name in names:
        del state["of"]["recipe"]["optimizer"][name]
    assert_same(trainer.run(resume=state), trainer.run(3))
    other = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, row_momentum=0.5))
    with pytest.raises(UserError, match=r"recipe\.optimizer\.row_momentum is 0\.0 there and 0\.5 here"):
        Trainer(other, data, "cpu").run(resume=state)


def test_a_state_of_another_training_is_refused_in_one_line_before_anything_is_compiled(data, tmp_path, monkeypatch):
    state = saved_after(2, tmp_path / "state.pt", Trainer(DAVIDNET, data, "cpu"))
    monkeypatch.setattr(Trainer, "rehearse", None)
    slower = dataclasses.replace(DAVIDNET, optimizer=SGDConfig(lr=0.5))
    for recipe, images, what in (
        (MLP, data, "recipe.network.kind is davidnet there and mlp here"),
        (slower, data, "recipe.optimizer.lr is 1.0 there and 0.5 here"),
        (dataclasses.replace(DAVIDNET, epochs=1), data, "recipe.epochs is 3 there and 1 here"),
        (DAVIDNET, data.take(64), "data.subset.* there and"),
        (DAVIDNET, make_synthetic(100, 20, seed=1), "data.sha256 is .* there and .* here"),
    ):
        with pytest.raises(UserError, match=f"the training state does not fit: {what}") as said:
            Trainer(recipe, images, "cpu").run(resume=state)
        assert "\n" not in str(said.value)


def test_a_state_from_before_a_field_of_recipes_existed_goes_on(data, tmp_path):
    trainer = Trainer(EVERYTHING, data, "cpu")
    whole, state = trainer.run(3), saved_after(8, tmp_path / "state.pt", trainer)
    del state["of"]["recipe"]["optimizer"]["norm_growth"], state["of"]["recipe"]["augment"]["crop"]
    assert_same(trainer.run(resume=state), whole)
    del state["of"]["recipe"]["augment"]["flip"]  # which was on: another recipe
    with pytest.raises(UserError, match=r"does not fit: recipe\.augment.flip is random there and by-visit here"):
        trainer.run(resume=state)


@pytest.mark.parametrize(
    "damage",
    [
        {"step": -1},
        {"step": 400},
        {"step": "2"},
        {"flat": []},
        {"flat": {}},
        {"epoch": {}},
        {"seed": None},
        {"random": None},
        {"history": [{"epoch": 1}]},
        {"optimizer": {}},
        {"of": None},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_in_one_line(data, tmp_path, damage):
    trainer = Trainer(DAVIDNET, data, "cpu")
    state = saved_after(2, tmp_path / "state.pt", trainer)
    with pytest.raises(UserError, match="the training state does not fit") as said:
        trainer.run(resume={**state, **damage})
    assert "\n" not in str(said.value)
    with pytest.raises(UserError, match="the training state does not fit"):
        trainer.run(resume={name: value for name, value in state.items() if name not in damage})
    assert trainer.run(resume=state).record.steps == 18


def test_before_a_training_there_is_no_state(data):
    with pytest.raises(UserError, match="no training has begun"):
        Trainer(DAVIDNET, data, "cpu").state.state_dict()
