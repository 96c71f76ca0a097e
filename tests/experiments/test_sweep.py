"""`sweep`, for real on a few synthetic images."""

import json
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.cli import main
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments import Diverged, parallel
from fastcifar.experiments.named.sweep import ITSELF, Sweep
from fastcifar.experiments.runner import Runner
from fastcifar.experiments.store import Store
from fastcifar.recipes import change
from fastcifar.recipes.factors import read_values
from fastcifar.record import EpochRow
from fastcifar.training import Trainer, refusals
from tests.small import BARE, MLP

RATES, BATCHES = "optimizer.lr=0.01,0.05,0.2", "batch_size=16,32"


def sweep(dataset, folder=None, parallel=1, **options):
    return Sweep(recipe=BARE, **options).run(dataset, folder, holdout=64, device="cpu", parallel=parallel)


def texts(*vary, recipe=BARE, **options):
    return {name: arm.text for name, arm in Sweep(recipe=recipe, vary=vary, **options).arms.items()}


def test_one_field_at_a_time_or_all_combinations():
    assert texts(RATES, BATCHES) == {
        "optimizer.lr-0.01": "optimizer.lr=0.01",
        ITSELF: "optimizer.lr=0.05, batch_size=16",
        "optimizer.lr-0.2": "optimizer.lr=0.2",
        "batch_size-32": "batch_size=32",
    }
    grid = Sweep(recipe=BARE, vary=(RATES, BATCHES), grid=True)
    values = [(arm.recipe.optimizer.lr, arm.recipe.batch_size) for arm in grid.arms.values()]
    assert values == [(0.01, 16), (0.01, 32), (0.05, 16), (0.05, 32), (0.2, 16), (0.2, 32)]
    assert list(grid.arms).index(ITSELF) == 2
    assert grid.arms["batch_size-32-optimizer.lr-0.2"].text == "optimizer.lr=0.2, batch_size=32"


def test_words_lists_transforms_and_kinds_are_values_too():
    found = Sweep(recipe=MLP, vary=("network.hidden=4 8,[16]", "transforms.gaussian_blur.share=0,1", "optimizer=Adam"))
    assert [arm.text for arm in found.arms.values()] == [
        "network.hidden=[4, 8]",
        "network.hidden=[16]",
        "transforms.gaussian_blur.share=0.0",
        "transforms.gaussian_blur.share=1.0",
        "optimizer=Adam",
    ]
    assert [arm.recipe.network.hidden for arm in found.arms.values()][:2] == [(4, 8), (16,)]
    assert found.arms["optimizer-Adam"].recipe == change(MLP, {"optimizer": "Adam"})


@given(st.lists(st.lists(st.integers(0, 99) | st.sampled_from(["a,b", "x"]), max_size=3), min_size=1, max_size=4))
def test_commas_within_brackets_and_quotes_are_the_values_own(lists):
    written = [json.dumps(each) for each in lists]
    assert read_values("network.widths=" + ",".join(written)) == ("network.widths", written)
    nested = json.dumps(lists)
    assert read_values(f"augment.early-crops={nested},1") == ("augment.early_crops", [nested, "1"])


