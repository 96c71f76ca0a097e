"""`fastcifar train`, for real on a few synthetic images."""

import json
import re
import signal
import subprocess
import sys

import pytest

from fastcifar.cli import main
from fastcifar.errors import NonFiniteLoss
from fastcifar.report import summarize
from fastcifar.training import Trainer

pytestmark = pytest.mark.usefixtures("few_images")

SHORT = ["train", "--dataset", "synthetic", "--batch-size", "64", "--epochs", "2"]
TRAIN = [*SHORT, "--network.widths", "8", "8", "8", "8"]
LAST_LINE = r"davidnet  \d+\.\d\d% \(tta \d+\.\d\d%\)  train \d+\.\d s  time \d+\.\d s  process \d+\.\d s"


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_run_shows_its_epochs_and_stopwatches_and_is_saved(capsys, tmp_path):
    assert main([*TRAIN, "--out", "run", "--seed", "3"]) == 0
    lines = lines_of(capsys)
    assert lines[0] == "davidnet on synthetic data, not CIFAR-10: 256 training, 64 test images"
    assert re.fullmatch(r"2 epochs of 4 steps of 64 images on .*, seed 3", lines[1])
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["epoch"])
    rows = [line.split() for line in lines[head + 1 : head + 3]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert [line.split()[0] for line in lines[head + 4 : head + 7]] == ["train", "time", "process"]
    assert lines[-2].endswith("n=1, no interval; saved in run")
    assert re.fullmatch(LAST_LINE + "  synthetic", lines[-1])

    saved = {path.name for path in (tmp_path / "run").iterdir()}
    assert saved == {"run.json", "log.tsv", "predictions.npz", "model.safetensors"}
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["seed"] == 3
    assert record["recipe"]["network"]["widths"] == [8, 8, 8, 8]
    assert f"davidnet  {record['accuracy']:.2%} (tta {record['tta_accuracy']:.2%})" in lines[-1]
    assert float(rows[1][4]) == pytest.approx(record["train_seconds"], abs=0.06)


def test_on_a_cpu_the_first_steps_say_how_long_it_will_take(capsys):
    assert main([*TRAIN, "--device", "cpu"]) == 0
    lines = lines_of(capsys)
    assert re.fullmatch(r"about \d+ s of training, going by its first steps", lines[3])
    assert lines[4].split()[0] == "epoch"


def test_a_profile_is_a_table_that_sums_to_the_process_and_a_trace(capsys, tmp_path):
    assert main([*TRAIN, "--device", "cpu", "--profile", "--out", "run"]) == 0
    lines = lines_of(capsys)
    record = json.loads((tmp_path / "run/run.json").read_text())
    phases = record["phases"]
    assert {"start of Python", "imports", "data", "model and optimizer", "training: steps", "evaluation"} <= set(phases)
    assert sum(phases.values()) == pytest.approx(record["process_seconds"])
    assert phases["training: steps"] + phases["training: whitening"] <= record["train_seconds"] * 1.01 + 0.01
    assert record["first_step_seconds"] < record["process_seconds"]
    assert all(any(line.startswith(name) for line in lines) for name in phases)
    assert any(line.startswith("steps 2 to 4 are traced in run/trace.json; mean of each:  augment") for line in lines)
    assert json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]


def test_of_several_runs_the_first_that_is_trained_is_traced(capsys, tmp_path):
    words = [*TRAIN, "--epochs", "1", "--profile", "--out", "all"]
    for runs, traced in ((2, {"seed-0"}), (3, {"seed-0", "seed-2"})):
        assert main([*words, "--runs", str(runs)]) == 0
        assert {path.parent.name for path in tmp_path.rglob("trace.json")} == traced
        assert f"are traced in all/{max(traced)}/trace.json" in capsys.readouterr().out


def test_without_profile_there_is_no_table_and_no_trace(capsys, tmp_path):
    assert main([*TRAIN, "--out", "run"]) == 0
    assert not any(line.startswith("start of Python") for line in lines_of(capsys))
    assert not (tmp_path / "run/trace.json").exists()


