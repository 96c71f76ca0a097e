"""`compare` and the arms it trains, for real on a few synthetic images and a small perceptron."""

import dataclasses
import json

import pytest
import torch

from fastcifar.cli.experiment import read_options
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss, RenamedWarning, UserError
from fastcifar.experiments import Diverged, Job
from fastcifar.experiments.experiment import hold_out
from fastcifar.experiments.named.compare import Compare
from fastcifar.experiments.runner import Runner
from fastcifar.experiments.store import Store
from fastcifar.recipes import EMAConfig, Recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import RunRecord, Trainer

GOOD = Recipe(
    name="good",
    epochs=2,
    batch_size=32,
    network=MLPConfig(hidden=(16,)),
    optimizer=SGDConfig(lr=0.05, bias_lr_factor=1.0),
    ema=EMAConfig(decay=0.0),
)
BAD = dataclasses.replace(GOOD, name="bad", optimizer=SGDConfig(lr=1e-5, bias_lr_factor=1.0))


def compare(a, b, dataset, folder=None, holdout=None, on_progress=None, **options):
    experiment = Compare(a=a, b=b, **options)
    return experiment.run(dataset, folder, holdout=holdout, device="cpu", on_progress=on_progress)


@pytest.fixture(scope="module")
def dataset():
    return make_synthetic(train_size=320, test_size=32)


@pytest.fixture
def trained(monkeypatch):
    """The recipes' names and the seeds of all runs that are really trained."""
    runs, run = [], Trainer.run

    def counted(trainer, seed, *args, **kwargs):
        runs.append((trainer.recipe.name, seed))
        return run(trainer, seed, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", counted)
    return runs


def test_a_clear_difference_is_seen_at_the_fifth_pair_and_stops_the_comparison(dataset, trained):
    result = compare(GOOD, BAD, dataset, runs=20, holdout=64)
    assert (result.n, result.better) == (5, "a")
    assert result.verdict.startswith("A better, after 5 runs of each (loss of B less A +")
    low, high = result.difference("loss").interval
    assert 0 < low < result.difference("loss").mean < high
    assert result.difference("loss").e_value >= 20
    assert compare(BAD, GOOD, dataset, runs=20, holdout=64).better == "b"
    # In turn, neither always first, from the same seeds.
    assert trained[:4] == [("good", 0), ("bad", 0), ("bad", 1), ("good", 1)]


def test_by_accuracy_more_is_better(dataset):
    result = compare(GOOD, BAD, dataset, runs=12, holdout=64, by="accuracy", alpha=0.2)
    assert result.better == "a"
    assert result.difference("accuracy").mean < 0
    assert "points" in result.verdict


def test_held_out_images_are_evaluated_unless_the_test_split_is_asked_for(dataset):
    held = compare(GOOD, BAD, dataset, runs=1, holdout=64)
    assert (held.settings["holdout"], held.settings["train_size"], held.settings["test_size"]) == (64, 256, 64)
    assert compare(GOOD, BAD, dataset, runs=1, holdout=0).settings["test_size"] == 32
    assert compare(GOOD, BAD, dataset.hold_out(100), runs=1).settings["test_size"] == 100


def test_the_same_recipe_is_trained_from_other_seeds_and_no_difference_is_seen(dataset, trained):
    result = compare(GOOD, dataclasses.replace(GOOD, name="again"), dataset, runs=6, holdout=64, alpha=0.01)
    assert result.better is None
    assert result.verdict.startswith("no difference seen in 6 runs of each (loss of B less A ")
    assert len({seed for _, seed in trained}) == 12
    assert len(set(result.difference("loss").values)) == 6


def test_few_pairs_have_no_interval_and_no_verdict(dataset):
    result = compare(GOOD, BAD, dataset, runs=2, holdout=64)
    assert result.better is None
    assert result.difference("loss").interval is None
    assert "no interval yet" in result.verdict
    assert "no interval yet" in result.tables()[0].markdown()


def test_a_comparison_goes_on_where_it_was_and_with_more_runs(dataset, trained, tmp_path):
    first = compare(GOOD, BAD, dataset, runs=2, folder=tmp_path, holdout=64)
    assert len(trained) == 4
    second = compare(GOOD, BAD, dataset, runs=3, folder=tmp_path, holdout=64)
    assert len(trained) == 6
    assert second.records["a"][:2] == first.records["a"]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert (kept["n"], kept["differences"]["loss"]["values"]) == (3, list(second.difference("loss").values))
    assert kept == json.loads(json.dumps(second.to_dict()))


def test_the_rule_may_not_be_changed_after_looking(dataset, tmp_path):
    compare(GOOD, BAD, dataset, runs=1, folder=tmp_path, holdout=64)
    for change in ({"alpha": 0.1}, {"by": "accuracy"}, {"seed": 1}, {"holdout": 32}):
        with pytest.raises(UserError, match="was begun with other settings"):
            compare(GOOD, BAD, dataset, runs=1, folder=tmp_path, **{"holdout": 64, **change})
    with pytest.raises(UserError, match=r"b\.optimizer\.lr is 1e-05 there and 0\.05 now"):
        compare(GOOD, dataclasses.replace(GOOD, name="bad"), dataset, runs=1, folder=tmp_path, holdout=64)


def test_a_run_that_diverges_ends_the_comparison_now_and_later(dataset, trained, tmp_path):
    wild = dataclasses.replace(GOOD, optimizer=SGDConfig(lr=1e30))
    for _ in range(2):
        with pytest.raises(NonFiniteLoss, match="b with seed 0: the loss became"):
            compare(GOOD, wild, dataset, runs=3, folder=tmp_path, holdout=64)
    assert len(trained) == 2


def test_a_run_whose_last_step_spoils_the_network_has_diverged(dataset, tmp_path):
    wild = dataclasses.replace(GOOD, epochs=0.1, optimizer=SGDConfig(lr=1e30))  # one step, from fresh weights
    for _ in range(2):
        with pytest.raises(NonFiniteLoss, match=r"b with seed 0: the trained network's loss is (nan|inf): most likely"):
            compare(GOOD, wild, dataset, runs=1, folder=tmp_path, holdout=64)


@pytest.mark.parametrize(("alpha", "said"), [(0.05, "95%"), (0.001, "99.9%"), (0.00001, "99.999%")])
def test_the_level_of_the_interval_is_said_to_the_last_figure(new_record, alpha, said):
    records = [new_record(tta_loss=loss, tta_accuracy=0.5, train_seconds=1.0) for loss in (1.0, 2.0)]
    result = Compare(runs=2).result({"by": "loss", "alpha": alpha}, {"a": records, "b": records})
    assert result.tables()[0].columns[2] == f"{said} interval, valid at any n"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"runs": 0}, "runs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"by": "time"}, "by is 'time'; allowed: one of loss, accuracy"),
        ({"alpha": 1.0}, "alpha is 1"),
    ],
)
def test_what_is_no_comparison_is_refused(dataset, wrong, said):
    with pytest.raises(UserError, match=said):
        compare(GOOD, BAD, dataset, **wrong)


