"""Saved runs and experiments become results for the pages' tables."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.collect import _changed, main
from bench.record import describe_hardware
from bench.tables import read_results, table
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import RenamedWarning, UserError
from fastcifar.experiments.named.half import NOTEBOOK, Half
from fastcifar.recipes import change, get_recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.record import Scores
from fastcifar.training import Trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two trainings that differ in the seed alone."""
    recipe = dataclasses.replace(get_recipe("warmstart-mlp"), epochs=1, batch_size=32, network=MLPConfig(hidden=(8,)))
    trainer = Trainer(recipe, make_synthetic(64, 50), "cpu")
    folder = tmp_path_factory.mktemp("runs")
    return [trainer.run(seed).save(folder / str(seed)) for seed in (3, 4)]


def changed(runs, folder, change):
    """A copy of the second run's record, changed."""
    record = json.loads((runs[1] / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_all_runs_of_a_recipe_make_one_row(runs, tmp_path, capsys):
    saved = tmp_path / "cpu.jsonl"
    assert main(["recipes", *map(str, runs), "--save", str(saved)]) == 0
    (result,) = read_results(tmp_path)
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    mean = sum(record["tta_accuracy"] for record in records) / 2
    assert result["row"]["accuracy with TTA"] == f"{mean:.2%}"
    assert result["row"]["on"] == "synthetic, 64 images"
    assert (result["n"], result["hardware"]) == (2, describe_hardware("cpu"))
    changed, threads = "--epochs 1.0 --batch-size 32 --network.hidden 8", records[0]["device"]["threads"]
    data = f"--dataset synthetic --threads {threads}"
    assert result["command"] == f"fastcifar train --recipe warmstart-mlp {changed} {data} --seed 3 --runs 2"
    assert result["row"]["recipe"] == "`warmstart-mlp` with epochs 1.0, batch-size 32, network.hidden 8"
    assert [run["threads"] for run in result["runs"]] == [threads] * 2
    assert f"{mean:.2%}" in table([result])
    assert f"{mean:.2%}" in capsys.readouterr().out


def test_what_measured_can_be_said(runs, tmp_path):
    said = ["--hardware", "an abacus", "--commit", "abc"]
    assert main(["recipes", str(runs[0]), *said, "--save", str(tmp_path / "a.jsonl")]) == 0
    (result,) = read_results(tmp_path)
    assert (result["hardware"], result["commit"], result["n"], result["spread"]) == ("an abacus", "abc", 1, "-")


def test_runs_that_an_older_version_saved_are_results_too(tmp_path):
    folder = Path(__file__).parents[1] / "training/version-1"
    with pytest.warns(RenamedWarning):
        assert main(["recipes", str(folder), "--save", str(tmp_path / "a.jsonl")]) == 0
    (result,) = read_results(tmp_path)
    assert (result["row"]["epochs"], result["row"]["accuracy with TTA"], result["n"]) == ("2", "14.00%", 1)
    assert set(result["versions"]) == {"python", "torch", "numpy"}


def test_runs_on_another_machine_keep_its_name(runs, tmp_path):
    folder = changed(runs, tmp_path, lambda record: record["device"].update(name="an abacus"))
    assert main(["recipes", str(folder), "--save", str(tmp_path / "a.jsonl")]) == 0
    assert read_results(tmp_path)[0]["hardware"] == "an abacus"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("recipe", lambda record: record["recipe"].update(label_smoothing=0.5)),
        ("dataset", lambda record: record["dataset"].update(holdout=5)),
        ("device", lambda record: record["device"].update(threads=99)),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(runs, tmp_path, key, change):
    with pytest.raises(UserError, match=f"the runs of warmstart-mlp differ in {key}; allowed: "):
        main(["recipes", str(runs[0]), str(changed(runs, tmp_path, change))])


@pytest.mark.parametrize("seed", [3, 5])
def test_a_run_counted_twice_and_one_left_out_are_refused(runs, tmp_path, seed):
    folder = changed(runs, tmp_path, lambda record: record.update(seed=seed))
    with pytest.raises(UserError, match=rf"have seeds \[3, {seed}\]; allowed: seeds in a row, each once"):
        main(["recipes", str(runs[0]), str(folder)])


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError) as refused:
        main(["recipes", str(tmp_path)])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        main(["recipes", str(tmp_path / "nowhere")])


def test_each_way_of_starting_makes_a_row(new_record, tmp_path):
    recipe = dataclasses.replace(get_recipe("warmstart-mlp"), epochs=2.0, network=MLPConfig(hidden=(8, 4)))
    settings = {"experiment": "half", "recipe": dataclasses.asdict(recipe), "dataset": "cifar10"}
    settings |= {"train_size": 600, "subset": {"size": 600, "seed": 5, "classes": [0, 1]}, "eval_every": 0}
    settings |= {"holdout": 0, "shrink": 0.5, "resized": 16, "fold": "1/5"}
    records = {
        arm: [new_record(accuracy=0.5 + 0.1 * place + 0.01 * seed, train_split=Scores(0.99, 0.1)) for seed in (0, 1)]
        for place, arm in enumerate(NOTEBOOK)
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(Half(runs=2).result(settings, records).to_dict()))
    assert main(["warm-start", str(path), "--save", str(tmp_path / "a.jsonl")]) == 0
    results = read_results(tmp_path)
    assert [result["row"]["start"] for result in results] == list(NOTEBOOK)
    assert results[0]["row"]["test accuracy"] == "50.50%"
    assert results[1]["row"]["network"] == "mlp"
    assert all(result["n"] == 2 for result in results)
    above = [result["row"]["points above warm"] for result in results]
    assert above[:2] == ["-", "-"] and above[2:] == ["+10.00 (+10.00 to +10.00)", "+20.00 (+20.00 to +20.00)"]
    assert {result["row"]["images"] for result in results} == {"600 of cifar10"}
    command = "fastcifar warm-start half --recipe warmstart-mlp --epochs 2.0 --network.hidden 8 4"
    command += " --resize 16 --fold 1/5 --train-size 600"
    command += " --subset-seed 5 --classes 0,1 --shrink 0.5 --eval-every 0 --runs 2"
    assert {result["command"] for result in results} == {command}
    path.write_text(json.dumps({"experiment": "online"}))
    with pytest.raises(UserError, match="is of no experiment half or table"):
        main(["warm-start", str(path)])


def test_fields_in_which_a_recipe_differs_are_flags():
    recipe = get_recipe("warmstart-resnet18")
    changes = {"network": "mlp", "augment.early_crops": (), "optimizer.lr": 0.5, "batch_size": 64}
    assert list(_changed(change(recipe, changes))) == [
        "batch-size 64", "network mlp", "network.hidden 100 100", "network.norm none", "optimizer.lr 0.5"
    ]  # fmt: skip
    crops = change(recipe, {"augment.early_crops": [[20, 0.25], [24, 0.5]]})
    assert list(_changed(crops)) == ["augment.early-crops 20 0.25 24 0.5"]
