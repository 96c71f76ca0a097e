"""Other people's programs and ours in turn, without a process."""

import json
import os
import signal
from typing import ClassVar

import pytest

from bench.peers import PeerError, race
from bench.peers.__main__ import choose, main
from bench.peers.programs import OURS, PROGRAMS
from bench.peers.race import Conditions, Race
from bench.program import run_program
from fastcifar.errors import UserError


def result_of(seconds_a_step, own_seconds=None, train_seconds=None, accuracy=None):
    return {
        "step_seconds": seconds_a_step,
        "own_seconds": own_seconds,
        "train_seconds": train_seconds,
        "accuracy": accuracy,
    }


class InTurn:
    """A worker without a process: a step of theirs takes 8 s, of ours 1 s; it notes every run of the class."""

    turns: ClassVar[list] = []
    started, accuracy = 0.0, 0.94

    def __init__(self, peer, checkout, data, device, cache, timeout):
        if peer == "cifar10-speedrun":
            raise PeerError("cifar10-speedrun: no such text", "Traceback: no such text")
        self.peer, self.ours = peer, peer.startswith(OURS)
        self.facts = {"batch_size": 500 if self.ours else 2000, "dtype": "bfloat16"}

    def run(self, steps=None, seed=0, timeout=None):
        if self.peer == "hlb-CIFAR10" and seed == 2:
            raise PeerError("hlb-CIFAR10: it failed in round 2", "Traceback: it failed")
        self.turns.append(("ours" if self.ours else self.peer, steps, seed))
        seconds = [1.0 if self.ours else 8.0] * (steps or 0)
        return {**result_of(seconds, 8.0, 2.0, self.accuracy), "steps": steps or 75, "seconds": sum(seconds)}

    def close(self):
        self.turns.append((self.peer, "closed"))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.setattr(race, "Worker", InTurn)
    monkeypatch.setattr(InTurn, "turns", [])
    return InTurn.turns


def last(outcomes):
    return [*outcomes][-1]


def run_main(tmp_path, capsys, *options):
    """Exit code, table by the first word of its lines, saved records and what was told, of a call without pauses."""
    save = tmp_path / "results.jsonl"
    code = main(["--checkouts", str(tmp_path), "--gap", "0", "--save", str(save), *options])
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines()}
    return code, rows, [json.loads(line) for line in save.read_text().splitlines()], err


def test_a_program_and_ours_run_in_turn_after_one_unmeasured_run_of_each(turns, tmp_path, capsys):
    peer = "airbench94_muon"
    code, rows, records, _ = run_main(tmp_path, capsys, "--only", peer, "--steps", "3", "--rounds", "2")
    assert code == 0
    assert turns[:6] == [(name, steps, seed) for seed, steps in ((0, 1), (1, 3), (2, 3)) for name in (peer, "ours")]
    assert [turn[1] for turn in turns[6:]] == ["closed", "closed"]
    (record,) = records
    assert (record["table"], record["n"], record["factors"]) == ("peers", 2, [2.0, 2.0]), "for an image of each"
    assert [run["round"] for run in record["runs"]["theirs"]] == [1, 2]
    assert record["command"] == f"python -m bench.peers --checkouts DIR --only {peer} --device cpu --steps 3 --rounds 2"
    assert record["row"]["theirs"] == "250 images/s (batch 2000, bfloat16)"
    assert "2.00 to 2.00" in rows[peer] and "500 images/s (batch 500, bfloat16)" in rows[peer]


def test_one_that_fails_is_told_and_the_others_go_on(turns, tmp_path, capsys):
    peers = "cifar10-speedrun,hlb-CIFAR10,airbench94_muon"
    code, rows, records, err = run_main(tmp_path, capsys, "--only", peers, "--steps", "1", "--rounds", "3")
    assert code == 1
    assert [(record["table"], record["n"]) for record in records] == [(None, 0), ("peers", 1), ("peers", 3)]
    assert records[0]["failures"] == [
        {"side": "theirs", "error": "cifar10-speedrun: no such text", "traceback": "Traceback: no such text"}
    ]
    assert len(records[0]["runs"]["ours"]) == 3 and records[0]["runs"]["theirs"] == []
    assert "cifar10-speedrun: no such text" in rows["cifar10-speedrun"]
    assert "hlb-CIFAR10, theirs: hlb-CIFAR10: it failed in round 2" in err


@pytest.mark.parametrize("options", [("--whole",), ("--cold",)])
def test_what_was_finished_is_saved_where_a_signal_ends_it(turns, tmp_path, capsys, monkeypatch, options):
    """In the process that signals go to; the third round's second run hears of one."""
    runs = []

    def run(worker, *args, run=InTurn.run, **kwargs):
        if len(runs) == 5 + 2 * ("--whole" in options):
            os.kill(os.getpid(), signal.SIGTERM)
        runs.append(worker)
        return run(worker, *args, **kwargs)

    monkeypatch.setattr(InTurn, "run", run)
    words = ["--only", "airbench94_muon,hlb-CIFAR10", "--rounds", "4", *options]
    with pytest.raises(SystemExit) as exit:
        run_program("bench.peers", lambda: run_main(tmp_path, capsys, *words)[0])
    assert exit.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines()[-1] == "bench.peers: interrupted by SIGTERM"
    (record,) = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {side: len(found) for side, found in record["runs"].items()} == {"theirs": 3, "ours": 2}
    assert (record["n"], record["row"]["program"]) == (2, "airbench94_muon")
    assert turns[-1][1] == "closed"


