"""The training loop: repeatable, honest about failure, saved whole."""

import copy
import dataclasses
import json
import math
import pickle
from importlib import import_module

import pytest
import torch

from fastcifar.data import load_dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.phases import Phases
from fastcifar.recipes import Augment, AverageConfig, EMAConfig, Recipe, get_recipe, quick
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.training import Listener, RunRecord, Trainer, evaluate, load_run, train
from fastcifar.training import rehearse as rehearse_module
from fastcifar.training.rehearse import replay_on_noise, warm_up_the_rest
from tests.small import DAVIDNET, MLP

train_module = import_module("fastcifar.training.train")  # by an attribute of that name it is the function

RECIPE = dataclasses.replace(DAVIDNET, epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(320, 100)


@pytest.fixture(scope="module")
def run(data):
    return train(RECIPE, data, seed=3)


def same_weights(one, other) -> bool:
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_names_a_run_bit_for_bit(data, dtype):
    recipe = dataclasses.replace(RECIPE, dtype=dtype)
    first, second, third = train(recipe, data, seed=3), train(recipe, data, seed=3), train(recipe, data, seed=4)
    assert same_weights(first, second)
    assert torch.equal(first.tta_logits, second.tta_logits)
    assert not same_weights(first, third)


def test_muon_trains_the_same_whether_it_overlaps_the_backward_pass_or_not(data):
    muon = MuonConfig(lr=0.05, bias_lr=0.05, head_lr=0.05, overlap=False)
    recipe = dataclasses.replace(
        RECIPE,
        network=SpeedrunConfig(widths=(8, 16, 16), whitening_bias_epochs=1),
        optimizer=muon,
    )
    overlapping = dataclasses.replace(recipe, optimizer=dataclasses.replace(muon, overlap=True))
    assert same_weights(train(recipe, data), train(overlapping, data))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["", "pickle"])
def test_a_network_is_copied_while_it_trains(data, copied):
    """By a listener, say; the copy is on its own, and the training goes on as without it."""
    network = SpeedrunConfig(widths=(8, 16, 16), whitening_bias_epochs=1)
    recipe, copies = dataclasses.replace(RECIPE, network=network, optimizer=MuonConfig()), []

    class Copies(Listener):
        def on_start(self, trainer):
            self.trainer = trainer

        def on_epoch(self, row):
            copies.append(copied(self.trainer.model))
            images = torch.zeros(2, 3, 32, 32, dtype=self.trainer.dtype)
            found = [model.eval()(images) for model in (copies[-1], copy.deepcopy(self.trainer.model))]
            assert torch.equal(*found)

    assert same_weights(train(recipe, data, listeners=[Copies()]), train(recipe, data))
    assert len(copies) == 2 and not torch.equal(*(each.classifier.weight for each in copies))


@pytest.mark.parametrize(
    "network",
    [
        ResNet18Config(width=4, stem="imagenet"),
        MLPConfig(hidden=(20,)),
        SpeedrunConfig(widths=(8, 8, 16), whitening_bias_epochs=1.0),
    ],
    ids=lambda config: config.kind,
)
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [(SGDConfig(lr=0.05, bias_lr_factor=1), "bfloat16"), (AdamConfig(lr=0.005, weight_decay=5e-4), "float32")],
    ids=["sgd-bfloat16", "Adam-float32"],
)
def test_every_network_trains_with_every_optimizer_and_is_saved(data, tmp_path, dtype, network, optimizer):
    recipe = dataclasses.replace(
        RECIPE,
        network=network,
        dtype=dtype,
        optimizer=optimizer,
        ema=EMAConfig(decay=0.9, every=1),
        epochs=3,
    )
    trainer = Trainer(recipe, data)
    first, second = trainer.run(3, eval_every=0), trainer.run(3, eval_every=0)
    assert same_weights(first, second)
    assert first.rows[-1].train_loss < first.rows[0].train_loss
    _, model, _ = load_run(first.save(tmp_path / "run"))
    assert type(model) is type(first.model)
    assert all(torch.equal(tensor, first.state[name]) for name, tensor in model.state_dict().items())


def test_runs_of_one_trainer_are_those_of_fresh_ones(data, run):
    trainer = Trainer(RECIPE, data)
    trainer.run(9)
    assert same_weights(trainer.run(3), run)


def test_the_next_run_of_a_trainer_leaves_the_weights_of_the_last_alone(data, run):
    trainer = Trainer(RECIPE, data)
    first = trainer.run(3)
    trainer.run(9)
    assert same_weights(first, run)


def test_a_step_on_noise_leaves_no_trace(data, run):
    trainer = Trainer(RECIPE, data)
    replay_on_noise(trainer)()
    assert same_weights(trainer.run(3), run)