def test_the_default_folder_is_named_after_recipe_time_and_seed(capsys, tmp_path):
    assert main([*TRAIN, "--quiet", "--name", "mine", "--seed", "5"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"mine-\d{8}-\d{6}-5", folder.name)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--network mlp --network.hidden 8", "davidnet-mlp"),
        ("--network mlp --network.hidden 8 --optimizer Adam", "davidnet-mlp-Adam"),
        ("--network mlp --network.hidden 8 --name mine", "mine"),
        ("--recipe warmstart-mlp --network.hidden 8", "warmstart-mlp"),
        ("--recipe mine.toml", "mine"),
    ],
)
def test_a_run_is_called_after_what_was_trained(capsys, tmp_path, flags, name):
    (tmp_path / "mine.toml").write_text("network = {kind = 'mlp', hidden = [8]}")
    assert main([*SHORT, "--epochs", "1", *flags.split()]) == 0
    lines = lines_of(capsys)
    assert lines[0].startswith(f"{name} on ") and lines[-1].startswith(f"{name}  ")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(rf"{name}-\d{{8}}-\d{{6}}-0", folder.name)
    assert main(["eval", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{name}  ")


def test_quiet_prints_the_last_line_only(capsys):
    assert main([*TRAIN, "--quiet", "--holdout", "32", "--train-size", "128"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(LAST_LINE + "  holdout 32  train-size 128  synthetic\n", out)
    assert err == ""


def test_json_prints_the_record_and_nothing_else(capsys, tmp_path):
    assert main([*TRAIN, "--json", "--out", "run"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "run/run.json").read_text())
    assert json.loads(out)["dataset"]["name"] == "synthetic"
    assert err == ""


def test_a_recipe_file_is_trained_with_flags_over_its_fields(capsys, tmp_path):
    (tmp_path / "tiny.toml").write_text(
        "epochs = 9\nbatch_size = 64\nnetwork.widths = [8, 8, 8, 8]\nevaluate.tta = 'none'"
    )
    command = "train --dataset synthetic --recipe tiny.toml --epochs 1 --json --eval-every 0"
    assert main(command.split()) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert (recipe["name"], recipe["epochs"], recipe["batch_size"]) == ("tiny", 1, 64)
    assert recipe["evaluate"]["tta"] == "none"


def test_several_runs_are_saved_each_and_summarized(capsys, tmp_path):
    assert main([*TRAIN, "--runs", "3", "--seed", "4", "--out", "all"]) == 0
    lines = lines_of(capsys)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["runs.jsonl", "seed-4", "seed-5", "seed-6"]
    records = [json.loads((tmp_path / f"all/seed-{seed}/run.json").read_text()) for seed in (4, 5, 6)]
    assert [record["seed"] for record in records] == [4, 5, 6]
    summary = summarize([record["tta_accuracy"] for record in records])
    low, high = summary.interval
    assert f"(tta {summary.mean:.2%})  n=3  tta std dev {summary.std:.2%}" in lines[-1]
    assert lines[-1].endswith(f"95% interval {low:.2%} to {high:.2%}  synthetic")
    each = [line for line in lines if re.fullmatch(rf"seed \d  {LAST_LINE}  synthetic(  mean .*)?", line)]
    assert len(each) == 3 and " mean " not in each[0] and each[1].endswith(", n=2")
    assert each[-1].endswith(f"  mean {summary.mean:.2%}, 95% interval {low:.2%} to {high:.2%}, n=3")

    assert main([*TRAIN, "--runs", "4", "--seed", "4", "--out", "all"]) == 0  # goes on with seed 7
    lines = lines_of(capsys)
    assert [line for line in lines if line.endswith(" of 4")] == ["seed 7, run 4 of 4"]
    assert "  n=4  " in lines[-1]
    assert records == [json.loads((tmp_path / f"all/seed-{seed}/run.json").read_text()) for seed in (4, 5, 6)]
    assert main([*TRAIN, "--runs", "2", "--seed", "6", "--out", "all", "--label-smoothing", "0"]) == 2
    assert capsys.readouterr().err == (
        "fastcifar: all/seed-4 holds another run: recipe.label_smoothing is 0.2 there and 0.0 now; allowed: the same "
        "settings, or another folder\n"
    )


def test_several_runs_in_json_are_records_and_a_summary(capsys):
    assert main([*TRAIN, "--runs", "2", "--json", "--epochs", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    accuracies = [record["accuracy"] for record in printed["runs"]]
    expected = summarize(accuracies)
    assert printed["summary"]["accuracy"] == {
        "n": 2,
        "mean": expected.mean,
        "std": expected.std,
        "interval": list(expected.interval),
    }


def test_a_run_that_diverges_is_counted_and_the_others_are_kept(capsys, monkeypatch, tmp_path):
    train = Trainer.run

    def fails_at_seed_2(self, seed, *args, **kwargs):
        if seed == 2:
            raise NonFiniteLoss("the loss became nan at step 7")
        return train(self, seed, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", fails_at_seed_2)
    assert main([*TRAIN, "--runs", "4", "--epochs", "1", "--quiet", "--out", "all"]) == 3
    out, err = capsys.readouterr()
    assert "  n=3  " in out and out.endswith("  synthetic  1 of 4 diverged\n") and err == ""
    saved = ["runs.jsonl", "seed-0", "seed-1", "seed-3"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == saved
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("trained again"))
    assert main([*TRAIN, "--runs", "4", "--epochs", "1", "--json", "--out", "all"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert (len(printed["runs"]), printed["failed"], printed["diverged"]) == (3, 1, 1)


def test_a_loss_that_becomes_nan_ends_with_3_and_leaves_nothing(capsys, tmp_path):
    assert main([*TRAIN, "--optimizer.lr", "1e30", "--quiet"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fastcifar: the loss became (nan|-?inf) at step \d+ of 8 .*optimizer\.lr.*\n", err)
    assert list(tmp_path.iterdir()) == []


def test_quick_says_what_it_ran_and_the_command_of_the_full_run(capsys):
    command = "train --quick --dataset synthetic --network.widths 8 8 8 8 --data-dir a\\ b --out d --out c"
    assert main([word.replace("\\", "") for word in re.split(r"(?<!\\) ", command)]) == 0
    lines = lines_of(capsys)
    # the quick recipe's 8,000 images are more than this set has: then it takes them all
    assert lines[0] == "davidnet on synthetic data, not CIFAR-10: 256 training, 64 test images"
    assert lines[1].startswith("3 epochs of 2 steps of 128 images")
    assert lines[2].startswith("quick: ")
    assert lines[3] == "  fastcifar train --dataset synthetic --network.widths 8 8 8 8 --data-dir 'a b'"
    assert lines[-1].endswith("  synthetic  quick")


def test_without_cifar10_the_synthetic_set_stands_in_only_if_asked_to(capsys, tmp_path):
    command = ["train", *TRAIN[3:], "--quiet", "--epochs", "1"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fastcifar: cannot download https://a\.place: no network; .*\n", err)
    assert list(tmp_path.iterdir()) == []

    assert main([*command, "--synthetic-fallback"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("  synthetic\n")
    assert re.fullmatch(r"fastcifar: cannot download .*; training on synthetic data instead\n", err)


def train_json(capsys, out, *args):
    """The record of a short run that is saved in the folder `out`."""
    assert main([*TRAIN, "--epochs", "1", "--json", "--out", out, *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_starts_from_the_weights_of_another(capsys, tmp_path):
    cold = train_json(capsys, "half", "--train-fraction", "0.5", "--cold-start")
    assert (cold["init"], cold["subset"]["size"]) == ({"mode": "cold"}, 128)
    warm = train_json(capsys, "warm", "--warm-start", "half")["init"]
    assert (warm["mode"], warm["source"], warm["shrink"], warm["perturb"]) == ("warm", "half", 1, 0)
    assert len(warm["sha256"]) == 64
    for flags, factors in {"--shrink 0.3": (0.3, 0.1), "--perturb 0.2 --reset-head": (0.4, 0.2)}.items():
        mixed = train_json(capsys, flags[2:5], "--warm-start", "half/model.safetensors", *flags.split())["init"]
        assert (mixed["mode"], mixed["shrink"], mixed["perturb"]) == ("shrink-perturb", *factors)
        assert (mixed["sha256"], mixed["reset_head"]) == (warm["sha256"], "--reset-head" in flags)

    for number, (flags, said) in enumerate(
        {
            "--start fire": {"mode": "fire", "steps": 0, "reset_head": False},
            "--start fire:steps=10 --reset last-1 head": {
                **{"mode": "fire", "steps": 10, "reset_head": True, "reset": ["last-1"]}
            },
            "--start dash:floor=0.2": {"mode": "dash", "floor": 0.2, "alpha": 0.3, "batch": 0, "reset_head": False},
            "--start shrink-perturb:shrink=0.3 --shrink-layers classifier:shrink=0,perturb=1": {
                **{"mode": "shrink-perturb", "shrink": 0.3, "perturb": 0.1, "reset_head": False},
                "layers": ["classifier:shrink=0,perturb=1"],
            },
        }.items()
    ):
        init = train_json(capsys, f"start-{number}", "--warm-start", "half", *flags.split())["init"]
        assert init == {"source": "half", "sha256": warm["sha256"], **said}
    flags = ["--warm-start", "half", "--start", "fire:steps=10", "--reset", "last-1", "statistics"]
    assert main([*TRAIN, "--epochs", "1", *flags, "--out", "fire"]) == 0
    lines = lines_of(capsys)
    assert lines[2] == "fire steps 10 reset last-1 statistics from half"
    assert lines[-1].endswith("  fire steps 10 reset last-1 statistics  synthetic")

    assert main([*TRAIN, "--epochs", "1", "--warm-start", "half", "--shrink", "0.5", "--out", "new"]) == 0
    lines = lines_of(capsys)
    assert lines[2] == "shrink 0.5 perturb 0.1 from half"
    assert lines[-1].endswith("  shrink 0.5 perturb 0.1  synthetic")


def test_a_source_that_does_not_fit_is_refused_in_one_line(capsys):
    train_json(capsys, "run")
    assert main([*SHORT, "--quiet", "--network", "mlp", "--warm-start", "run", "--out", "mlp"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    names = r"classifier\.bias is absent for \[10\], classifier\.weight is \[10, 8\] for \[10, 100\], .* and \d+ more"
    assert re.fullmatch(rf"fastcifar: the weights in run do not fit the network: {names}; allowed: .*\n", err)


def test_subsets_are_fractions_sizes_and_classes(capsys):
    flags = "--train-size 192 --train-fraction 0.5 --classes 0,3,4,5,6,7,8,9 --balanced"
    assert train_json(capsys, "some", *flags.split())["subset"] == {
        "size": 96,
        "seed": 0,
        "balanced": True,
        "classes": [0, 3, 4, 5, 6, 7, 8, 9],
    }
    assert train_json(capsys, "all", "--train-fraction", "1")["subset"] is None
    assert main([*TRAIN, "--out", "new", "--train-fraction", "0.1"]) == 2
    assert capsys.readouterr().err == "fastcifar: batch_size is 64; allowed: up to the 26 training images\n"
    assert main([*TRAIN, "--out", "new", "--classes", "0,10"]) == 2
    assert capsys.readouterr().err == "fastcifar: classes has 10; allowed: 0 to 9\n"


@pytest.fixture
def nothing_is_loaded(few_images, monkeypatch):
    def fail(*arguments):
        raise AssertionError("loaded before the output folder was checked")

    monkeypatch.setattr("fastcifar.data.load_dataset", fail)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("run", "output folder run already holds a run; allowed: a new or an empty folder"),
        ("full", "output folder full already holds files; allowed: a new or an empty folder"),
        ("file", "output folder file is a file; allowed: a new or an empty folder"),
        ("file/run", "output folder file/run is inside a file; allowed: a new or an empty folder"),
        ("n" * 300, "--out is " + "n" * 300 + ": File name too long; allowed: a path"),
    ],
)
def test_an_output_folder_that_cannot_be_used_is_refused_before_anything_is_loaded(capsys, tmp_path, out, reason):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").touch()
    (tmp_path / "file").touch()
    assert main([*TRAIN, "--out", out]) == 2
    assert capsys.readouterr() == ("", f"fastcifar: {reason}\n")


def test_cuda_is_refused_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main([*TRAIN, "--device", "cuda"]) == 2
    assert re.fullmatch(
        r"fastcifar: device is 'cuda', but torch finds no CUDA devices? here\n", capsys.readouterr().err
    )


def test_batches_larger_than_the_set_are_refused(capsys):
    assert main([*TRAIN, "--batch-size", "512"]) == 2
    assert capsys.readouterr().err == "fastcifar: batch_size is 512; allowed: up to the 256 training images\n"


@pytest.fixture
def interruptible():
    """Programs started in the background of a shell inherit that SIGINT is ignored; ours must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_training_ends_with_130_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "fastcifar", *TRAIN, "--epochs", "1000", "--train-size", "64", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--holdout", "10"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    for line in process.stdout:
        if line.split()[:1] == ["1"]:  # the first epoch's row
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    (run,) = tmp_path.glob("runs/*")
    said = rf"fastcifar: interrupted after step \d+ of 1000; fastcifar train --resume runs/{run.name} goes on\n"
    assert process.returncode == 130 and re.fullmatch(said, err)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "unfinished.json"]
