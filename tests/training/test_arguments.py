"""Numbers of numpy and torch in every argument of a training give the run, and the record, of Python's."""

import dataclasses
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

import fastcifar
from fastcifar.data import Split
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.experiments import EXPERIMENTS
from fastcifar.training import RunRecord, Trainer, train
from tests.small import MLP


def scalars(value):
    """Return `value` as numpy's scalars."""
    return [scalars(each) for each in value] if isinstance(value, list) else np.array(value)[()]


ARRAYS = {"scalars": scalars, "arrays": np.array, "tensors": lambda value: torch.from_numpy(np.array(value))}
TIMED = ("seconds", "phases", "started", "images_per_second")


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


def untimed(record):
    """Return the record as JSON, without what differs from run to run."""
    values = json.loads(json.dumps(record.to_json()))
    rows = [{name: value for name, value in row.items() if name not in TIMED} for row in values["history"]]
    kept = {name: value for name, value in values.items() if not name.endswith(TIMED)}
    return {**kept, "history": rows}


def a_run(data, number):
    recipe = fastcifar.change(MLP, {"epochs": number(2), "network.hidden": number([4, 4]), "drop_last": number(False)})
    data = data.take(number(24), seed=number(3), balanced=number(True), classes=number([0, 1, 2, 5]))
    return train(
        recipe,
        dataclasses.replace(data, mean=number(list(data.mean)), std=number(list(data.std))),
        seed=number(5),
        holdout=number(8),
        eval_every=number(2),
        evaluate_at_start=number(True),
        batch_size=number(6),
        **{"optimizer.lr": number(0.25), "normalize.std": number([60.0, 61.0, 62.0])},
    )


@pytest.fixture(scope="module")
def expected(data):
    return a_run(data, lambda value: value)


@pytest.mark.parametrize("number", ARRAYS.values(), ids=ARRAYS)
def test_the_record_is_the_same_as_with_pythons_numbers(number, data, expected, tmp_path):
    run = a_run(data, number)
    assert untimed(run.record) == untimed(expected.record)
    assert torch.equal(run.plain_logits, expected.plain_logits)
    folder = run.save(tmp_path / "run")
    kept = RunRecord.from_json(json.loads((folder / "run.json").read_text()))
    assert kept == run.record and {type(kept.seed), type(kept.dataset.holdout)} == {int}


WRONG = {
    "seed": [True, np.bool_(True), 1.0, np.float64(1), -1, 2**63, "1", None, np.array([1, 2])],
    "eval_every": [True, 1.0, -1, float("nan"), None],
    "evaluate_at_start": [1, 0, "yes", None, np.int64(1)],
    "holdout": [True, 2.0, "2", None, np.array([1, 2])],
    "until_train_accuracy": [0, -0.1, 1.5, float("nan"), "0.9", True],
}


@pytest.fixture(scope="module")
def trainer(data):
    return Trainer(MLP, data, "cpu")


@pytest.mark.parametrize(("name", "value"), [(name, each) for name in WRONG for each in WRONG[name]], ids=repr)
def test_what_is_of_another_type_or_out_of_range_is_refused_before_the_training(name, value, trainer, monkeypatch):
    monkeypatch.setattr(trainer, "rehearse", None)  # nothing is done
    run = trainer.run if name != "holdout" else partial(train, MLP, trainer.dataset)
    with pytest.raises(UserError, match=rf"^{name} is .*; allowed: ") as refusal:
        run(**{name: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_numbers_of_every_experiment_are_pythons(name):
    made = EXPERIMENTS[name]()
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if field.init and isinstance(value, int | float):
            again = dataclasses.replace(made, **{field.name: np.array(value)[()]})
            assert again == made and json.dumps(again.settings(), default=str) == json.dumps(
                made.settings(), default=str
            )
            assert type(getattr(again, field.name)) is type(value)


def test_images_that_are_not_square_are_refused_before_the_training(data):
    def wide(split):
        return Split(split.images.repeat(1, 1, 2, 1)[:, :, :48], split.labels)

    dataset = dataclasses.replace(data, train=wide(data.train), test=wide(data.test))
    for call in (lambda: Trainer(MLP, dataset), lambda: train(MLP, dataset), lambda: fastcifar.Loader(dataset.test, 4)):
        with pytest.raises(UserError, match=r"^images are 32 by 48 pixels; allowed: square ones, as by --resize N"):
            call()


@pytest.mark.parametrize("changes", [{}, {"name": "mine"}])
@pytest.mark.parametrize(("recipe", "dataset"), [("speedrun100", "cifar100"), ("speedrun94", "cifar10")])
def test_a_recipe_trains_on_what_it_is_made_for_whatever_it_is_called_now(monkeypatch, recipe, dataset, changes):
    def load(name, *_):
        raise UserError(f"loaded {name}")

    monkeypatch.setattr(sys.modules["fastcifar.training.train"], "load_dataset", load)
    with pytest.raises(UserError, match=f"^loaded {dataset}$"):
        train(recipe, device="cpu", **changes)
