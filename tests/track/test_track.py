"""Trackers: what their files hold, read back by the packages that they are for, and what is refused."""

import csv
import dataclasses
import json
import struct
import sys
import time
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import ClassVar

import pytest

import fastcifar
from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import Notice, UserError
from fastcifar.training import Checkpoints, Listener, train
from tests.small import MLP

RECIPE = dataclasses.replace(MLP, epochs=4)
NAMES = ["epoch", "train_acc", "train_loss", "val_acc", "val_loss"]


class FakeRun:
    """A run of the fake package, which keeps what it is told."""

    def __init__(self, **given):
        self.given, self.logged, self.metrics, self.finished = given, [], {}, False
        self.id = given.get("id") or f"id-{len(FakeWandB.runs)}"

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


class FakeWandB(types.ModuleType):
    """A package wandb that sends nothing."""

    runs: ClassVar[list[FakeRun]] = []

    def __init__(self, mode="online", account=True):
        super().__init__("wandb")
        self.__spec__, self.mode, self.account = ModuleSpec("wandb", None), mode, account

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, prompt):
        assert prompt is False
        return self.account

    def Settings(self, console):
        assert console == "off"  # the program's output stays its own

    def init(self, **given):
        self.runs.append(FakeRun(**given))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    module = FakeWandB()
    monkeypatch.setattr(FakeWandB, "runs", [])
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def rows_of(file: Path) -> list[dict[str, float | None]]:
    with file.open(newline="") as lines:
        reader = csv.DictReader(lines)
        assert reader.fieldnames == NAMES
        return [{name: float(text) if text else None for name, text in row.items()} for row in reader]