def test_arms_are_trained_in_turn_kept_and_told(dataset, trained, tmp_path):
    result = sweep(dataset, tmp_path, vary=(RATES,), runs=2)
    assert [(recipe.optimizer.lr, seed) for recipe, seed in trained] == [
        (rate, seed) for seed in (0, 1) for rate in (0.01, 0.05, 0.2)
    ]
    runs = result.outcomes["optimizer.lr-0.2"]
    scores = result.scores("optimizer.lr-0.2")
    assert scores.best == [max(row.test_accuracy for row in run.history) for run in runs]
    assert scores.last == [run.accuracy for run in runs] and scores.loss == [run.loss for run in runs]
    assert all(run.dataset.holdout == 64 and len(run.accuracies["test"]) == 3 for run in runs)
    epochs, losses = result.curve("optimizer.lr-0.2", "losses", "test")
    assert epochs == [1, 2, 3]
    assert losses == [statistics.fmean(run.losses["test"][epoch] for run in runs) for epoch in epochs]
    (table,) = result.tables()
    assert [row[:2] for row in table.rows] == [
        ("optimizer.lr=0.01", "2"),
        ("optimizer.lr=0.05 (the recipe's)", "2"),
        ("optimizer.lr=0.2", "2"),
    ]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["arms"]["optimizer.lr-0.2"]["loss"]["values"] == scores.loss
    figures = result.figures()
    assert [len(figures[name].lines) for name in ("losses", "accuracies", "seconds")] == [6, 6, 1]
    assert figures["seconds"].rows == tuple(row[0].removesuffix(" (the recipe's)") for row in table.rows)
    assert list(figures["seconds"].lines[0].x) == [statistics.fmean(result.scores(arm).seconds) for arm in kept["arms"]]

    # More values, and all combinations, are more arms of the same folder.
    assert len(sweep(dataset, tmp_path, vary=(RATES, BATCHES), runs=2).outcomes) == 4 and len(trained) == 8
    assert len(sweep(dataset, tmp_path, vary=(RATES, BATCHES), runs=1, grid=True).outcomes) == 6
    assert len(trained) == 8 + 2  # the other four were trained before
    assert len(sweep(dataset, tmp_path, vary=(BATCHES, RATES), runs=1, grid=True).outcomes) == 6
    assert len(trained) == 8 + 2


@settings(max_examples=30)
@given(st.data())
def test_a_recipe_has_one_name_in_whatever_sweep(data):
    words = {
        "optimizer": st.sampled_from(["sgd", "AdamW", "Adam"]),
        "optimizer.lr": st.sampled_from(["0.05", "5e-2", "0.001", "0.2"]),
        "batch_size": st.sampled_from(["16", "32"]),
        "network.hidden": st.sampled_from(["[8]", "4 8"]),
    }
    values = {name: set(data.draw(st.lists(each, min_size=1, max_size=2))) for name, each in words.items()}
    values["optimizer.lr"] -= {"5e-2"} if "0.05" in values["optimizer.lr"] else set()
    vary = [f"{name}={','.join(each)}" for name, each in values.items()]
    shuffled, one = data.draw(st.permutations(vary)), data.draw(st.sampled_from(vary))
    grid = Sweep(recipe=BARE, vary=tuple(vary), grid=True).trained_recipes()
    assert grid == Sweep(recipe=BARE, vary=tuple(shuffled), grid=True).trained_recipes()
    names = {recipe: name for name, recipe in grid.items()}
    assert len(names) == len(grid)
    single = Sweep(recipe=BARE, vary=(one,)).trained_recipes()
    assert all(names.get(recipe, name) == name for name, recipe in single.items())


def test_recipes_are_one_arm_where_they_are_equal_and_have_two_names_where_not():
    assert texts("optimizer=AdamW", "optimizer.kind=AdamW") == {
        "optimizer-AdamW": "optimizer=AdamW, optimizer.kind=AdamW"
    }
    assert list(texts("optimizer.kind=AdamW")) == ["optimizer-AdamW"]
    arms = Sweep(recipe=BARE, vary=('optimizer.layers=["a:lr=2"],["a*:lr=2"],["A:lr=2"]',)).arms
    assert [arm.recipe.optimizer.layers for arm in arms.values()] == [("a:lr=2",), ("a*:lr=2",), ("A:lr=2",)]
    assert len({name.casefold() for name in arms}) == 3
    options = Sweep(
        recipe=change(BARE, {"schedule.name": "ReduceLROnPlateau"}),
        vary=('schedule.options=["patience=1", "factor=0.3"],["patience=2"]',),
    )
    found = [arm.recipe.schedule.options for arm in options.arms.values()]
    assert found == [("patience=1", "factor=0.3"), ("patience=2",)]


def test_more_recipes_than_lines_can_be_told_apart_have_no_curves(new_record):
    for count, names in ((40, ["losses", "accuracies", "seconds"]), (41, ["seconds"])):
        experiment = Sweep(recipe=BARE, vary=(f"batch_size={','.join(map(str, range(1, count + 1)))}",))
        record = new_record(accuracy=0.7, loss=1.5, history=(EpochRow(1, 1.0, 0.5, 0.7, 30.0),))
        outcomes = {name: [record] for name in experiment.arms}
        result = experiment.result({"dataset": "cifar10", "parallel": 3}, outcomes)
        figures = result.figures()
        assert list(figures) == names
        assert len([line for line in result.remarks() if "41 choices of values, and 40" in line]) == (count > 40)
        assert figures["seconds"].xlabel == "training (s), evaluations left out, 3 at once"
        assert result.tables()[0].columns[-1] == "training, 3 at once"


