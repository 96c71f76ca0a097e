"""`fastcifar warm-start`: what is refused before torch is imported, and the experiments on a few synthetic images."""

import json
import re
import subprocess
import sys

import pytest

import fastcifar.data
from fastcifar.cli import main
from fastcifar.cli.experiment import read_options
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss
from fastcifar.experiments import EXPERIMENTS
from fastcifar.recipes import NETWORKS, OPTIMIZERS
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.training import Trainer

TINY = "--dataset synthetic --device cpu --recipe warmstart-mlp --network.hidden 8 --batch-size 32 --epochs 1"
REFUSALS = {
    "": None,
    "--help": None,
    "half --help": None,
    "table --quick --help": None,
    "online --recipe davidnet --help": None,
    "hlf": (
        "unknown command 'warm-start hlf'; did you mean 'warm-start half'?; allowed: "
        "warm-start half, warm-start methods, warm-start online, warm-start table"
    ),
    "half --runs 0": "--runs is 0; allowed: 1 to 100,000",
    "half --seed -1": "--seed is -1; allowed: 0 or more",
    "half --seed 999999999 --runs 2": "--seed is 999999999; allowed: 0 up to 10**9 - 1, the last of the runs included",
    "half --subset-seed -1": "--subset-seed is -1; allowed: 0 to 4,294,967,295",
    "half --threads 0": "--threads is 0; allowed: 1 to 1,024",
    "half --shrink 2": "--shrink is 2; allowed: 0 to 1",
    "half --perturb -1": "--perturb is -1; allowed: 0 or more",
    "half --fraction 1": "--fraction is 1; allowed: above 0, below 1",
    "half --train-size 1": "--train-size is 1; allowed: batch_size, 128, or more images",
    "half --until-train-accuracy 99": "--until-train-accuracy is 99; allowed: above 0, up to 1",
    "half --eval-every -1": "--eval-every is -1; allowed: 0 or more epochs",
    "half --round-size 5": "unknown flag --round-size; did you mean '--train-size'?",
    "half new": "unexpected argument 'new'; 'fastcifar warm-start half --help-all' lists what is allowed",
    "half --optimizer.lr 0": "optimizer.lr is 0.0; allowed: above 0",
    "half --split paper": "unknown flag --split: it was removed; allowed: --holdout third",
    "table --networks resnet": (
        f"--networks resnet, optimizers sgd: network.kind is 'resnet'; did you mean 'resnet18'?; allowed: "
        f"{', '.join(NETWORKS)}, or what a plug-in adds (--plugin)"
    ),
    "table --optimizers adam": (
        f"--networks resnet18, optimizers adam: optimizer.kind is 'adam'; did you mean 'Adam'?; allowed: "
        f"{', '.join(OPTIMIZERS)}, or what a plug-in adds (--plugin)"
    ),
    "table --optimizers sgd=x": "--optimizers has 'sgd=x'; allowed: a name, or a name and a rate, as in Adam=0.001",
    "table --optimizers sgd=0": "--networks resnet18, optimizers sgd: optimizer.lr is 0.0; allowed: above 0",
    "table --optimizers sgd sgd=1": "--optimizers are sgd sgd=1; allowed: one or more, all different",
    "table --optimizers sgd muon": (
        "--networks mlp, optimizers muon: network.kind is mlp; allowed: with the optimizer muon one with convolutions"
    ),
    "table --networks": "--networks has no value; allowed: words",
    "table --networks mlp mlp": "--networks are mlp mlp; allowed: one or more, all different",
    "online --round-size 100": "--round-size is 100; allowed: batch_size, 128, or more images",
}
"""Arguments, and the line that refuses them; None where they are granted."""


@pytest.fixture(autouse=True)
def few_images_in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastcifar.data, "load_dataset", lambda *args: make_synthetic(train_size=192, test_size=40))


def run(capsys, *words):
    """The status of `fastcifar warm-start`, and the lines on both its outputs."""
    status = main(["warm-start", *" ".join(words).split()])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.mark.parametrize(("args", "message"), [item for item in REFUSALS.items() if item[1]])
