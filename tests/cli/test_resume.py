"""`fastcifar train --resume`: a training goes on after a kill at any instant, to what it would have come to.

What is on the disk at the instant of a kill is a copy of the folder, made in the midst of a training."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.locks import claimed
from fastcifar.output import BESIDE, PARTIAL
from fastcifar.training import Trainer

pytestmark = pytest.mark.usefixtures("few_images")

MLP = ["train", "--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--quiet"]
MLP += ["--batch-size", "64", "--epochs", "2"]
TIMES = {"seconds", "train_seconds", "time_seconds", "process_seconds", "phases", "first_step_seconds"}
TIMES |= {"images_per_second", "started", "command", "resumed"}


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def kept(folder):
    """All that is kept in a folder by the names of files, but for times. A lock file that is left behind is no lock."""
    found = {}
    for path in sorted(Path(folder).rglob("[!.]*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays}
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
            found[name] = sorted(lines, key=lambda line: line["seed"])
        else:
            found[name] = ""
    return found


@pytest.fixture
def killed(monkeypatch, tmp_path):
    """Copies of the folder `run` at every step of a training and around every file that is put in its place."""
    copies, seen, step, replace, unlink = [], [], Trainer.take_step, os.replace, Path.unlink

    def copy():
        files = {(path, path.stat().st_mtime_ns) for path in Path("run").rglob("[!.]*")}
        if Path("run").is_dir() and files not in seen[-1:]:
            seen.append(files)
            copies.append(f"killed-{len(copies)}")
            shutil.copytree("run", copies[-1])

    def around(call):
        def called(*args, **kwargs):
            copy()
            call(*args, **kwargs)
            copy()

        return called

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", around(step))
        patch.setattr("fastcifar.output.os.replace", around(replace))
        patch.setattr(Path, "unlink", around(unlink))
        yield copies, patch.undo


def in_order(args):
    return [*MLP, *args, "--out", "run"]


@pytest.mark.parametrize(
    "args",
    [
        ["--epochs", "1", "--checkpoint-every", "0.5", "--keep-weights", "all", "--evaluate-at-start"],
        ["--runs", "2", "--epochs", "1", "--checkpoint-every", "0.5", "--keep-weights", "all"],
    ],
    ids=["one", "several"],
)
def test_a_training_goes_on_after_a_kill_at_any_instant(killed, args):
    copies, undo = killed
    assert main(in_order(args)) == 0
    undo()
    expected = kept("run")
    resumed = set()
    for folder in copies:
        if all(path.name.startswith(PARTIAL) for path in Path(folder).iterdir()):  # nothing had begun
            continue
        assert main(["train", "--resume", folder, "--quiet"]) == 0
        assert kept(folder) == expected
        resumed |= set(json.loads(next(Path(folder).rglob("run.json")).read_text())["resumed"])
    assert resumed >= {2}


def unfinished(monkeypatch, args, at=3, out="run"):
    """Leave in the folder `out` what a kill in the step `at` leaves there."""
    step, count = Trainer.take_step, []

    def stops(trainer, epoch):
        step(trainer, epoch)
        count.append(1)
        if len(count) == at:
            shutil.copytree(out, f"{out}-killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", stops)
        assert main([*MLP, *args, "--out", out]) == 0
    shutil.move(out, f"{out}-whole")
    shutil.move(f"{out}-killed", out)


@pytest.mark.parametrize("places", [("host", "device"), ("device", "host")])
def test_a_training_goes_on_with_its_images_in_another_place(monkeypatch, places):
    unfinished(monkeypatch, ["--checkpoint-every", "0.5", "--resident", places[0]])
    assert main(["train", "--resume", "run", "--resident", places[1], "--quiet"]) == 0
    weights, record = (Path("run", name).read_bytes() for name in ("model.safetensors", "run.json"))
    assert weights == Path("run-whole/model.safetensors").read_bytes()
    assert json.loads(record)["resident"] == places[1] and json.loads(record)["resumed"]


def refusal(capsys, *args):
    assert main(["train", "--resume", "run", "--quiet", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.removeprefix("fastcifar: ").removesuffix("\n")


OFTEN = ["--checkpoint-every", "0.25"]


@pytest.fixture
def never_loads(monkeypatch):
    return lambda: monkeypatch.setattr("fastcifar.data.load_dataset", lambda *_: pytest.fail("loaded"))


@pytest.mark.parametrize(
    ("flags", "named"), [("--epochs 3", "--epochs"), ("--out=b", "--out"), ("--optimizer.lr 2", "--optimizer.lr")]
)
def test_flags_that_would_change_the_training_are_refused(capsys, flags, named):
    allowed = "--plugin, --data-dir, --resident, --device, --threads, --parallel, --checkpoint-every, --profile"
    allowed += ", --quiet, --json"
    said = f"{named} stands beside --resume, with which a training goes on as it was asked for; allowed: {allowed}"
    assert refusal(capsys, *flags.split()) == said


def test_a_flag_that_does_not_go_with_the_training_is_refused_before_the_data_are_read(
    capsys, monkeypatch, never_loads
):
    run = Trainer.run

    def interrupted(trainer, seed, **how):
        if seed == 1:
            raise KeyboardInterrupt
        return run(trainer, seed, **how)

    words = ["--runs", "2", "--loading.loader", "host", "--loading.workers", "2", "--out", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", interrupted)
        assert main([*MLP, *words]) == 130
    capsys.readouterr()
    never_loads()
    assert refusal(capsys, "--parallel", "2") == "--parallel is 2; allowed: 1 with --loading.workers 2, or 0 workers"


def test_help_and_refusals_need_no_torch():
    code = (
        "import sys\n"
        "from fastcifar.cli import main\n"
        "assert main(['train', '--resume', 'nowhere', '--help']) == 0\n"
        "assert main(['train', '--resume', 'nowhere']) == 2\n"
        "assert main(['train', '--resume', 'nowhere', '--seed', '1']) == 2\n"
        "assert main(['train', '--checkpoint-every', 'often']) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.partition(";")[0] for line in done.stderr.splitlines()] == [
        "fastcifar: nowhere does not exist",
        "fastcifar: --seed stands beside --resume, with which a training goes on as it was asked for",
        "fastcifar: --checkpoint-every is 'often'",
    ]


def test_what_cannot_go_on_is_refused_in_a_line(capsys, monkeypatch, never_loads):
    Path("run").mkdir()
    assert refusal(capsys) == (
        "run holds no unfinished training; allowed: the folder of a training, with unfinished.json"
    )
    shutil.rmtree("run")
    unfinished(monkeypatch, OFTEN)
    never_loads()
    capsys.readouterr()
    with claimed(Path("run") / f"{PARTIAL}lock"):
        assert refusal(capsys) == "another process trains into run; allowed: once that has ended"
    whole = json.loads(Path("run/unfinished.json").read_text())

    def of(values):
        Path("run/unfinished.json").write_text(values if isinstance(values, str) else json.dumps(values))
        return refusal(capsys)

    assert of("").startswith("cannot read run/unfinished.json: JSONDecodeError: ")
    assert of("[" * 100_000).startswith("cannot read run/unfinished.json: RecursionError: ")
    assert of([]) == "run/unfinished.json: version is None; allowed: 1, what this fastcifar can read"
    assert of({**whole, "version": 2}) == "run/unfinished.json: version is 2; allowed: 1, what this fastcifar can read"
    assert of({**whole, "seeds": ["0"]}) == "run/unfinished.json: seeds is ['0']; allowed: seeds, as in [0, 1, 2]"
    for changed, said in (
        ({"eval_every": -1}, "--eval-every is -1; allowed: 0 or more epochs"),
        ({"device": "tpu"}, "--device is 'tpu'; allowed: one of auto, cpu, cuda"),
        ({"lr": 1}, "options has 'lr'; allowed: the file as fastcifar wrote it"),
    ):
        assert of({**whole, "options": {**whole["options"], **changed}}) == f"run/unfinished.json: {said}"
    without = {name: value for name, value in whole.items() if name != "recipe"}
    assert of(without) == "cannot read run/unfinished.json: KeyError: 'recipe'; allowed: the file as fastcifar wrote it"
    other = {**whole, "recipe": {**whole["recipe"], "epochs": 0}}
    assert of(other).startswith("run/unfinished.json: recipe: epochs is 0.0; allowed: above 0")


def test_another_recipe_seed_or_data_than_the_states_is_refused(capsys, monkeypatch):
    unfinished(monkeypatch, OFTEN)
    path = Path("run/unfinished.json")
    whole = json.loads(path.read_text())
    capsys.readouterr()
    path.write_text(json.dumps({**whole, "seeds": [1]}))
    assert refusal(capsys).startswith("run holds the state of another run: seed is 0 there and 1 now; allowed: ")
    path.write_text(json.dumps({**whole, "recipe": {**whole["recipe"], "label_smoothing": 0.1}}))
    assert "recipe.label_smoothing is 0.2 there and 0.1 here" in refusal(capsys)
    path.write_text(json.dumps(whole))
    monkeypatch.setattr("fastcifar.data.load_dataset", lambda *_: make_synthetic(train_size=256, test_size=64, seed=1))
    said = refusal(capsys)
    assert "data.sha256 is " in said and "goes on" not in said
    assert Path("run/checkpoints").is_dir()  # nothing is lost


@pytest.mark.parametrize("is_there", [True, False], ids=["from its state", "from its beginning"])
def test_it_goes_on_from_another_folder_without_the_recipe_file_and_in_a_clock_that_was_set_back(
    capsys, monkeypatch, tmp_path, is_there
):
    Path("mine.toml").write_text("label_smoothing = 0.1")
    args = ["--recipe", "mine.toml", "--network", "mlp", "--network.hidden", "8", "--eval-every", "2", "--threads", "1"]
    unfinished(monkeypatch, [*args, *(OFTEN if is_there else []), "--train-size", "192", "--holdout", "32"])
    Path("mine.toml").unlink()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert main(["train", "--resume", "../run", "--quiet", "--checkpoint-every", "never", "--threads", "1"]) == 0
    assert kept("../run") == kept("../run-whole")
    assert capsys.readouterr().out.endswith("  holdout 32  train-size 192  synthetic\n")


@pytest.mark.parametrize(
    "flags", ["--reset-head", "--shrink 0.3 --perturb 0.2", "--start fire --reset last-1", "--start dash:floor=0.1"]
)
def test_a_warm_start_goes_on_without_its_source_or_begins_with_the_same_one(capsys, monkeypatch, flags):
    assert main([*MLP, "--epochs", "1", "--out", "cold"]) == 0
    unfinished(monkeypatch, [*OFTEN, "--warm-start", "cold", *flags.split()])
    shutil.copytree("run", "again")
    shutil.move("cold", "gone")
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert kept("run") == kept("run-whole")

    shutil.rmtree("run")
    shutil.rmtree("again/checkpoints")
    shutil.copytree("again", "run")
    capsys.readouterr()
    assert "cold does not exist" in refusal(capsys)
    assert main([*MLP, "--epochs", "1", "--seed", "1", "--out", "cold"]) == 0
    capsys.readouterr()
    assert refusal(capsys).endswith("cold holds other weights than before; allowed: the same ones")
    shutil.rmtree("cold")
    shutil.move("gone", "cold")
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert kept("run") == kept("run-whole")


def test_a_finished_run_is_shown_again_and_what_is_left_beside_it_is_cleared(capsys, monkeypatch, never_loads):
    unfinished(monkeypatch, OFTEN)
    for name in ("unfinished.json", "checkpoints"):
        shutil.move(f"run/{name}", f"run-whole/{name}")
    (Path("run-whole") / f"{PARTIAL}x.pt").touch()
    never_loads()
    said = capsys.readouterr().out
    assert main(["train", "--resume", "run-whole", "--quiet"]) == 0
    assert capsys.readouterr() == (said, "")
    assert {path.name for path in Path("run-whole").iterdir()} == {"run.json", *BESIDE}
    assert main(["train", "--resume", "run-whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("run-whole/run.json").read_text())


def test_a_finished_run_is_shown_again_with_what_it_ran_on(capsys):
    some = ["--holdout", "64", "--train-size", "128", "--subset-seed", "3", "--classes", "0,1,2,3,4,5,6,7"]
    assert main([*MLP, "--out", "source"]) == 0
    assert main([*MLP, "--out", "run", *some, "--warm-start", "source", "--shrink", "0.5"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    again = capsys.readouterr().out.splitlines()[-1]
    for remark in ("holdout 64", "train-size 128", "subset-seed 3", "shrink 0.5 perturb 0.1", "synthetic"):
        assert remark in said and remark in again


@pytest.mark.parametrize("folder", ["--resume=", "--resume= "])
def test_an_empty_folder_is_none(capsys, folder):
    assert main(["train", folder]) == 2
    assert "allowed: " in capsys.readouterr().err


def test_the_same_command_of_several_runs_goes_on_within_the_run_that_was_broken_off(capsys, monkeypatch):
    several = [*OFTEN, "--runs", "2"]
    unfinished(monkeypatch, several, at=11)  # step 3 of seed 1
    assert {path.name for path in Path("run/seed-1").iterdir()} == {"checkpoints"}
    capsys.readouterr()
    assert main(["train", "--resume", "run/seed-1"]) == 2
    assert capsys.readouterr().err == "fastcifar: run/seed-1 is one of several runs; allowed: --resume run\n"
    assert main([*MLP, *several, "--out", "run"]) == 0
    assert kept("run") == kept("run-whole")
    assert json.loads(Path("run/seed-1/run.json").read_text())["resumed"] == [2]
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert "  n=2  " in capsys.readouterr().out


def test_other_settings_are_refused_where_runs_are_unfinished(capsys, monkeypatch):
    unfinished(monkeypatch, ["--runs", "2"])
    capsys.readouterr()
    assert main([*MLP, "--runs", "2", "--out", "run", "--label-smoothing", "0"]) == 2
    assert capsys.readouterr().err == (
        "fastcifar: run holds unfinished runs of another kind: recipe.label_smoothing is 0.2 there and 0.0 now; "
        "allowed: the same settings, or another folder\n"
    )


def test_a_folder_that_is_removed_while_a_run_trains_into_it_is_made_again(monkeypatch):
    step, count = Trainer.take_step, []

    def removes(trainer, epoch):
        step(trainer, epoch)
        count.append(1)
        if len(count) == 3:
            shutil.rmtree("run")

    monkeypatch.setattr(Trainer, "take_step", removes)
    assert main([*MLP, *OFTEN, "--out", "run"]) == 0
    assert {path.name for path in Path("run").iterdir()} == {"run.json", *BESIDE}


def test_weights_of_epochs_that_cannot_be_kept_are_said_once_and_the_training_goes_on(capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fastcifar.experiments.folders.save_weights", full)
    assert main([*MLP, "--keep-weights", "all", "--out", "run"]) == 0
    said = "cannot write run/weights/epoch-001.safetensors: No space left on device; the training goes on"
    assert capsys.readouterr().err == f"fastcifar: {said}\n"
    assert {path.name for path in Path("run").iterdir()} == {"run.json", *BESIDE}