def test_results_say_how_many_were_trained_at_once_and_the_side_of_the_images(dataset, monkeypatch, tmp_path):
    vary = {"vary": ("batch_size=16,32",)}
    assert sweep(dataset, **vary).to_dict()["parallel"] == 1
    result = Sweep(recipe=BARE, **vary).run(dataset.resize(10), tmp_path / "runs", holdout=64, device="cpu")
    assert "images brought to 10 pixels" in (tmp_path / "runs" / "table.md").read_text().splitlines()[0]
    assert result.settings["parallel"] == 1 and not (tmp_path / "runs" / "parallel.json").exists()
    monkeypatch.setattr(parallel, "runner_for", lambda _, *args, **how: Runner(*args, **how))
    folder, more = tmp_path / "again", ("batch_size=8,16,32",)
    first = sweep(dataset, folder, **vary)
    kept = sweep(dataset, folder, **vary, parallel=4)  # of which nothing is left to train
    three = sweep(dataset, tmp_path / "three", vary=more, parallel=8)
    again = sweep(dataset, tmp_path / "three", vary=more, runs=2)
    assert [each.settings["parallel"] for each in (first, kept, three, again)] == [1, 1, 3, 3]
    assert json.loads((tmp_path / "three" / "results.json").read_text())["parallel"] == 3
    store = Store(folder, json.loads((folder / "settings.json").read_text()))
    (folder / "parallel.json").write_text('{"parallel": "x"}')
    with pytest.raises(UserError, match=r"parallel in .*parallel.json is 'x'; allowed: a whole number"):
        store.at_once(1)


def test_networks_are_checked_one_at_a_time(dataset, monkeypatch):
    kept = []
    refuse = refusals.refuse_untrainable

    def counting(recipe, dataset, networks):
        refuse(recipe, dataset, networks)
        kept.append((recipe.network.hidden, len(networks)))

    monkeypatch.setattr(refusals, "refuse_untrainable", counting)
    Sweep(recipe=BARE, vary=("batch_size=16,32", "network.hidden=[8],[4],[5]"), grid=True).jobs(dataset)
    assert [hidden for hidden, _ in kept] == [(4,), (4,), (5,), (5,), (8,), (8,)]
    assert max(count for _, count in kept) == 2  # while it is built beside the last


