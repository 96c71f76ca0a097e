"""Two saved runs of the benchmarks are compared by their ratios to the reference workload."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import compare, main, read_run, saved_runs, table
from fastcifar.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def info(ratio, unstable=None, **changed):
    common = {"reference": "copy", "spread": 0.01, "full": False, "device": "cpu"}
    return {**common, "ratio": ratio, "unstable": unstable, **changed}


@pytest.fixture
def save(tmp_path):
    """Save a run of benchmarks, name to extra_info, in pytest-benchmark's form; its path."""

    def save(name, run):
        path = tmp_path / name
        benchmarks = [{"fullname": name, "extra_info": extra} for name, extra in run.items()]
        path.write_text(json.dumps({"machine_info": {}, "benchmarks": benchmarks}))
        return path

    return save


def verdicts(old, new, limit=1.1):
    return [row.verdict(limit) for row in compare(old, new)]


def test_the_turns_of_a_benchmark_are_one_by_their_median(save):
    turns = {f"a[kernel-turn{turn}]": info(ratio) for turn, ratio in enumerate((1.0, 1.1, 9.0))}
    run = read_run(save("run", {**turns, "b[turn0]": info(2.0), "b[turn1]": info(4.0), "c[x]": info(1.0)}))
    assert {name: found["ratio"] for name, found in run.items()} == {"a[kernel]": 1.1, "b": 3.0, "c[x]": 1.0}
    assert run["b"]["spread"] == pytest.approx(1 / 3)
    assert run["c[x]"]["spread"] == 0.01


def test_older_runs_compare_by_the_names_of_now(save):
    """Each is a name that a run had before kernels' benchmarks were one test."""
    renamed = {
        "test_augment.py::test_augment[turn1-kernel]": "augment-kernel",
        "test_cross_entropy.py::test_cross_entropy_forward_and_backward[turn1-compiled]": "cross_entropy-compiled",
        "test_flat_optimizer.py::test_flat_sgd_with_average[turn1-reference]": "flat_sgd-reference",
        "test_norm_act_pool.py::test_norm_act_pool_forward_and_backward[turn0-layer1-residual-kernel]": (
            "norm_act_pool-layer1-residual-kernel"
        ),
    }
    old = read_run(save("old", {f"bench/kernels/{name}": info(1.0) for name in renamed}))
    assert list(old) == [f"bench/test_kernels.py::test_kernel[{name}]" for name in renamed.values()]
    listed = [sys.executable, "-m", "pytest", "bench/test_kernels.py", "--collect-only", "-q"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    new = read_run(save("new", {name: info(1.0) for name in names if "::" in name}))
    assert old.keys() <= new.keys()


def test_a_verdict_is_by_the_change_of_the_ratio():
    old = {"a": info(1.0), "b": info(1.0), "c": info(1.0), "d": info(1.0)}
    new = {"a": info(1.09), "b": info(1.11), "c": info(0.8), "d": info(0.92)}
    assert verdicts(old, new) == ["same", "slower", "faster", "same"]
    assert verdicts(old, new, limit=1.05) == ["slower", "slower", "faster", "faster"]


def test_what_only_one_run_has_is_shown(save, capsys):
    old, new = save("old", {"a": info(1.0), "b": info(2.0)}), save("new", {"a": info(1.0), "c": info(3.0)})
    assert verdicts(read_run(old), read_run(new)) == ["same", "new", "gone"]
    assert main([str(old), str(new)]) == 0
    assert "gone" in capsys.readouterr().out


def test_a_stable_benchmark_past_the_limit_fails(save, capsys):
    old, new = save("old", {"a": info(1.0), "b": info(1.0)}), save("new", {"a": info(1.02), "b": info(1.2)})
    assert main([str(old), str(new)]) == 1
    assert "largest change of the 2 stable ones: 1.200 (b); allowed: 1.1" in capsys.readouterr().out
    assert main([str(old), str(new), "--limit", "1.25"]) == 0


def test_an_unstable_benchmark_is_shown_with_its_reason_and_never_fails(save, capsys):
    old, new = save("old", {"a": info(1.0, "it waits")}), save("new", {"a": info(3.0, "it waits")})
    assert main([str(old), str(new)]) == 0
    out = capsys.readouterr().out
    assert "slower (unstable)" in out
    assert "unstable: a: it waits" in out


def test_a_benchmark_twice_as_fast_counts_as_much_as_one_twice_as_slow():
    rows = compare({"a": info(1.0), "b": info(1.0)}, {"a": info(1.5), "b": info(0.5)})
    assert "0.500 (b)" in table(rows, 1.1)


@pytest.mark.parametrize("changed", [{"full": True}, {"device": "cuda"}, {"reference": "product"}])
def test_runs_that_are_not_alike_are_refused(changed):
    with pytest.raises(UserError, match="allowed: two runs alike"):
        compare({"a": info(1.0)}, {"a": info(1.0, **changed)})


def test_runs_with_nothing_in_common_are_refused():
    with pytest.raises(UserError, match="no benchmark in common"):
        compare({"a": info(1.0)}, {"b": info(1.0)})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmarks": [1]}', '{"benchmarks": []}'])
def test_a_file_that_holds_no_run_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run.json .*; allowed: "):
        read_run(path)


def test_a_run_without_ratios_is_refused(save):
    with pytest.raises(UserError, match="has no ratio for a; allowed: a run of bench/"):
        read_run(save("old", {"a": {}}))


def test_a_limit_that_nothing_could_meet_is_refused(save):
    with pytest.raises(UserError, match="--limit is 1; allowed: above 1"):
        main(["--limit", "1"])


def test_the_saved_runs_are_in_the_order_of_their_making(tmp_path):
    folder = tmp_path / "Linux"
    folder.mkdir()
    for place, name in enumerate(("0002_b.json", "0001_a.json", "compared.json")):
        (folder / name).write_text("{}")
        os.utime(folder / name, (place, place))
    assert [path.name for path in saved_runs(tmp_path)] == ["0002_b.json", "0001_a.json"]


def test_a_run_is_compared_with_the_newest_saved_one_that_is_another(tmp_path, save, monkeypatch, capsys):
    monkeypatch.setattr("bench.compare.SAVED", tmp_path)
    (tmp_path / "Linux").mkdir()
    for place, (name, ratio) in enumerate({"0001_a": 1.0, "0002_b": 5.0}.items()):
        path = save(f"Linux/{name}.json", {"a": info(ratio)})
        os.utime(path, (place, place))
    for given in ([], [str(path)], [str(tmp_path / "Linux/../Linux/0002_b.json")]):
        assert main(given) == 1
        assert "old: " + str(tmp_path / "Linux/0001_a.json") in capsys.readouterr().out


def test_too_few_saved_runs_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.compare.SAVED", tmp_path)
    with pytest.raises(UserError, match="holds 0 saved runs of the 2 needed; allowed: make bench saves one"):
        main([])


def test_a_benchmark_is_timed_beside_the_reference_and_compares_with_itself(tmp_path, capsys):
    path = tmp_path / "run.json"
    which = ["bench/test_kernels.py", "-k", "cross_entropy and not compiled"]
    command = [sys.executable, "-m", "pytest", "-q", *which, f"--benchmark-json={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    run = read_run(path)
    assert len(run) == 2
    for found in run.values():
        assert found["ratio"] > 0
        assert found["unstable"] is None
        assert found["reference"] == "product"
        assert set(found["reference_seconds"]) == {"product", "copy", "convolution"}
    assert main([str(path), str(path)]) == 0
    assert "largest change of the 2 stable ones: 1.000" in capsys.readouterr().out