def events_in(folder: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events_in(folder)
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(record) -> list[dict[str, float | None]]:
    """The metrics of a run, in percent and nats, from its record."""
    rows = []
    for row in record.history:
        has_val = row.val_accuracy is not None
        tested = (row.val_accuracy, row.val_loss) if has_val else (row.test_accuracy, row.test_loss)
        values = row.epoch, row.train_accuracy, row.train_loss, *tested
        values = [100 * each if name.endswith("_acc") and each is not None else each
                  for name, each in zip(NAMES, values, strict=True)]  # fmt: skip
        rows.append(dict(zip(NAMES, values, strict=True)))
    return rows


def as_scalars(rows):
    return {
        name: [(row["epoch"], pytest.approx(row[name])) for row in rows if row[name] is not None] for name in NAMES[1:]
    }


@pytest.mark.parametrize("val", [False, True])
def test_all_trackers_have_the_five_metrics_of_each_epoch(tmp_path, wandb, val):
    data = make_synthetic(64, 20)
    data = dataclasses.replace(data, val=make_synthetic(64, 40).test) if val else data
    trackers = [fastcifar.CSV(tmp_path / "a.csv"), fastcifar.TensorBoard(tmp_path / "board"), fastcifar.WandB("zoo")]
    run = train(RECIPE, data, device="cpu", listeners=trackers, eval_every=2, evaluate_at_start=True)
    rows = expected(run.record)
    assert [row["val_acc"] is None for row in rows] == [False, True, False, True, False]
    assert rows_of(tmp_path / "a.csv") == rows
    assert scalars_of(tmp_path / "board") == as_scalars(rows)
    (tracked,) = wandb.runs
    assert tracked.logged == [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert tracked.metrics == {name: None if name == "epoch" else "epoch" for name in NAMES} and tracked.finished
    config = json.loads((tmp_path / "a.json").read_text())
    course = {"dataset": "synthetic", "batch_size": 16, "image_size": 32, "learning_rate": RECIPE.optimizer.lr}
    course |= {"epochs": 4, "optimizer": RECIPE.optimizer.kind}
    course |= {"optimizer.lr": RECIPE.optimizer.lr, "network.hidden": [8], "seed": 0}
    assert course.items() <= config.items() and config.pop("run") == "small-seed-0" == tracked.given["name"]
    assert json.loads(json.dumps(tracked.given["config"])) == config
    assert (tracked.given["project"], tracked.given["reinit"]) == ("zoo", "create_new")


def test_tensorboard_has_the_configuration_as_hyperparameters(tmp_path):
    board = fastcifar.TensorBoard(tmp_path)
    train(MLP, make_synthetic(32, 20), device="cpu", listeners=[board])
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (content,) = events_in(tmp_path).PluginTagToContent("hparams").values()
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["batch_size"].number_value == 16 and found["dataset"].string_value == "synthetic"
    assert found["drop_last"].bool_value is MLP.drop_last
    assert found["network.hidden"].string_value == "(8,)"


def test_a_training_that_goes_on_has_each_epoch_once(tmp_path, wandb):
    """It is broken off in epoch 4, after epoch 3 was tracked, and goes on from the state after epoch 2."""

    def trackers():
        kept = fastcifar.WandB(dir=tmp_path / "kept")
        return [fastcifar.CSV(tmp_path / "a.csv"), fastcifar.TensorBoard(tmp_path / "board"), kept, fastcifar.WandB()]

    def stop(row):
        if row.epoch == 3:
            raise KeyboardInterrupt

    data, how = make_synthetic(64, 20), {"device": "cpu", "checkpoints": Checkpoints(tmp_path / "state", every="2")}
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, data, listeners=[*trackers(), Listener(on_epoch=stop)], **how)
    assert [row["epoch"] for row in rows_of(tmp_path / "a.csv")] == [1, 2, 3]
    run = train(RECIPE, data, listeners=trackers(), **how)
    assert run.record.resumed
    rows = expected(run.record)
    assert rows_of(tmp_path / "a.csv") == rows
    assert scalars_of(tmp_path / "board") == as_scalars(rows)
    before, _, after, anew = wandb.runs
    assert after.given["id"] == before.id and after.given["resume"] == "allow"
    assert before.logged + after.logged == anew.logged == rows
    run = train(RECIPE, make_synthetic(32, 20), device="cpu", listeners=trackers())  # another in the same places
    assert rows_of(tmp_path / "a.csv") == expected(run.record)
    assert scalars_of(tmp_path / "board") == as_scalars(expected(run.record))
    assert "id" not in wandb.runs[-2].given


def test_what_fails_in_the_midst_is_said_once_and_the_training_goes_on(tmp_path, wandb):
    board = fastcifar.TensorBoard(tmp_path / "board")
    trackers = [fastcifar.CSV(tmp_path / "folder/a.csv"), board, fastcifar.WandB()]

    def spoil(row):
        if row.epoch == 1:
            (tmp_path / "folder/a.csv").unlink()
            (tmp_path / "folder/a.csv").mkdir()
            board._file.unlink()
            board._file.mkdir()
            wandb.runs[0].log = lambda values: 1 / 0

    with pytest.warns(Notice) as said:
        run = train(MLP, make_synthetic(32, 20), device="cpu", listeners=[Listener(on_epoch=spoil), *trackers])
    assert run.record.steps == 6
    found = [str(each.message) for each in said if issubclass(each.category, Notice)]
    assert [message.split()[0] for message in found] == ["CSV", "TensorBoard", "WandB"]
    assert all(message.endswith("; the training goes on") for message in found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wandb.runs[0].log = print
        train(MLP, make_synthetic(32, 20), device="cpu", listeners=[trackers[2]])  # of another training it tracks again
    assert wandb.runs[-1].finished


def test_metrics_are_no_json_which_is_the_configurations():
    with pytest.raises(UserError, match=r"the file of metrics is runs/metrics\.json; allowed: another ending"):
        fastcifar.CSV("runs/metrics.json")


def test_missing_packages_and_accounts_are_refused_in_a_line(capsys, monkeypatch, wandb, without_torch_for_track):
    wandb.account = False
    with pytest.raises(UserError, match="knows no account here; allowed: after `wandb login`, or with WANDB_MODE=off"):
        fastcifar.WandB()
    for mode in ("offline", "disabled"):
        fastcifar.WandB(mode=mode)
    wandb.mode = "offline"
    fastcifar.WandB()
    monkeypatch.setattr(wandb, "setup", lambda: 1 / 0)
    with pytest.raises(UserError, match="wandb cannot be used: division by zero"):
        fastcifar.WandB()
    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
        assert main(["train", "--track", "csv", name]) == 2
        said = f"tracking by {name} needs {name}, which is not installed: pip install 'fastcifar[track]'\n"
        assert capsys.readouterr().err == f"fastcifar: {said}"
    assert main(["train", "--track"]) == 2
    assert "--track" in capsys.readouterr().err
    without_torch_for_track("train --track tensorbord", "train --track csv --epochs -1")


@pytest.fixture
def without_torch_for_track():
    import subprocess

    code = (
        "import contextlib, io, sys\nfrom fastcifar.cli import main\nfor line in sys.argv[1:]:\n"
        "    with contextlib.redirect_stderr(io.StringIO()):\n        assert main(line.split()) == 2, line\n"
        "assert 'torch' not in sys.modules\n"
    )

    def check(*lines):
        done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return check


WORDS = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--batch-size", "64", "--epochs", "2"]


def test_the_flag_tracks_all_runs_of_a_command_and_of_an_experiment(tmp_path, monkeypatch, wandb):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "--train-size", "128", "--quiet", "--track", "csv", "tensorboard", "wandb"]
    assert main(["train", *words, "--runs", "2", "--out", "runs"]) == 0
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert main(["ablate", *words, "--only", "ema", "--runs", "1", "--out", "both"]) == 0
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("metrics.csv"))
    assert names == [f"both/track/{arm}/seed-0/metrics.csv" for arm in ("ema", "full")] + [
        f"runs/seed-{seed}/track/metrics.csv" for seed in (0, 1)
    ]
    for name in names:
        rows = rows_of(tmp_path / name)
        assert scalars_of((tmp_path / name).parent) == as_scalars(rows) and [row["epoch"] for row in rows] == [1, 2]
    assert [run.given["name"] for run in wandb.runs[:2]] == ["davidnet-mlp-seed-0", "davidnet-mlp-seed-1"]
    assert [run.given["project"] for run in wandb.runs] == ["fastcifar"] * 2 + ["mine"] * 2
    assert fastcifar.read_runs("runs").groups[0].values("accuracy") != []


def wandb_records(content: bytes):
    """The records of W&B's file: a log as LevelDB's, whose pieces end with each block of 32 KiB, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a record that is whole, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_itself_takes_it_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    tracker = fastcifar.WandB(dir=tmp_path, mode="offline")
    run = train(MLP, make_synthetic(32, 20), device="cpu", listeners=[tracker])
    assert wandb.run is None  # that of the program around it stays
    kept = json.loads((tmp_path / "wandb-run.json").read_text())
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert kept == {"id": file.stem.removeprefix("run-"), "epoch": 3}
    records, end = [], time.monotonic() + 30
    while not any(each.WhichOneof("record_type") == "exit" for each in records) and time.monotonic() < end:
        records = list(wandb_records(file.read_bytes()))  # a process of wandb's own writes it
        time.sleep(0.1)
    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in each.history.item} for each in records]
    assert [{name: row[name] for name in NAMES} for row in rows if row] == expected(run.record)
    (begun,) = (each.run for each in records if each.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.display_name, config["optimizer.lr"]) == ("small-seed-0", run.record.recipe.optimizer.lr)
    assert run.record.steps == 6