def test_images_without_labels_are_refused_before_anything_is_written(dataset, tmp_path):
    test = dataclasses.replace(dataset.test, labels=torch.full_like(dataset.test.labels, -1))
    unlabeled = dataclasses.replace(dataset, test=test)
    with pytest.raises(UserError, match="no test image of synthetic has a label; allowed: --holdout N"):
        compare(GOOD, BAD, unlabeled, runs=1, folder=tmp_path / "new", holdout=0)
    assert not (tmp_path / "new").exists()


def test_kept_runs_are_records_and_a_damaged_one_is_refused_by_file_and_field(dataset, tmp_path):
    good, store = Job("good", 0, GOOD), Store(tmp_path, {})
    jobs = [good, Job("wild", 0, dataclasses.replace(GOOD, optimizer=SGDConfig(lr=1e30)))]
    for _ in range(2):  # trained, then kept
        (_, record), (_, diverged) = Runner(jobs, dataset, store, "cpu")
        assert isinstance(record, RunRecord) and record.recipe == GOOD
        assert isinstance(diverged, Diverged) and "too high" in diverged.reason
    assert store.get(good) == record
    store.path(good.key).write_text(json.dumps({**record.to_json(), "steps": None}))
    with pytest.raises(UserError, match=r"good/seed-0\.json: steps is None; allowed: a whole number"):
        list(Runner(jobs, dataset, store, "cpu"))


