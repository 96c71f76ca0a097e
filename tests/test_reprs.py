"""What a notebook shows of an object: a line, whatever it holds."""

import dataclasses

import pytest

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.experiments import EXPERIMENTS, Diverged, Experiment, Result
from fastcifar.recipes import RECIPES, Recipe, change
from fastcifar.report import FailedRun, KeptRuns, Runs
from fastcifar.training import Trainer
from tests.small import MLP

LINE = 300


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


@pytest.fixture(scope="module")
def run(data):
    return fastcifar.train(MLP, data)


def test_objects_of_a_training_are_a_line(data, run):
    trainer, loader = Trainer(MLP, data, "cpu"), fastcifar.Loader(data.train, 16)
    assert repr(loader) == "Loader(4 batches of 16, Split(64 images of 32 x 32, on cpu), next epoch 0)"
    assert repr(run.record) == f"RunRecord({repr(run)[4:]}"
    assert repr(trainer).startswith("Trainer(Recipe('small', ") and repr(trainer).endswith(", 12 steps)")
    plan = loader.plan(0)
    assert repr(plan) == "EpochPlan(64 images of side 32, on cpu)"
    found = fastcifar.evaluate(run.model, data.test)
    assert repr(found) == f"Evaluation(accuracy {found.accuracy:.4f}, loss {found.loss:.4f}, plain accuracy " + (
        f"{found.plain_accuracy:.4f}, 20 images)"
    )
    for each in (data, data.train, trainer, loader, run, run.record, plan, found):
        assert len(repr(each)) < 2 * LINE and "tensor(" not in repr(each) and "\n" not in repr(each)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_name_and_what_differs_from_that_of_its_name(name):
    recipe = RECIPES[name]
    assert repr(recipe) == f"Recipe('{name}')"
    changed = change(recipe, {"epochs": recipe.epochs + 1, "optimizer.lr": 0.0625})
    assert repr(changed) == f"Recipe('{name}', epochs={float(recipe.epochs + 1)}, optimizer.lr=0.0625)"
    assert dataclasses.replace(changed) == changed and hash(dataclasses.replace(changed)) == hash(changed)


@pytest.mark.parametrize("count", range(7))
def test_a_recipe_of_many_differences_is_a_line_still(count):
    numbers = {"epochs": 3.0, "l2_init": 0.5, "label_smoothing": 0.5, "optimizer.lr": 0.5, "optimizer.momentum": 0.5}
    numbers |= {"network.widths": (8,) * 4}
    changes = dict(list(numbers.items())[:count])
    text = repr(change(Recipe(name="mine"), changes))
    assert text.startswith("Recipe('mine'") and len(text) < LINE and text.count("=") == min(4, count)
    assert text.endswith(f", and {count - 4} more)") == (count > 4)


def test_runs_are_told_by_name_number_and_accuracy(new_record):
    records = tuple(new_record(seed=seed, tta_accuracy=0.94 + seed / 100) for seed in range(2))
    runs = Runs("a\x1bb", records, (FailedRun(3, "no"),))
    assert repr(runs) == "Runs(a\\x1bb, n=2, tta accuracy 94.50% ± 6.35, 1 failed)"
    assert repr(KeptRuns((runs,), unfinished=2)) == "KeptRuns(a\\x1bb n=2, 2 unfinished)"
    assert repr(KeptRuns((runs,) * 6)).endswith(", and 2 more)")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_result_of_an_experiment_is_a_line(name, new_record):
    experiment = EXPERIMENTS[name]()
    outcomes = {"a": [new_record(), Diverged("no")], "b": [new_record()]}
    result = experiment.result({"dataset": "cifar10"}, outcomes)
    assert repr(result).startswith(f"{type(result).__name__}({name}: ") and "3 runs of 2 arms" in repr(result)
    assert len(repr(result)) < LINE and "1 failed" in repr(result) and "RunRecord" not in repr(result)


def test_a_subclass_may_say_more_of_itself():
    class Told(Result):
        def __repr__(self):
            return "told"

    assert repr(dataclasses.dataclass(frozen=True)(Told)(Experiment(), {}, {})) == "told"
