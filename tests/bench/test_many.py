"""Runs per hour of several processes: what is counted, and commands in turn."""

import json
import os
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import many
from bench.tables import read_results
from fastcifar.errors import UserError


def record(seconds, first):
    return {"process_seconds": seconds, "phases": {many.START: 1.0} if first else {}}


@given(
    firsts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seconds=st.integers(1, 9),
    more=st.integers(1, 20),
)
def test_the_rate_is_that_of_the_runs_behind_every_processs_first(firsts, seconds, more):
    ended = [(float(start), record(start, True)) for start in firsts]
    before = [(0.5, record(1, False))]  # of a process that began early
    later = [(max(firsts) + seconds * number, record(seconds, False)) for number in range(1, more + 1)]
    assert many.rate([*later, *ended, *before], len(firsts)) == (pytest.approx(3600 / seconds), max(firsts))


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(1.0, record(1, True))],
        [(1.0, record(1, False)), (2.0, record(1, False))],
        [(1.0, record(1, True)), (1.5, record(1, True)), (2.0, record(1, False))],  # of two processes
    ],
)
def test_too_few_runs_are_refused_and_those_of_fewer_or_more_processes(records):
    with pytest.raises(UserError, match="say no rate of 1"):
        many.rate(records, 1)


def test_every_way_is_a_command_in_turn_with_the_same_threads_in_all(tmp_path, monkeypatch, capsys):
    commands = []

    def train(command, cwd, **_):
        commands.append(command)
        out, runs = Path(command[command.index("--out") + 1]), int(command[command.index("--runs") + 1])
        assert Path(command[command.index("--recipe") + 1]).is_file()
        count = 1 if command[-4:-2] == ["--parallel", "1"] else 2
        for seed in range(runs):
            file = out / f"seed-{seed}/run.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(record(3.0, seed < count)))
            os.utime(file, (1000.0 + seed, 1000.0 + seed))
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(many, "subprocess", types.SimpleNamespace(run=train))
    monkeypatch.setattr(many, "cores", lambda: 4.0)
    assert many.main(["--rounds", "2", "--runs", "3", "--save", str(tmp_path / "results.jsonl")]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    names = [way.name for way in many.ways("cpu", [2])]
    expected = [f"{size}, {name}, round {n} of 2" for size in ("small", "large") for n in (1, 2) for name in names]
    assert told == expected
    one, parallel, ranks = commands[:3]
    assert one[one.index("--parallel") + 1 :] == ["1", "--threads", "4"]
    assert parallel[parallel.index("--parallel") + 1 :] == ["2", "--threads", "4"]
    assert "--nproc-per-node=2" in ranks and ranks[-2:] == ["--threads", "2"] and "--parallel" not in ranks
    results = list(read_results(tmp_path))
    assert [each["n"] for each in results] == [2] * 6 and all(each["rates"] == [3600.0, 3600.0] for each in results)
    assert "1.00 of one process; first runs after 3.0 s" in results[1]["value"]


def test_a_gpu_is_asked_for_more_at_once_and_for_no_ranks():
    assert [way.name for way in many.ways("cuda", [2, 8])] == ["one process", "--parallel 2", "--parallel 8"]
    assert "--threads" not in many.ways("cuda", [2])[1].command([], None)
    small, large = (many.recipe_of(name, "cuda") for name in ("small", "large"))
    assert small.epochs == large.epochs > 1 and small.network.widths[0] * 8 == large.network.widths[0]


@pytest.mark.parametrize("flags", [["--at-once", "1"], ["--runs", "1"], ["--rounds", "0"]])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(UserError, match=r"^allowed: 2 or more at once"):
        many.main(flags)


def test_a_recipe_by_name_with_other_epochs():
    recipe = many.recipe_of("warmstart-narrow", "cuda", 3)
    assert (recipe.name, recipe.epochs) == ("warmstart-narrow", 3)
    assert recipe.network == many.get_recipe("warmstart-narrow").network
    with pytest.raises(UserError, match="unknown recipe"):
        many.recipe_of("warmstart-narow", "cuda")


def test_the_small_network_is_a_davidnet_an_eighth_as_wide():
    small, large = (many.recipe_of(name, "cpu") for name in ("small", "large"))
    assert [8 * width for width in small.network.widths] == list(large.network.widths)
    assert (small.name, small.epochs, large.name, large.epochs) == ("small", 1, "large", 1)