def test_whole_trainings_are_those_of_our_recipe_with_the_same_aim(turns, tmp_path):
    outcomes = {
        peer: last(race.race(peer, tmp_path, Conditions(device="cuda", gap=0), rounds=1))
        for peer in ("airbench94_muon", "cifar10-fast", "warm_start")
    }
    assert [outcome.recipe for outcome in outcomes.values()] == ["speedrun94", "davidnet", "warm_start"]
    assert outcomes["airbench94_muon"].factors() == [1.0]
    assert outcomes["cifar10-fast"].factors() == [4.0], "it leaves the evaluation out, and so does train_seconds"
    assert outcomes["warm_start"].measured == "training step" and ("warm_start", 200, 1) in turns
    assert outcomes["cifar10-fast"].row()["theirs"] == "8.00 s, 94.00% (bfloat16)"


@pytest.mark.parametrize(("accuracy", "counts"), [(0.9375, True), (0.936, False)])
def test_a_time_counts_only_where_the_accuracy_is_its_own(turns, tmp_path, capsys, monkeypatch, accuracy, counts):
    monkeypatch.setattr(InTurn, "accuracy", accuracy)
    peer = "airbench94_muon"
    code, rows, (record,), _ = run_main(tmp_path, capsys, "--only", peer, "--whole")
    assert (code, record["table"], record["factors"]) == ((0, "peers", [1.0, 1.0]) if counts else (1, None, []))
    row = record["row"]
    assert row["theirs"] == f"8.00 s, {accuracy:.2%} (bfloat16)" and len(record["runs"]["theirs"]) == 2
    missed = "left out: 93.60% is not its own 94.01%"
    assert (row["our factor"], row["spread"]) == (("1.00", "1.00 to 1.00") if counts else ("-", missed))
    assert record["missed"] == ("" if counts else missed) and row["spread"] in rows[peer]
    assert record["command"] == f"python -m bench.peers --checkouts DIR --only {peer} --device cpu --whole"
    assert [turn[:2] for turn in turns[:4]] == [(peer, 1), ("ours", 1), (peer, None), ("ours", None)]


def test_steps_need_no_accuracy(turns, tmp_path, monkeypatch):
    monkeypatch.setattr(InTurn, "accuracy", 0.1)
    outcome = last(race.race("airbench94_muon", tmp_path, Conditions(steps=2, gap=0), rounds=1))
    assert outcome.factors() == [2.0] and not outcome.missed


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.rival])
def test_every_peer_that_is_trained_whole_has_an_accuracy_to_reach(name):
    assert 0.93 < (PROGRAMS[name].accuracy or 0) < 0.97


def test_a_cold_start_is_the_first_run_of_a_fresh_process(turns, tmp_path, capsys):
    peers = "cifar10-speedrun,airbench94_muon"
    code, rows, records, _ = run_main(tmp_path, capsys, "--cold", "--only", peers)
    assert code == 1, "cifar10-speedrun failed"
    assert [turn[1] for turn in turns] == [None, "closed"] * 3
    speedrun, airbench = records
    assert speedrun["n"] == 0 and airbench["n"] == 1
    assert all(airbench["runs"][side][0]["process_seconds"] > 0 for side in race.SIDES)
    assert airbench["command"].endswith("--only airbench94_muon --device cpu --cold")
    assert "cold start" in rows["airbench94_muon"]


def test_the_factor_is_the_median_of_the_rounds_ratios():
    outcome = Race("airbench94_muon", "equal", "training step")
    outcome.facts = {"theirs": {"batch_size": 2000, "dtype": "x"}, "ours": {"batch_size": 500, "dtype": "y"}}
    outcome.runs = {
        "theirs": [{"round": 1, **result_of([4.0, 4.0, 9.0])}, {"round": 2, **result_of([6.0])}],
        "ours": [{"round": 1, **result_of([0.5])}, {"round": 2, **result_of([0.5, 0.5])}],
    }
    assert outcome.factors() == pytest.approx([2.0, 3.0])
    row = outcome.row()
    assert (row["our factor"], row["n"], row["spread"]) == ("2.50", "2", "2.00 to 3.00")
    assert race.table([]) == ""


def test_a_round_that_one_side_did_not_finish_is_in_no_factor():
    """A cold start that fails is tried again in the next round."""
    outcome = Race("airbench94_muon", "speedrun94", "cold start")
    outcome.runs = {
        "theirs": [{"round": 2, "process_seconds": 100.0, "accuracy": None}],
        "ours": [{"round": number, "process_seconds": taken, "accuracy": None} for number, taken in ((1, 10), (2, 50))],
    }
    assert outcome.factors() == [2.0]


def test_peers_are_chosen_by_name_and_by_what_is_there(tmp_path):
    checkouts = tmp_path / "of airbench"
    (checkouts / "cifar10-airbench").mkdir(parents=True)
    assert choose(checkouts, None, "cpu", False)[:2] == ["airbench94_muon", "airbench95"]
    assert choose(checkouts, None, "cuda", True) == ["airbench94_muon"], "the others do not compile for minutes"
    assert choose(tmp_path, "warm_start, hlb-CIFAR10", "cpu", False) == ["warm_start", "hlb-CIFAR10"]
    with pytest.raises(UserError, match=r"peer is 'hlb'; allowed: airbench94_muon, .*, or fastcifar:RECIPE"):
        choose(tmp_path, "hlb", "cpu", False)
    with pytest.raises(UserError, match=r"holds none of the checkouts; allowed: a folder with any of cifar10-airbench"):
        choose(tmp_path, None, "cpu", False)
    (tmp_path / "cifar10-fast").mkdir()
    assert choose(tmp_path, None, "cpu", False) == ["cifar10-fast", "cifar10-fast-bfloat16"]
    assert choose(tmp_path, None, "cuda", False) == ["cifar10-fast"], "on CUDA the other is the same program"