def test_a_bad_argument_is_refused_in_one_line_that_names_it_and_what_is_allowed(capsys, args, message):
    assert run(capsys, args) == (2, [], f"fastcifar: {message}\n")


def test_help_and_refusals_do_not_import_torch():
    code = (
        "import sys\n"
        "from fastcifar.cli import main\n"
        f"for args, message in {REFUSALS!r}.items():\n"
        "    assert main(['warm-start', *args.split()]) == (2 if message else 0), args\n"
        "    assert 'torch' not in sys.modules, args\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_half_says_each_run_with_the_time_left_and_ends_with_tables_and_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    status, lines, _ = run(capsys, "half", TINY, "--runs 2 --out new")
    assert status == 0
    assert lines[0] == (
        "warm-start-half: warmstart-mlp on synthetic: 192 training and 40 test images, n=2; kept in new"
    )
    assert re.fullmatch(
        r"\[1/8\] half/seed-0 +loss .*  accuracy .*%  train .*%  1 epoch  \d+\.\d s; about \d+ s left", lines[1]
    )
    assert re.fullmatch(r"\[8/8\] shrink-perturb/seed-1 +loss .*  \d+\.\d s; shrink-perturb mean .*, n=2", lines[8])
    assert any(re.match(r" *cold - warm +[+-]\d", line) for line in lines)
    assert "figures, results.json, table.md, runs.json are in new" in lines
    assert any(line.startswith("cold - warm: ") for line in lines[-2:])
    assert (tmp_path / "new/test.pdf").is_file()
    results = json.loads((tmp_path / "new/results.json").read_text())
    assert (results["experiment"], results["seeds"]) == ("half", [0, 1])
    assert results["recipe"]["network"]["hidden"] == [8]


def test_the_notebooks_files_come_from_the_kept_runs_on_request(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert run(capsys, "half", TINY, "--quiet --out new")[0] == 0
    assert not list((tmp_path / "new").glob("*.pt"))
    status, lines, _ = run(capsys, "half", TINY, "--notebook-names --out new")
    assert (status, sum(line.split(";")[0].endswith("  kept") for line in lines)) == (0, 4)
    assert lines[-1] == "half_cifar.pt, warm_start_full.pt, random_full.pt, runs.json and fig1_*.pdf are of seed 0"
    names = {path.name for path in (tmp_path / "new").glob("*.pt")}
    assert names == {"half_cifar.pt", "warm_start_full.pt", "random_full.pt"}


def test_the_same_command_again_goes_on_and_another_in_its_folder_is_refused(capsys, tmp_path):
    assert run(capsys, "half", TINY, "--quiet")[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "warm-start-half-warmstart-mlp"
    (folder / "cold/seed-0.json").unlink()
    _, lines, _ = run(capsys, "half", TINY)
    assert [line.split(";")[0].endswith("kept") for line in lines if "/seed-0 " in line] == [*(True, True, False, True)]
    status, lines, err = run(capsys, "half", TINY, "--optimizer.lr 0.5")
    assert (status, lines[1:]) == (2, [])
    assert err == (
        "fastcifar: runs/warm-start-half-warmstart-mlp was begun with other settings: recipe.optimizer.lr is 0.001 "
        "there and 0.5 now; allowed: the same settings, or another folder\n"
    )


def test_an_interruption_says_what_is_kept(capsys, monkeypatch):
    train, done = Trainer.run, []

    def interrupted(*args, **kwargs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return train(*args, **kwargs)

    monkeypatch.setattr(Trainer, "run", interrupted)
    status, _, err = run(capsys, "half", TINY, "--out new")
    assert (status, err) == (
        130,
        "fastcifar: interrupted; 2 finished runs are kept in new; the same command goes on\n",
    )


def test_a_loss_that_becomes_nan_ends_the_experiment_with_its_status(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise NonFiniteLoss("the loss became nan")

    monkeypatch.setattr(Trainer, "run", fail)
    status, _, err = run(capsys, "half", TINY, "--out new")
    assert (status, err) == (
        3,
        "fastcifar: a run of every seed diverged; half: the loss became nan; 4 finished runs are kept in new\n",
    )


def test_table_takes_the_papers_split_and_shows_its_accuracies(capsys, tmp_path):
    status, lines, _ = run(capsys, "table", TINY, "--networks mlp --optimizers sgd=0.02 --out new --quick")
    assert status == 0
    assert "quick: too few images and epochs to say anything about the question" in lines
    assert json.loads((tmp_path / "new/settings.json").read_text())["optimizers"] == {"sgd": 0.02}
    assert lines[0].startswith("warm-start-table: warmstart-mlp on synthetic: 128 training and 64 held-out images, n=1")
    assert "| mlp sgd |" in (tmp_path / "new/table.md").read_text()
    assert json.loads((tmp_path / "new/runs.json").read_text()).keys() == {"mlp-sgd-synthetic"}


def test_online_adds_images_by_rounds(capsys, tmp_path):
    status, lines, _ = run(capsys, "online", TINY, "--round-size 64 --train-size 128 --out new --quiet")
    assert status == 0
    assert lines[-1] == "a round ends at 99% running training accuracy, or after 1 epochs"
    assert json.loads((tmp_path / "new/runs.json").read_text())["random"]["n_samples_online"] == [0, 64, 128]


def test_without_matplotlib_the_rest_is_written_all_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, lines, _ = run(capsys, "half", TINY, "--out new")
    assert status == 0
    said = "results.json, table.md, runs.json are in new; no figures: figures need matplotlib"
    assert any(line.startswith(said) for line in lines)
    assert (tmp_path / "new/results.json").is_file()
    status, lines, err = run(capsys, "half", TINY, "--out new --json")
    assert status == 0 and json.loads("\n".join(lines)) and said in err


def options(experiment, line):
    """What the words of `line` make of an experiment's command."""
    return read_options(EXPERIMENTS[experiment], line.split())


@pytest.mark.parametrize("experiment", ["half", "table", "online"])
def test_quick_takes_a_small_share_of_the_work_unless_told_otherwise(experiment):
    asked = options(experiment, "--quick --epochs 2")
    assert (asked.experiment.recipe.name, asked.experiment.recipe.epochs) == ("warmstart-narrow", 2)
    assert asked.train_size <= 2000 and options(experiment, "--quick --train-size 300").train_size == 300
    assert asked.holdout == ("third" if experiment == "table" else 0)
    assert asked.experiment.until_train_accuracy == (None if experiment == "half" else 0.99)


def test_online_trains_with_adam_where_no_recipe_is_given():
    asked = [
        options(experiment, words).experiment.recipe.optimizer
        for experiment, words in (
            ("online", ""),
            ("online", "--recipe warmstart-resnet18"),
            ("half", ""),
            ("online", "--optimizer.lr 0.1"),
        )
    ]
    assert [optimizer.kind for optimizer in asked] == ["Adam", "sgd", "sgd", "Adam"]
    assert [optimizer.lr for optimizer in asked] == [0.001, 0.001, 0.001, 0.1]


def test_the_networks_of_a_table_are_those_of_the_named_recipes_and_narrow_in_a_quick_one():
    asked = []
    for words in ("", "--quick", "--quick --recipe warmstart-resnet18"):
        cells = options("table", words).experiment.cells
        asked.append([recipe.network for (_, optimizer), recipe in cells.items() if optimizer == "Adam"])
    wide, narrow = (ResNet18Config(width=width, stem="imagenet") for width in (64, 16))
    assert asked == [[wide, MLPConfig()], [narrow, MLPConfig()], [narrow, MLPConfig()]]


def test_a_quick_experiment_of_another_network_is_as_short():
    recipe = options("half", "--quick --network resnet18").experiment.recipe
    assert (recipe.epochs, recipe.network) == (6, ResNet18Config(width=16))
