"""The campaign runs whole on a CPU, so that it cannot be broken on the day that a GPU is at hand."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from bench.campaign import training
from bench.campaign.__main__ import PARTS
from bench.campaign.campaign import Campaign, run_part, seconds_per_call
from bench.campaign.summary import MOST_LINES, summary
from fastcifar.errors import NonFiniteLoss

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Campaign(tmp_path, torch.device("cpu"), True, None, None, time.monotonic() + 60)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole campaign, in processes that find none of the packages that a machine without a network may lack."""
    out, absent = tmp_path_factory.mktemp("campaign"), tmp_path_factory.mktemp("absent")
    for name in ("tyro", "pooch", "pytest", "pytest_benchmark"):
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is absent')\n")
    environment = {**os.environ, "PYTHONPATH": str(absent), "TMPDIR": str(absent)}
    command = [
        sys.executable,
        "-m",
        "bench.campaign",
        "--device",
        "cpu",
        "--tiny",
        "--budget",
        "300",
        "--out",
        str(out),
    ]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True), out


def test_the_whole_campaign_runs_on_a_cpu(finished):
    done, out = finished
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert [record["traceback"] for record in records if "error" in record] == []
    assert {record["part"] for record in records} == set(PARTS)
    assert [record for record in records if record.get("what") == "failed"] == []


def test_it_leaves_no_more_files_than_come_back_from_a_lent_machine(finished):
    _, out = finished
    assert len(list(out.glob("*.jsonl"))) <= 8


def test_its_closing_table_fits_a_screen(finished):
    done, _ = finished
    assert len(done.stdout.partition("\n\n")[2].splitlines()) <= MOST_LINES


def test_every_kernel_is_right_at_every_shape(finished):
    _, out = finished
    records = [json.loads(line) for line in (out / "kernels.jsonl").read_text().splitlines()]
    errors = {record["shape"]: record["worst"] for record in records if record["what"] == "error"}
    assert len(errors) == 18
    assert max(errors.values()) < 0.02  # bfloat16 keeps 8 bits


def test_a_part_that_fails_is_recorded_and_told(campaign, capsys):
    def failing(_):
        yield {"what": "before"}
        raise ValueError("no such kernel")

    assert run_part(campaign, "env", failing, 1.0) == 1
    kept = [json.loads(line) for line in campaign.path("env").read_text().splitlines()]
    assert kept[1]["error"] == "ValueError: no such kernel"
    assert "in failing" in kept[1]["traceback"]
    assert [record["what"] for record in campaign.records("env")] == ["before"]
    assert "env: failed, ValueError: no such kernel" in capsys.readouterr().out


def test_a_later_call_goes_on_where_an_earlier_one_stopped(campaign):
    part, _ = PARTS["davidnet"]
    for _ in range(2):
        run_part(campaign, "davidnet", part, 60.0)
    assert [record["seed"] for record in campaign.records("davidnet")] == [0, 1, 2, 3]


def test_kernels_that_are_known_are_not_sought_again(campaign):
    part, _ = PARTS["kernels"]
    first = run_part(campaign, "kernels", part, 60.0)
    assert first == 18 + 2 * 18
    broken = campaign.records("kernels")
    broken[-1]["reference"] = {"error": "out of memory"}
    campaign.path("kernels").write_text("".join(json.dumps(record) + "\n" for record in broken))
    assert run_part(campaign, "kernels", part, 60.0) == 1, "what failed is tried again"
    assert run_part(campaign, "kernels", part, 60.0) == 0


def test_a_recipe_whose_steps_fail_leaves_the_others_their_turn(campaign, monkeypatch):
    real = training._step_seconds

    def fail_once(trainer):
        if trainer.recipe.network == "davidnet":
            raise NonFiniteLoss("the loss became nan")
        return real(trainer)

    monkeypatch.setattr(training, "_step_seconds", fail_once)
    run_part(campaign, "steps", PARTS["steps"][0], 60.0)
    found = [(record["what"], record["recipe"]) for record in campaign.records("steps")]
    assert found[0] == ("failed", "davidnet") and ("step", "speedrun94") in found
    assert "  davidnet: failed, the loss became nan" in summary(campaign, ["steps"])


def test_a_process_is_waited_for_until_the_last_moment_and_no_longer(campaign):
    now = time.monotonic()
    campaign.ends = now + 100
    assert campaign.patience(60.0) == pytest.approx(200, abs=1)
    campaign.ends = now - 5
    assert campaign.patience(60.0) == 60
    campaign.stops = now + 20
    assert campaign.patience(60.0) == pytest.approx(20, abs=1)
    campaign.stops = now - 20
    assert campaign.patience(60.0) == 1


def test_programs_in_turn_go_on_from_the_round_that_is_next(campaign, monkeypatch):
    seeds = []

    class InTurn:
        """A worker without a process."""

        def __init__(self, *_):
            self.facts = {"batch_size": 1}

        def run(self, steps, seed, timeout):
            seeds.append(seed)
            return {"steps": steps}

        def close(self):
            pass

    monkeypatch.setattr("bench.peers.race.Worker", InTurn)
    part, _ = PARTS["peers"]
    run_part(campaign, "peers", lambda campaign: itertools.islice(part(campaign), 4), 60.0)
    assert seeds == [0, 0, 1, 1]
    for _ in range(2):
        run_part(campaign, "peers", part, 60.0)
    assert seeds == [0, 0, 1, 1, 1, 1, 2, 2], "the first of each call is a warm-up"
    records = campaign.records("peers")
    assert [record["warm_up"] for record in records] == [True, True, False, False] * 2


def test_the_summary_of_many_results_is_cut_and_says_so(campaign):
    def many(_):
        for number in range(100):
            yield {"what": "note", "number": number}

    run_part(campaign, "parallel", many, 1.0)
    lines = summary(campaign, ["parallel"])
    assert len(lines) == MOST_LINES
    assert lines[-1] == "... and 42 lines more in the files"


def test_the_time_of_a_call_is_that_of_one_in_a_row():
    clock = iter(range(1000))
    calls = []
    seconds = seconds_per_call(lambda: calls.append(next(clock)), torch.device("cpu"), calls=10, repeats=3)
    assert len(calls) == 2 + 3 * 10
    assert 0 < seconds < 1


def test_an_unknown_part_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "bench.campaign", "--out", str(tmp_path / "new"), "--only", "env,kernel"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.campaign: --only names kernel; allowed: env, kernels")
    assert not (tmp_path / "new").exists()