def test_what_diverges_is_a_result(dataset, monkeypatch, tmp_path):
    run = Trainer.run

    def diverging(trainer, seed, *args, **kwargs):
        if trainer.recipe.optimizer.lr > 0.05 and (seed or trainer.recipe.optimizer.lr > 1):
            raise NonFiniteLoss("the loss became nan")
        return run(trainer, seed, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", diverging)
    result = sweep(dataset, tmp_path, vary=("optimizer.lr=0.05,0.2,2",), runs=2)
    assert result.n == 2 and isinstance(result.outcomes["optimizer.lr-2.0"][0], Diverged)
    assert [row[1] for row in result.tables()[0].rows] == ["2", "1, 1 diverged", "0, 2 diverged"]
    assert result.tables()[0].rows[2][2:] == ("-",) * 4
    said = "optimizer.lr=2.0: 2 of 2 diverged, in no other number (the loss became nan)"
    assert said in result.remarks() and said in (tmp_path / "table.md").read_text()
    assert len(result.figures()["losses"].lines) == 4 and len(result.figures()["seconds"].rows) == 2
    alone = sweep(dataset, vary=("optimizer.lr=2",))
    assert not alone.figures() and len(alone.remarks()) == 1 and alone.to_dict()["diverged"] == 1


@pytest.mark.parametrize(("vary", "said"), [
    (["optimizer.lrr=1"], "vary optimizer.lrr=1: unknown field optimizer.lrr; did you mean 'lr'"),
    (["optimizer.lr=1,much"], "vary optimizer.lr=much: optimizer.lr is 'much'; allowed: a number"),
    (["optimizer.lr=1,1.0"], "vary has 'optimizer.lr=1.0' twice; allowed: each value once"),
    (["optimizer.lr=1", "optimizer.lr=2"], "vary has optimizer.lr twice; allowed: each field once"),
    (["name=a"], "vary 'name=a' changes no training; allowed: any other field"),
    (["optimizer.lr=1,,2"], "vary 'optimizer.lr=1,,2' is no field with values; allowed: FIELD=VALUE,VALUE"),
    (["optimizer.lr"], "vary 'optimizer.lr' is no field with values"),
    ([f"batch_size={','.join(map(str, range(1, 1002)))}"], "vary asks for 1,001 recipes; allowed: up to 1,000"),
])  # fmt: skip
def test_bad_values_are_refused_before_any_work(vary, said):
    with pytest.raises(UserError, match=f"^{said}"):
        Sweep(recipe=BARE, vary=tuple(vary))


def test_what_cannot_be_trained_on_the_images_is_refused_first(dataset, trained):
    with pytest.raises(UserError, match="vary batch_size=1000: batch_size is 1000; allowed: up to the 96 training"):
        sweep(dataset, vary=("batch_size=16,1000",))
    with pytest.raises(UserError, match="vary names no field; allowed: FIELD=VALUE,VALUE"):
        sweep(dataset)
    assert not trained


def test_as_it_is_typed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = "sweep --dataset synthetic --network mlp --network.hidden 8 --train-size 128 --holdout 64 --epochs 1"
    words += " --quiet --batch-size 32 --threads 1 --out runs"
    assert main([*words.split(), "--vary", "optimizer.lr=0.01,0.1", "--vary=batch_size=16,32", "--grid"]) == 0
    assert "optimizer.lr=0.1, batch_size=32" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "runs" / "results.json").read_text())["arms"]) == 4
    assert all((tmp_path / "runs" / f"{name}.png").is_file() for name in ("losses", "accuracies", "seconds"))
    assert main([*words.split(), "--vary", "optimizer.lrr=0.01"]) == 2
    said = "fastcifar: --vary optimizer.lrr=0.01: unknown field optimizer.lrr; did you mean 'lr'?\n"
    assert capsys.readouterr().err == said


def test_layers_whose_freezing_leaves_nothing_to_train_are_refused_before_the_first_training(trained, tmp_path, capsys):
    words = ["--recipe", "extract-adam", "--network.width", "4", "--network.stem", "cifar", "--dataset", "synthetic"]
    out = tmp_path / "out"
    assert main(["sweep", *words, "--vary", "freeze=none,999", "--device", "cpu", "--out", str(out)]) == 2
    assert "vary freeze=999: freeze is 999, which leaves nothing to train; allowed: up to 40" in capsys.readouterr().err
    assert not trained and not out.exists()


def test_all_have_images_of_one_side_which_is_said_and_a_batch_that_is_not_full(capsys, tmp_path):
    words = "sweep --dataset synthetic --network alexnet --network.widths 4 4 8 8 4 --network.hidden 8 8 --epochs 1"
    words += " --train-size 32 --holdout 16 --drop-last false --threads 1"
    folder = tmp_path / "runs"
    given = [*words.split(), "--vary", "batch_size=16,5000", "--out", str(folder)]
    assert main(given) == 0
    record = json.loads((folder / "batch_size-5000" / "seed-0.json").read_text())
    assert record["recipe"]["batch_size"] == 5000 and record["steps"] == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert "32 training and 16 held-out images brought to 70 pixels, n=1" in first
    assert "images brought to 70 pixels" in (folder / "table.md").read_text().splitlines()[0]
    assert main([*given, "--drop-last", "true"]) == 2
    assert "--train-size is 32; allowed: batch_size, 5000, or more images" in capsys.readouterr().err


def test_a_notice_is_shown_once_a_command(capsys, tmp_path):
    words = "sweep --dataset synthetic --network mlp --network.hidden 8 --train-size 32 --epochs 1 --threads 1 --quiet"
    words += " --holdout 0 --schedule.name ReduceLROnPlateau --vary batch_size=16,32 --runs 2"
    assert main([*words.split(), "--out", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().err.count("lowers the rate by the loss on the test images") == 1
