"""`fastcifar flops`, `compare` and `ablate` as they are typed."""

import json
import re
from pathlib import Path

import pytest

import fastcifar.data
from fastcifar.cli import main
from fastcifar.cli.experiment import read_options
from fastcifar.costs.flops import count_recipe
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import OutOfMemory
from fastcifar.experiments.named.verify import Verify
from fastcifar.recipes import Recipe, get_recipe, to_toml

SMALL = ["--network", "mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32", "--ema.decay", "0"]
COMPARE = ["compare", "davidnet", "davidnet", "--dataset", "synthetic", "--holdout", "64", *SMALL]
COMPARE += ["--optimizer.lr", "0.05", "--optimizer.bias-lr-factor", "1"]
ABLATE = ["ablate", "--dataset", "synthetic", "--holdout", "64", *SMALL]

REFUSED = {
    "flops --recipe davidnot": "unknown recipe 'davidnot'; did you mean 'davidnet'?",
    "flops --tflops 0": "--tflops is '0.0'; allowed: numbers above 0",
    "flops --bandwidth -1": "--bandwidth is '-1.0'; allowed: numbers above 0",
    "flops --tflops 1 2 3 --bandwidth 1 2": "--bandwidth has 2 numbers and --tflops 3; allowed: one, or as many",
    "flops --tflops fast": "--tflops is 'fast'; allowed: numbers",
    "flops --train-images 0": "--train-images is 0; allowed: 1 or more",
    "flops --lr 1": "unknown flag --lr; did you mean '--optimizer.lr'?",
    "compare": "compare needs 2 recipes",
    "compare davidnet": "compare needs 2 recipes",
    "compare davidnet warmstart": "unknown recipe 'warmstart'",
    "compare davidnet davidnet --a-set lr=1": "--a-set: unknown field lr",
    "compare davidnet davidnet --b-set optimizer.lr": "'optimizer.lr' sets no field; allowed: FIELD=VALUE",
    "compare davidnet davidnet --runs 0": "--runs is 0; allowed: 1 to 100,000",
    "compare davidnet davidnet --alpha 1": "--alpha is 1; allowed: above 0, below 1",
    "compare davidnet davidnet --by time": "--by is 'time'; allowed: one of loss, accuracy",
    "compare davidnet davidnet --holdout -1": "--holdout is -1; allowed: 0 or more images",
    "compare davidnet davidnet --train-size 511": "--train-size is 511; allowed: batch_size, 512, or more images",
    "compare davidnet davidnet --seed -1": "--seed is -1; allowed: 0 or more",
    "compare davidnet davidnet --threads 0": "--threads is 0; allowed: 1 to 1,024",
    "ablate --only whitning": "davidnet has no trick 'whitning'; did you mean 'whitening'?",
    "ablate --recipe warmstart-mlp": "warmstart-mlp uses no trick that can be switched off; allowed: a recipe",
    "ablate --runs 0": "--runs is 0; allowed: 1 to 100,000",
    "ablate --network.widths 8": "network.widths is [8]; allowed: 4 whole numbers",
    "compare davidnet davidnet --by loss davidnet": "compare needs 2 recipes",
    "compare davidnet davidnet --holdout some": "--holdout is 'some'; allowed: a whole number or third",
    "compare davidnet warmstart-mlp --network.widths 1 2 3 4": "--network.widths is a field of a, not of",
    "verify --runs 2": "--runs is 2; allowed: 1, as this checks and does not measure",
    "verify --only whitning": "davidnet has no trick 'whitning'; did you mean 'whitening'?",
    "compare davidnet davidnet --dataset imagenet": "unknown data set 'imagenet'; allowed: cifar10, cifar100, svhn, ",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The synthetic set is smaller here than it is for users."""

    monkeypatch.setattr(fastcifar.data, "load_dataset", lambda *_: make_synthetic(train_size=256, test_size=64))


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input_is_refused_in_one_line(line, capsys):
    assert main(line.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"fastcifar: {REFUSED[line]}")


def test_help_and_refusals_do_not_import_torch(without_torch):
    without_torch(*REFUSED, "flops --help", "compare --help", "ablate --help")


def test_flops_as_json_are_the_librarys(capsys):
    words = ["flops", "--epochs", "2", "--tflops", "790", "0.4", "--bandwidth", "4300", "20", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    count = count_recipe(Recipe(epochs=2))
    assert said["training_flop"] == count.training_flop
    assert [floor["seconds"] for floor in said["floors"]] == [
        count.floor(790, 4300)["seconds"],
        count.floor(0.4, 20)["seconds"],
    ]


def test_flops_show_layers_stages_and_the_least_time(capsys):
    words = ["flops", "--network", "speedrun", "--optimizer", "muon", "--epochs", "8"]
    words += ["--augment.early-crops", "24", "0.5"]
    assert main([*words, "--tflops", "790", "312", "--ema.decay", "0", "--average.epochs", "1"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "davidnet-speedrun-muon: 8 epochs, 776 steps of 512 images, float16"
    (row,) = [line.split() for line in lines if line.startswith("blocks.1.convs.1 ")]
    assert row[1:] == ["256x7x7", "256x7x7", "589,824", "28.901", "28.901", "28.901"]
    (stage,) = [line.split() for line in lines if line.startswith("24 x 24 pixels, 1 frozen")]
    assert stage[6] == "97"
    assert sum(line.startswith("optimizer muon") for line in lines) == 1
    assert sum(line.startswith("statistics of the average") for line in lines) == 1
    assert [line.split(" s at least")[0] for line in lines[-2:]] == [
        re.match(r"at 790 TFLOP/s and 4300 GB/s  [\d.]+", lines[-2]).group(),
        re.match(r"at 312 TFLOP/s and 4300 GB/s  [\d.]+", lines[-1]).group(),
    ]


def test_a_clear_comparison_ends_early_with_a_verdict(capsys, tmp_path):
    assert main([*COMPARE, "--b-set", "optimizer.lr=1e-6", "--runs", "9", "--out", "kept"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "compare: davidnet-mlp and davidnet-mlp on synthetic: 192 training and 64 held-out images, n=9; kept in kept"
    )
    runs = [line for line in lines if line.startswith("[")]
    assert re.fullmatch(r"\[0/18\] going by the first steps; at most about \d+ s left", runs[0])
    assert runs[1].startswith("[1/18] a/seed-0 ") and "; at most about " in runs[1]
    assert len(runs) == 11
    assert lines[-1].startswith("A better, after 5 runs of each (loss of B less A +")
    assert json.loads((tmp_path / "kept/results.json").read_text())["better"] == "a"


def test_the_same_command_goes_on_and_other_settings_are_refused(capsys):
    words = [*COMPARE, "--b-set", "optimizer.lr=0.5"]
    assert main([*words, "--runs", "1"]) == 0
    capsys.readouterr()
    assert main([*words, "--runs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2
    assert main([*COMPARE, "--b-set", "optimizer.lr=0.6"]) == 2
    folder = "runs/compare-davidnet-mlp-davidnet-mlp"
    assert f"{folder} was begun with other settings: b.optimizer.lr" in capsys.readouterr().err


def test_recipes_are_read_from_files_and_quick_makes_them_smaller(capsys, tmp_path):
    (tmp_path / "mine.toml").write_text(to_toml(get_recipe("warmstart-mlp")).replace('"warmstart-mlp"', '"mine"'))
    words = ["compare", "mine.toml", "mine.toml", "--dataset", "synthetic", "--holdout", "64", "--quick"]
    assert main([*words, "--runs", "1", "--b-set", "optimizer.lr=0.01"]) == 0
    out = capsys.readouterr().out
    assert "compare: mine and mine on" in out and "kept in runs/compare-mine-mine-quick" in out
    assert out.splitlines()[-1].startswith("no difference seen in 1 run of each")


def test_an_interrupted_comparison_says_what_is_kept(capsys, monkeypatch):
    import fastcifar.training

    run, done = fastcifar.training.Trainer.run, []

    def interrupted(*args, **kwargs):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return run(*args, **kwargs)

    monkeypatch.setattr(fastcifar.training.Trainer, "run", interrupted)
    assert main([*COMPARE, "--out", "kept"]) == 130
    assert capsys.readouterr().err == (
        "fastcifar: interrupted; 3 finished runs are kept in kept; the same command goes on\n"
    )


def test_a_comparison_that_diverged_does_not_say_that_it_goes_on(capsys):
    assert main([*COMPARE, "--a-set", "optimizer.lr=1e30", "--out", "kept"]) == 3
    (said,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fastcifar: a with seed 0: .* too high; allowed: .*; 1 finished run is kept in kept", said)


def test_an_ablation_shows_its_arms_and_keeps_data_and_table(capsys, tmp_path):
    assert main([*ABLATE, "--only", "crop", "tta", "--runs", "2", "--out", "kept"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ablate: davidnet-mlp on synthetic: 192 training and 64 held-out images, n=2; kept in kept")
    assert [line.split()[1] for line in out.splitlines() if re.match(r"\[[1-9]", line)] == [
        *("full/seed-0", "crop/seed-0", "full/seed-1", "crop/seed-1")
    ]
    assert "no crop" in out and "no tta" in out
    rows = json.loads((tmp_path / "kept/results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["full", "no-crop", "no-tta"]
    assert main([*ABLATE, "--only", "crop", "tta", "--runs", "2", "--out", "kept", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == rows


VERIFY = [
    "verify",
    "--dataset",
    "synthetic",
    "--recipe",
    "speedrun94",
    "--network",
    "mlp",
    "--optimizer",
    "sgd",
    "--quick",
]
VERIFY += ["--augment.early-crops", "[]", "--average.epochs", "0"]


def test_verified_tricks_are_a_table_and_status_0(capsys, tmp_path):
    assert main(VERIFY) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.split()[-1:] == ["ok"]]
    assert [row[0] for row in rows] == [
        *("label-smoothing", "crop", "flip", "alternating-flip", "jitter"),
        *("weight-decay", "bias-rate", "selection", "tta"),
    ]
    assert out.splitlines()[-1] == "9 tricks, none without effect"
    assert list(tmp_path.iterdir()) == []
    assert main([*VERIFY, "--json", "--only", "crop"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["trick"] == "crop" and row["off"] == {"augment.crop": 0} and row["seen"] and row["change"] > row["noise"]


def test_a_trick_without_effect_is_named_and_the_status_1(capsys, monkeypatch):
    monkeypatch.setattr("fastcifar.experiments.named.verify._largest_change", lambda full, other: 0.0)
    assert main([*VERIFY, "--only", "crop", "tta", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert re.search("crop .* NO EFFECT *\n", out) and re.search("tta .* ok", out)
    assert out.splitlines()[-1] == "2 tricks, without effect: crop"


def test_a_recipe_without_tricks_is_refused(capsys):
    said = "uses no trick that can be switched off; allowed: a recipe that does"
    for command in ("verify", "ablate"):
        assert main([command, "--dataset", "synthetic", "--recipe", "warmstart-mlp", "--quick", "--quiet"]) == 2
        assert capsys.readouterr().err == f"fastcifar: warmstart-mlp {said}\n"


def test_a_quick_verification_keeps_the_epochs_and_unless_given_the_small_batch():
    for line, expected in (
        ("--quick --recipe speedrun96", (24, 16)),
        ("--quick --epochs 2 --batch-size 64", (2, 64)),
    ):
        recipe = read_options(Verify, line.split()).experiment.recipe
        assert (recipe.epochs, recipe.batch_size) == expected


def test_what_an_error_says_is_kept_are_the_runs_that_are(capsys, monkeypatch):
    import fastcifar.training

    def fails(*args, **kwargs):
        raise OutOfMemory("out of memory on cpu")

    monkeypatch.setattr(fastcifar.training.Trainer, "run", fails)
    assert main([*COMPARE, "--out", "kept"]) == 5
    assert capsys.readouterr().err == "fastcifar: a with seed 0: out of memory on cpu\n"
    assert not list(Path("kept").rglob("seed-*"))