def test_training_leaves_the_global_random_state_alone(data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train(dataclasses.replace(RECIPE, epochs=1), data)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_learns_and_its_numbers_agree(data, run):
    assert run.rows[-1].train_loss < run.rows[0].train_loss
    assert run.rows[-1].test_accuracy == run.accuracy == run.record.accuracy
    assert run.tta_accuracy == (run.tta_logits.argmax(1) == run.labels).double().mean().item()
    assert 0 < run.train_seconds < run.time_seconds < run.process_seconds
    assert run.record.images_per_second == pytest.approx(2 * 320 / run.train_seconds)


def test_the_record_holds_what_a_reader_needs(data, run):
    keys = "recipe dataset subset seed init device versions epochs accuracy tta_accuracy train_seconds time_seconds"
    assert set(keys.split()) | {"process_seconds", "images_per_second"} <= set(run.record.to_json())
    assert run.record.dataset.name == "synthetic"
    assert run.record.dataset.sha256 == data.sha256
    assert (run.record.dataset.train_size, run.record.dataset.test_size) == (320, 100)
    assert run.record.seed == 3
    assert run.record.init == {"mode": "cold"}
    assert sum(run.record.phases.values()) == pytest.approx(run.process_seconds)
    assert 0 < run.record.phases["training: steps"] < run.train_seconds + 0.1
    assert 0 < run.record.first_step_seconds < run.process_seconds
    assert RunRecord.from_json(json.loads(json.dumps(run.record.to_json()))) == run.record


def test_the_record_says_whether_steps_are_replayed_and_why_not(data, run, monkeypatch):
    without = None if torch.cuda.is_available() else "a CPU has no CUDA graphs"
    assert (run.record.captured, run.record.not_captured) == (without is None, without)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    for reasons in ((None, None), ("out of memory", None)):
        left = iter(reasons)
        monkeypatch.setattr(rehearse_module, "capture", lambda step, warm_up, pool, left=left: (step, next(left)))
        augment = Augment(early_crops=((24, 0.5),))  # two stages: one alone is not enough
        trainer = Trainer(dataclasses.replace(RECIPE, augment=augment), data.take(64), "cpu")
        trainer.not_captured = None  # as on a GPU
        record = trainer.run(0).record
        assert (record.captured, record.not_captured) == (not any(reasons), reasons[0])


def test_a_partial_batch_is_dropped(data):
    steps = []
    recipe = dataclasses.replace(RECIPE, epochs=1)
    run = train(recipe, data.take(100), listeners=[Listener(on_step=lambda step, total: steps.append((step, total)))])
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert run.record.subset["size"] == 100


def test_eval_every_says_how_often_the_test_split_is_seen(data):
    rows = []
    train(dataclasses.replace(RECIPE, epochs=3), data, eval_every=2, listeners=[Listener(on_epoch=rows.append)])
    assert [row.test_accuracy is not None for row in rows] == [False, True, True]
    assert [row.epoch for row in rows] == [1, 2, 3]


def test_holdout_keeps_the_test_split_out(data):
    run = train(dataclasses.replace(RECIPE, epochs=1), data, holdout=64)
    assert len(run.tta_logits) == run.record.dataset.holdout == run.record.dataset.test_size == 64
    assert run.record.dataset.train_size == 256


def test_without_an_average_the_last_weights_are_evaluated(data, run):
    last = train(dataclasses.replace(RECIPE, ema=EMAConfig(decay=0)), data, seed=3)
    assert not same_weights(last, run)
    assert [row.train_loss for row in last.rows] == [row.train_loss for row in run.rows]


def test_a_loss_that_is_no_number_ends_the_run_with_step_and_cause(data):
    recipe = dataclasses.replace(RECIPE, optimizer=SGDConfig(lr=1e30))
    with pytest.raises(
        NonFiniteLoss, match=r"loss became nan at step \d+ of 20 .epoch 1.*optimizer.lr 1e\+30 is too high"
    ):
        train(recipe, data)


def test_a_batch_larger_than_the_set_is_refused(data):
    recipe = dataclasses.replace(RECIPE, batch_size=512)
    with pytest.raises(UserError, match="batch_size is 512; allowed: up to the 320 training images"):
        Trainer(recipe, data)


def test_an_absent_device_is_refused(data):
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(UserError, match=f"device is '{absent}', but torch finds"):
        Trainer(RECIPE, data, absent)
    with pytest.raises(UserError, match="device is 'abacus'; allowed: auto, cpu, cuda"):
        Trainer(RECIPE, data, "abacus")


def test_a_saved_run_gives_its_accuracy_again(data, run, tmp_path):
    folder = run.save(tmp_path / "deep" / "run")
    recipe, model, record = load_run(folder)
    assert (recipe, record) == (RECIPE, run.record)
    assert evaluate(model, data.test).accuracy == run.tta_accuracy
    assert {path.name for path in folder.iterdir()} == {"run.json", "log.tsv", "predictions.npz", "model.safetensors"}
    log = (folder / "log.tsv").read_text().splitlines()
    assert log[0] == "epoch\thours\ttop1Accuracy"
    assert log[2] == f"2\t{run.train_seconds / 3600:.8f}\t{run.accuracy * 100:.2f}"


def test_a_run_is_never_saved_over_another_or_by_halves(run, tmp_path, monkeypatch):
    folder = run.save(tmp_path / "run")
    before = (folder / "run.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="already holds a run"):
        run.save(folder)
    assert (folder / "run.json").stat().st_mtime_ns == before

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("fastcifar.training.run.save_file", fail)
    with pytest.raises(UserError, match=r"cannot write .*/other/model\.safetensors: disk full"):
        run.save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_damaged_run_is_refused_in_one_line(run, tmp_path):
    folder = run.save(tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="holds a damaged run") as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no run: model.safetensors is missing"):
        load_run(folder)


def test_recipe_and_dataset_may_be_names():
    with pytest.raises(UserError, match="unknown recipe 'davidnett'"):
        train("davidnett")
    with pytest.raises(UserError, match="unknown data set 'cifar11'; did you mean 'cifar10"):
        train("davidnet", "cifar11")


def test_a_training_on_a_slice_of_real_images_reaches_a_stated_accuracy(real_data_dir):
    """An eighth of the width, 5,000 images, 2 epochs: seen 39% to 45% (n=3) on 1,000 held-out images; chance is 10%."""
    dataset = load_dataset("cifar10", real_data_dir, holdout=1000).take(5000)
    recipe = Recipe(
        **{"epochs": 2, "batch_size": 64, "network": DavidNetConfig(widths=(8, 16, 32, 64))},
        optimizer=SGDConfig(lr=0.5),
        ema=EMAConfig(decay=0.95),
    )
    assert train(recipe, dataset, eval_every=0).tta_accuracy > 0.3


def test_a_second_run_counts_its_own_seconds_alone(data):
    trainer = Trainer(dataclasses.replace(RECIPE, epochs=1), data, phases=Phases("start of Python"))
    first, second = (trainer.run(seed).record for seed in (0, 1))
    assert 0 < second.first_step_seconds < second.process_seconds < first.process_seconds
    assert sum(second.phases.values()) == pytest.approx(second.process_seconds)


def test_a_network_that_the_last_step_spoils_is_no_result(data, monkeypatch):
    trainer = Trainer(dataclasses.replace(RECIPE, epochs=1), data)
    scoring = import_module("fastcifar.training.scoring")
    evaluate = scoring.evaluate

    def spoil(model, *arguments):
        next(model.parameters()).data.fill_(math.nan)
        return evaluate(model, *arguments)

    monkeypatch.setattr(scoring, "evaluate", spoil)
    with pytest.raises(NonFiniteLoss, match=r"the trained network's loss is nan: most likely optimizer\.lr"):
        trainer.run()


@pytest.mark.parametrize("spoiled", ["logits", "plain_logits", "loss"])
def test_a_network_whose_outputs_no_file_of_results_takes_has_diverged(monkeypatch, spoiled):
    def exploded(*arguments):
        found = evaluate(*arguments)
        return dataclasses.replace(found, **{spoiled: getattr(found, spoiled) * 0 + 2e15})

    monkeypatch.setattr(import_module("fastcifar.training.scoring"), "evaluate", exploded)
    with pytest.raises(
        NonFiniteLoss, match=r"the trained network('s loss is 2000.*| has a logit of 2e\+15): most likely"
    ):
        Trainer(MLP, make_synthetic(64, 16)).run()


def test_a_recipe_trains_on_the_data_set_that_it_is_made_for_unless_another_is_named(monkeypatch):
    asked = []

    def load(name, *_):
        asked.append(name)
        raise UserError("enough")

    monkeypatch.setattr(train_module, "load_dataset", load)
    for given in (("speedrun100",), ("davidnet",), ("speedrun100", "synthetic")):
        with pytest.raises(UserError, match="enough"):
            train(*given)
    assert asked == ["cifar100", "cifar10", "synthetic"]


@pytest.mark.parametrize("name", ["speedrun94", "speedrun95", "speedrun96", "speedrun100"])
def test_the_speedrun_recipes_learn_at_reduced_size(name):
    recipe = dataclasses.replace(quick(get_recipe(name))[0], epochs=3)
    run = train(recipe, make_synthetic(6 * recipe.batch_size, 200), eval_every=0)
    assert run.rows[-1].train_loss < run.rows[0].train_loss
    assert run.accuracy > 0.5


@pytest.mark.parametrize(("average", "test_size"), [(0, 40), (1, 20)])
def test_a_warm_up_leaves_no_trace_in_the_run_after_it(average, test_size):
    """All that warms up a GPU besides steps, here on a CPU; also where the test images do not fill a batch."""
    settings = {"epochs": 1, "batch_size": 32, "dtype": "float32", "average": AverageConfig(epochs=average)}
    network = SpeedrunConfig(widths=(8, 8, 8), ghost_batch=16)
    recipe = dataclasses.replace(get_recipe("speedrun94"), network=network, optimizer=SGDConfig(lr=0.1), **settings)
    data = make_synthetic(96, test_size)
    plain, warmed = Trainer(recipe, data), Trainer(recipe, data)
    warm_up_the_rest(warmed)
    states = [trainer.run(1).state for trainer in (plain, warmed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