def test_differences_and_times_are_those_of_the_pairs(new_record):
    def runs(losses, accuracies, seconds):
        rows = zip(losses, accuracies, strict=True)
        return [new_record(tta_loss=loss, tta_accuracy=accuracy, train_seconds=seconds) for loss, accuracy in rows]

    records = {"a": runs([0.5, 0.6], [0.9, 0.8], 2.0), "b": runs([0.4, 0.3], [0.8, 0.9], 3.0)}
    result = Compare(runs=2).result({"by": "loss", "alpha": 0.05}, records)
    assert result.difference("loss").values == pytest.approx((-0.1, -0.3))
    assert result.difference("accuracy").mean == pytest.approx(0)
    assert result.time_ratio == pytest.approx(1.5)


def test_progress_counts_the_runs_and_the_time_left(dataset, tmp_path):
    said = []
    compare(GOOD, BAD, dataset, runs=2, folder=tmp_path, holdout=64, on_progress=said.append)
    guess, *said = said
    assert (guess.done, guess.outcome, guess.key) == (0, None, "a/seed-0") and guess.seconds_left > 0
    assert [(each.done, each.total, each.kept) for each in said] == [(n, 4, False) for n in (1, 2, 3, 4)]
    assert said[0].seconds_left > said[2].seconds_left > said[3].seconds_left == 0
    again = []
    compare(GOOD, BAD, dataset, runs=3, folder=tmp_path, holdout=64, on_progress=again.append)
    assert [progress.kept for progress in again if progress.outcome] == [True] * 4 + [False] * 2
    assert again[0].seconds_left is None  # nothing was trained yet


def test_a_kept_run_of_another_recipe_is_refused(dataset, tmp_path):
    store = Store(tmp_path, {})
    assert len(list(Runner([Job("x", 0, GOOD)], dataset, store, "cpu"))) == 1
    with pytest.raises(UserError, match="is a run of another recipe than x is now"):
        list(Runner([Job("x", 0, BAD)], dataset, store, "cpu"))


def in_old_form(recipe):
    """A recipe of an mlp as it was kept before its sections had kinds."""
    values = dataclasses.asdict(recipe)
    network, optimizer = values.pop("network"), values.pop("optimizer")
    optim = {"name": optimizer.pop("kind"), **optimizer}
    return {**values, "network": network.pop("kind"), "mlp": network, "optim": optim}


def test_runs_that_an_older_version_kept_go_on_with_one_warning_for_each_recipe(dataset, tmp_path, trained):
    compare(GOOD, BAD, dataset, runs=2, holdout=64, folder=tmp_path)
    settings = tmp_path / "settings.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "a": in_old_form(GOOD), "b": in_old_form(BAD)}))
    for file in tmp_path.glob("*/seed-*.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "recipe": in_old_form(GOOD if file.parent.name == "a" else BAD)}))
    trained.clear()
    with pytest.warns(RenamedWarning) as said:
        compare(GOOD, BAD, dataset, runs=2, holdout=64, folder=tmp_path)
    assert trained == []
    assert [str(warning.message).split(": ")[:2] for warning in said] == [[str(settings), "a"], [str(settings), "b"]]

    file.write_text(json.dumps({**values, "recipe": in_old_form(dataclasses.replace(GOOD, epochs=1))}))
    with pytest.warns(RenamedWarning), pytest.raises(UserError, match="is a run of another recipe than"):
        compare(GOOD, BAD, dataset, runs=2, holdout=64, folder=tmp_path)


def test_recipes_of_different_data_sets_are_compared_on_one_that_is_named():
    for words in (["speedrun94", "speedrun100"], ["speedrun100", "speedrun94"]):
        with pytest.raises(
            UserError, match=r"^the recipes are made for cifar100? and cifar100?; allowed: with --dataset"
        ):
            read_options(Compare, words)
        assert read_options(Compare, [*words, "--dataset", "cifar10"]).dataset == "cifar10"
    assert read_options(Compare, ["speedrun100", "speedrun100", "--name", "mine"]).dataset == "cifar100"


def test_more_images_to_hold_out_than_there_are_are_refused_with_what_to_say():
    """Also those of an experiment's own default, 5,000, which nobody gave."""
    with pytest.raises(UserError, match=r"5,000 training images are to be held out, and there are 256; allowed: 1 to"):
        hold_out(make_synthetic(256, 64), Compare.holdout)
    assert hold_out(make_synthetic(256, 64), 255).holdout == 255
