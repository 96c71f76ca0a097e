"""`fastcifar train --runs N`: outcomes in runs.jsonl, all seeds summarized, and runs that fail."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest

from fastcifar.cli import main
from fastcifar.errors import NonFiniteLoss, OutOfMemory
from fastcifar.launch import launch_name
from fastcifar.locks import claimed
from fastcifar.report import summarize
from fastcifar.training import Trainer
from tests.cli.test_resume import MLP, OFTEN, kept, unfinished

pytestmark = pytest.mark.usefixtures("few_images")

SEVERAL = [*MLP, "--epochs", "1", "--out", "all"]
LINES = Path("all/runs.jsonl")


def lines():
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def fails(patch, error, *seeds):
    """Let the runs of these seeds fail, in the midst of a training; return those of all that are trained."""
    trained, run = [], Trainer.run

    def sometimes_fails(trainer, seed, **options):
        trained.append(seed)
        found = run(trainer, seed, **options)
        if seed in seeds:
            raise type(error)(*error.args)  # a new one: it holds the trainer
        return found

    patch.setattr(Trainer, "run", sometimes_fails)
    return trained


def test_all_seeds_are_summarized_those_of_other_commands_too(capsys):
    assert main([*SEVERAL, "--runs", "2"]) == 0
    assert main([*SEVERAL, "--runs", "2", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "  n=4  " in out
    assert [line["seed"] for line in lines()] == [0, 1, 3, 4]
    records = [json.loads(Path(f"all/seed-{seed}/run.json").read_text()) for seed in (0, 1, 3, 4)]
    assert lines() == records
    assert main(["train", "--resume", "all", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] == records and printed["summary"]["accuracy"]["n"] == 4
    assert printed["summary"]["tta_accuracy"]["mean"] == summarize([each["tta_accuracy"] for each in records]).mean
    assert main(["train", "--resume", "all", "--quiet"]) == 0
    assert capsys.readouterr().out == out.splitlines(keepends=True)[-1]


def test_several_runs_are_refused_in_the_folder_of_a_single_one(capsys, monkeypatch):
    unfinished(monkeypatch, OFTEN)
    before = kept("run")
    assert main([*MLP, "--runs", "2", "--out", "run"]) == 2
    allowed = "allowed: fastcifar train --resume run, or a new or an empty folder"
    assert f"output folder run holds an unfinished run; {allowed}\n" in capsys.readouterr().err
    assert kept("run") == before
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    before = kept("run")
    assert main([*MLP, "--runs", "2", "--out", "run"]) == 2
    assert "output folder run already holds a run; allowed: a new or an empty folder\n" in capsys.readouterr().err
    assert kept("run") == before


def test_runs_of_other_settings_are_refused_whatever_their_seeds(capsys):
    assert main([*SEVERAL, "--runs", "2"]) == 0
    capsys.readouterr()
    assert main([*SEVERAL, "--runs", "2", "--seed", "5", "--optimizer.lr", "0.01"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastcifar: all/seed-0 holds another run: recipe.optimizer.lr is ") and err.count("\n") == 1
    assert not Path("all/unfinished.json").exists() and len(lines()) == 2


def test_best_and_last_epochs_are_not_told_together(capsys):
    assert main([*SEVERAL, "--runs", "2"]) == 0
    capsys.readouterr()
    assert main([*SEVERAL, "--runs", "3", "--keep", "best"]) == 2
    assert 'all/seed-0 holds another run: keep is "last" there and "best" now; allowed' in capsys.readouterr().err
    assert main([*MLP, "--epochs", "1", "--out", "best", "--runs", "2", "--keep", "best"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("best epochs")
    assert main(["summary", "all", "best", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = [(group["n"], group["differs"]) for group in found["groups"]]
    assert told == [(2, {"keep": "last"}), (2, {"keep": "best"})]


def test_flags_that_do_nothing_for_runs_that_are_kept_are_told(capsys):
    assert main([*SEVERAL, "--runs", "2", "--diagnose", "updates"]) == 0
    assert "did nothing" not in capsys.readouterr().err
    more = ["--diagnose", "updates", "--track", "csv", "--profile"]
    assert main([*SEVERAL, "--runs", "2", *more]) == 0
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if "did nothing" in line]
    assert [line.split("fastcifar: ")[-1] for line in told] == [
        f"{flag} did nothing for seed-0 seed-1, kept from before; another --out trains anew"
        for flag in ("--profile", "--track")
    ]
    assert "no trace" not in out and "training: steps" not in out
    assert main(["train", "--resume", "all", "--quiet"]) == 0
    assert "did nothing" not in capsys.readouterr().err


def test_runs_do_not_go_into_the_folder_of_an_experiment(capsys):
    Path("all").mkdir()
    Path("all/settings.json").write_text("{}")
    assert main([*SEVERAL, "--runs", "2"]) == 2
    assert "output folder all holds an experiment; allowed: a new or an empty folder, or one" in capsys.readouterr().err
    assert [path.name for path in Path("all").iterdir()] == ["settings.json"]


@pytest.mark.parametrize("name", ["weights", "track", "diagnose", "checkpoints"])
def test_runs_are_found_in_a_folder_that_is_called_like_a_part_of_one(capsys, name):
    for seed, folder in enumerate((f"runs/{name}", "runs/other", f"runs/other/{name}")):
        assert main([*MLP, "--epochs", "1", "--seed", str(seed), "--out", folder]) == 0
    capsys.readouterr()
    assert main(["summary", "runs", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["groups"]
    assert found["seeds"] == [0, 1]


def test_a_line_that_a_kill_prevented_is_written_and_a_torn_one_left_out(capsys):
    assert main([*SEVERAL, "--runs", "3"]) == 0
    first, second, third = LINES.read_text().splitlines(keepends=True)
    expected = capsys.readouterr().out
    LINES.write_text(first + third[:100])
    assert main([*SEVERAL, "--runs", "3"]) == 0
    said = "fastcifar: all/runs.jsonl: line 2 is torn or damaged, and is left out\n"
    assert capsys.readouterr() == (expected, said)
    assert LINES.read_text() == first + second + third


def test_a_line_that_another_process_is_about_to_write_is_left_to_it():
    assert main([*SEVERAL, "--runs", "2"]) == 0
    first, second = LINES.read_text().splitlines(keepends=True)
    LINES.write_text(first)
    with claimed(Path("all/.seed-1.lock")) as is_ours:
        assert is_ours and main([*SEVERAL, "--runs", "2"]) == 0
    assert LINES.read_text() == first
    assert main([*SEVERAL, "--runs", "2"]) == 0
    assert LINES.read_text() == first + second


def test_records_outlast_the_folders_of_their_weights(capsys, monkeypatch):
    assert main([*SEVERAL, "--runs", "2"]) == 0
    shutil.rmtree("all/seed-0")
    trained = fails(monkeypatch, NonFiniteLoss("never"))
    assert main([*SEVERAL, "--runs", "2"]) == 0
    assert trained == [] and capsys.readouterr().out.count("  n=2  ") == 2


def test_a_run_out_of_memory_is_counted_leaves_the_others_room_and_is_tried_again(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        made, init = [], Trainer.__init__

        def noted(trainer, *args, **options):
            init(trainer, *args, **options)
            gc.collect()
            assert not made or made[-1]() is None  # that of the run that failed is gone
            made.append(weakref.ref(trainer))

        patch.setattr(Trainer, "__init__", noted)
        trained = fails(patch, OutOfMemory("no memory for batch_size 64"), 1)
        assert main([*SEVERAL, "--runs", "3"]) == 5
        assert trained == [0, 1, 2] and len(made) == 2
    out, err = capsys.readouterr()
    assert "  n=2  " in out and out.endswith("  synthetic  1 of 3 failed\n") and err == ""
    assert lines()[1]["failed"] == "no memory for batch_size 64"
    assert json.loads(Path("all/unfinished.json").read_text())["seeds"] == [0, 1, 2]
    trained = fails(monkeypatch, None)
    assert main(["train", "--resume", "all", "--json"]) == 0
    assert trained == [1]
    printed = json.loads(capsys.readouterr().out)
    assert (len(printed["runs"]), printed["failed"], printed["diverged"]) == (3, 0, 0)
    assert not Path("all/unfinished.json").exists()


def test_a_run_that_diverged_is_counted_and_not_trained_again(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        fails(patch, NonFiniteLoss("the loss became nan"), 1)
        assert main([*SEVERAL, "--runs", "3", "--checkpoint-every", "1"]) == 3
    out = capsys.readouterr().out
    assert out.endswith("  synthetic  1 of 3 diverged\n") and not Path("all/seed-1").exists()
    trained = fails(monkeypatch, None)
    assert main(["train", "--resume", "all", "--quiet"]) == 3
    assert main([*SEVERAL, "--runs", "3"]) == 3
    assert capsys.readouterr().out == 2 * out and trained == []
    assert main([*SEVERAL, "--runs", "2", "--seed", "3"]) == 0  # its own runs are well
    assert capsys.readouterr().out.endswith("  synthetic  1 of 5 diverged\n")

    kept = lines()[1]  # as it was kept formerly
    Path("all/seed-1.diverged.json").write_text(json.dumps({"run": kept["run"], "diverged": kept["diverged"]}))
    LINES.unlink()
    assert main([*SEVERAL, "--runs", "5"]) == 3
    assert capsys.readouterr().out.endswith("  synthetic  1 of 5 diverged\n") and trained == [3, 4]


def test_a_failure_of_other_settings_is_none_of_these_runs(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        fails(patch, NonFiniteLoss("the loss became nan"), 0, 1, 2)
        assert main([*SEVERAL, "--runs", "3", "--optimizer.lr", "0.01"]) == 3
    assert main([*SEVERAL, "--runs", "2"]) == 0
    expected = capsys.readouterr().out.splitlines(keepends=True)[-1]
    assert main(["train", "--resume", "all", "--quiet"]) == 0
    assert capsys.readouterr().out == expected and "diverged" not in expected


@pytest.mark.parametrize(("error", "status"), [(OutOfMemory("no memory"), 5), (NonFiniteLoss("the loss is nan"), 3)])
def test_a_single_run_that_fails_leaves_nothing(capsys, monkeypatch, tmp_path, error, status):
    fails(monkeypatch, error, 0)
    assert main(SEVERAL) == status
    assert capsys.readouterr() == ("", f"fastcifar: {error}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_processes_of_one_launch_share_a_folder_and_others_have_their_own(monkeypatch, tmp_path):
    assert launch_name() is None
    command = [*MLP, "--epochs", "1", "--runs", "2"]
    trained = fails(monkeypatch, None)
    for launch, ranks in (("none", "01"), ("a", "01"), ("b", "0")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        for rank in ranks:
            monkeypatch.setenv("RANK", rank)
            monkeypatch.setenv("WORLD_SIZE", "2")
            assert main(command) == 0
    assert trained == [0, 1] * 3
    assert len(list((tmp_path / "runs").iterdir())) == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    of_one = launch_name()
    monkeypatch.setattr("os.getppid", lambda: 1)
    assert launch_name() not in (of_one, None)
