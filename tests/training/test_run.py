"""A run: what it says, what its folder holds, and how it is loaded again."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.recipes import EvaluateConfig
from fastcifar.record import own_commit
from fastcifar.training import evaluate, load_run, train
from tests.small import MLP

RECIPE = dataclasses.replace(MLP, evaluate=EvaluateConfig(tta="flip"))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 50)


@pytest.fixture(scope="module")
def run(data):
    return train(RECIPE, data, seed=3, eval_every=2, device="cpu")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return run.save(tmp_path_factory.mktemp("runs") / "run")


def test_losses_and_accuracies_are_those_of_the_rows(run, data):
    assert list(run.losses["train"]) == list(run.accuracies["train"]) == [1, 2, 3]
    assert list(run.losses["test"]) == list(run.accuracies["test"]) == [2, 3]
    assert run.losses["train"][3] == run.rows[2].train_loss
    plain = evaluate(run.model, data.test, EvaluateConfig(tta="none"))
    assert (run.losses["test"][3], run.accuracies["test"][3]) == (plain.loss, plain.accuracy)
    assert (run.record.loss, run.record.accuracy) == (plain.loss, plain.accuracy)
    assert "val" not in run.losses and "val" not in run.accuracies


def test_the_record_says_what_trained_it(run):
    assert run.record.command == tuple(sys.argv)
    assert run.record.commit == own_commit()
    assert (run.recipe, run.seed, run.record.network) == (RECIPE, 3, None)


def test_a_run_is_shown_in_a_line(run):
    line = f"Run(small, seed 3, {run.tta_accuracy:.2%}, {run.train_seconds:.1f} s)"
    assert repr(run) == str(run) == line


def test_the_predictions_are_kept_by_their_names(run, folder, data):
    kept = np.load(folder / "predictions.npz")
    assert set(kept) == {"plain_logits", "tta_logits", "labels"}
    for name in kept:
        assert np.array_equal(kept[name], getattr(run, name).numpy())
    assert torch.equal(run.labels, data.test.labels)
    for logits, accuracy in ((run.plain_logits, run.accuracy), (run.tta_logits, run.tta_accuracy)):
        assert (logits.argmax(1) == run.labels).double().mean().item() == accuracy
    assert not torch.equal(run.plain_logits, run.tta_logits)


def test_a_run_that_an_older_version_saved_is_loaded(run, folder, tmp_path):
    values = json.loads((folder / "run.json").read_text())
    later = ("version", "network", "commit", "command", "loss", "val_accuracy", "val_loss", "train_split")
    values = {name: value for name, value in values.items() if name not in later}
    (tmp_path / "run.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    recipe, model, record = load_run(tmp_path)
    assert (recipe, record.accuracy, record.loss) == (RECIPE, run.accuracy, None)
    assert all(torch.equal(tensor, run.state[name]) for name, tensor in model.state_dict().items())


def test_a_damaged_record_is_refused_by_file_and_field(folder, tmp_path):
    (tmp_path / "model.safetensors").touch()
    values = json.loads((folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**values, "steps": "many"}))
    with pytest.raises(UserError, match=r"^.*/run\.json: steps is 'many'; allowed: a whole number$"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({**values, "version": 99}))
    with pytest.raises(UserError, match=r"^.*/run\.json: version is 99; allowed: 1 to \d+, what this .*$"):
        load_run(tmp_path)


def test_a_network_of_ones_own_is_loaded_with_its_class_alone(run, data, tmp_path):
    folder = dataclasses.replace(run, record=dataclasses.replace(run.record, network="own")).save(tmp_path / "run")
    with pytest.raises(UserError, match=r"^.* holds a run of a network of its own; allowed: with model=, .*$"):
        load_run(folder)
    _, model, record = load_run(folder, model=lambda classes: build_model(RECIPE, classes, data.mean, data.std))
    assert evaluate(model, data.test, RECIPE.evaluate).accuracy == run.tta_accuracy
    assert record.network == "own" and not model.training
    with pytest.raises(UserError, match=r"^.* holds a damaged run: .* do not fit the network: bias is absent.*$"):
        load_run(folder, model=lambda classes: torch.nn.Linear(3, classes))


@pytest.fixture(scope="module")
def unlabeled(data):
    """Return a training whose test images have no labels."""
    test = dataclasses.replace(data.test, labels=torch.full_like(data.test.labels, -1))
    return train(RECIPE, dataclasses.replace(data, test=test), seed=3, eval_every=2, device="cpu")


def test_test_images_without_labels_have_logits_and_no_accuracy(unlabeled, run, tmp_path):
    assert torch.equal(unlabeled.tta_logits, run.tta_logits)
    assert unlabeled.accuracy is unlabeled.tta_accuracy is None
    assert unlabeled.record.loss is unlabeled.record.tta_loss is None
    assert (unlabeled.losses["test"], unlabeled.accuracies["test"]) == ({}, {})
    assert repr(unlabeled).startswith("Run(small, seed 3, no test labels, ")
    folder = unlabeled.save(tmp_path / "run")
    assert load_run(folder)[2] == unlabeled.record
    assert (folder / "log.tsv").read_text().count("\n") == 1, "the head alone"
