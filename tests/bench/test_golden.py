"""What is computed, compared between two checkouts: this one with itself, and with a copy that was changed."""

import math
import re
import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import golden, golden_worker
from bench.golden import Checkouts, compare_all, difference, digest, make_view, names_in_base, time_steps
from bench.record import append
from bench.resident import ROOT, Resident
from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES

TINY = RECIPES["warmstart-mlp"]


@pytest.fixture(scope="module")
def with_itself():
    with Checkouts(ROOT, threads=1) as checkouts:
        yield checkouts


@pytest.fixture
def copied(tmp_path):
    """A copy of the package in a folder of its own."""
    for name in ("fastcifar", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    return tmp_path / "copy"


def run_golden(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench.golden", *map(str, arguments)])
    return golden.main()


def test_a_checkout_computes_what_it_computes(with_itself, capsys):
    assert compare_all(with_itself, [TINY], ("quick", "steps"), None) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    own = golden.own_dtype(TINY)
    expected = [*(f"quick {dtype}" for dtype in sorted({"float32", own}, reverse=True)), f"steps {own}"]
    assert [line.removeprefix("warmstart-mlp ").split(":")[0] for line in lines] == expected
    assert all(re.search(r": equal, \d+ steps, \d+ tensors, sha256 [0-9a-f]{64}$", line) for line in lines)
    assert " equal, 20 steps, 19 tensors," in lines[-1], "10 epochs, 3 layers, and what they came to"
    assert last.startswith(f"{len(lines)} comparisons, all equal, in ")


def test_a_changed_constant_is_found_and_named_and_its_checkout_left_alone(copied, monkeypatch, capsys):
    """A constant of a kernel: an installation in place would give this checkout's kernels to the copy."""
    changed = copied / "kernels" / "cross_entropy.py"
    text = changed.read_text()
    assert text.count("return gradient.mul_(scale)") == 1
    changed.write_text(text.replace("gradient.mul_(scale)", "gradient.mul_(scale * 1.01)"))
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    status = run_golden(
        monkeypatch, "--base", copied, "--recipe", "warmstart-mlp", "--only", "quick", "--dtype", "float32"
    )
    out = capsys.readouterr().out
    assert status == 1
    assert (
        f"base: commit unknown, {copied / 'fastcifar' / '__init__.py'}, {copied / 'kernels' / '__init__.py'}\n" in out
    )
    line = next(line for line in out.splitlines() if line.startswith("warmstart-mlp"))
    found = re.fullmatch(
        r"warmstart-mlp quick float32: DIFFERENT, (\d+) of 24 tensors: first train_loss, train_accuracy and "
        r"test_accuracy of epoch 1, by up to (\S+); most (.+), by up to (\S+)",
        line,
    )
    assert found, line
    assert int(found[1]) >= 6 and 0 < float(found[2]) <= float(found[4]) < math.inf
    assert "1 comparisons, 1 different, in" in out
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, monkeypatch, copied):
    with pytest.raises(UserError, match=rf"^{tmp_path} has no fastcifar/__init__.py; allowed: the folder of a git .+$"):
        run_golden(monkeypatch, "--base", tmp_path)
    shutil.rmtree(copied / "kernels")
    with pytest.raises(UserError, match=r"has no kernels/__init__.py"):
        run_golden(monkeypatch, "--base", copied)
    with pytest.raises(UserError, match=r"has no fastcifar/__init__.py"):
        run_golden(monkeypatch, "--base", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "4"], "--rounds is 4; allowed: 5 or more"),
        (["--threads", "0"], "--threads is 0; allowed: 1 or more"),
        (["--save", "x.jsonl"], "--save is for times; allowed: with --only time"),
    ],
)
def test_flags_out_of_range_are_refused_before_any_work(flags, message, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=message):
        run_golden(monkeypatch, "--base", tmp_path, *flags)


def test_a_package_that_cannot_be_imported_is_told_in_one_line(copied, tmp_path):
    (copied / "fastcifar" / "start.py").write_text("raise RuntimeError('half written')")
    worker = Resident("base", "bench.golden_worker", [make_view(copied, tmp_path / "view")])
    with worker, pytest.raises(UserError, match=r"^base died with exit code 1$") as caught:
        worker.ask({"checkout": str(copied), "threads": 1})
    assert "half written" in caught.value.traceback


def test_recipes_that_the_base_lacks_are_told(capsys):
    assert names_in_base(["old", "new", "older"], ["older", "old"]) == ["old", "older"]
    assert capsys.readouterr().out == "not in the base, so not compared: new\n"
    with pytest.raises(UserError, match=r"^the base has no recipe new, newer; allowed: older, old$"):
        names_in_base(["new", "newer"], ["older", "old"])


def test_what_cannot_be_trained_is_no_equal(with_itself, monkeypatch, capsys):
    monkeypatch.setattr(golden, "QUICK_IMAGES", 5)
    assert compare_all(with_itself, [TINY], ["quick"], "float32") == 1
    told = capsys.readouterr()
    assert "warmstart-mlp quick float32: DIFFERENT, base: batch_size is 128; " in told.out
    assert "; this: batch_size is 128; " in told.out and "Traceback" in told.err
    assert with_itself.compare(TINY, "steps", "float32")[1], "the processes are ready for the next"


def test_steps_are_timed_in_turn(with_itself, tmp_path, monkeypatch):
    asked = []
    for side, worker in with_itself.workers.items():

        def ask(request, timeout=None, side=side, ask=worker.ask):
            asked.append(side)
            return ask(request, timeout)

        monkeypatch.setattr(worker, "ask", ask)
    step, whole = time_steps(with_itself, TINY, "float32", rounds=5)
    assert asked == ["base", "this", "this", "base"] * 3, "a round that is not counted, and five"
    count = TINY.epochs * (50_000 // TINY.batch_size)
    for record, times in ((step, 1), (whole, count)):
        assert record["n"] == len(record["seconds"]) == len(record["base_seconds"]) == 5
        assert record["seconds"] == pytest.approx([times * seconds for seconds in step["seconds"]])
        ratios = [this / base for this, base in zip(record["seconds"], record["base_seconds"], strict=True)]
        assert min(ratios) > 0
        assert record["spread"] == f"{min(ratios):.3f} to {max(ratios):.3f}"
        assert record["value"] == f"{sorted(ratios)[2]:.3f} of its time"
    assert append(tmp_path / "results.jsonl", step, "cpu")["command"].startswith("python -m bench.golden --base DIR")


def test_a_worker_checks_what_it_imported(tmp_path):
    with pytest.raises(UserError, match=rf"was imported; allowed: files in {tmp_path}"):
        golden_worker.load({"checkout": str(tmp_path), "threads": 1})


TENSORS = st.dictionaries(st.text(max_size=3), st.lists(st.floats(width=32), min_size=1, max_size=4), min_size=1)


@given(TENSORS, st.data())
def test_every_bit_counts(values, data):
    base = {name: torch.tensor(value) for name, value in values.items()}
    this = {name: torch.tensor(value) for name, value in reversed(values.items())}
    assert difference(base, this) is None and digest(base) == digest(this)
    name = data.draw(st.sampled_from(list(values)))
    place, bit = data.draw(st.integers(0, len(values[name]) - 1)), data.draw(st.integers(0, 31))
    this[name].view(torch.int32)[place] ^= -(1 << 31) if bit == 31 else 1 << bit
    apart = golden._apart(base[name], this[name])
    assert difference(base, this) == (
        f"1 of {len(base)} tensors: first {name}, by up to {apart:.3g}; most {name}, by up to {apart:.3g}"
    )
    assert digest(base) != digest(this)


def test_differences_are_named_by_the_first_and_the_largest():
    base = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}
    assert difference(base, {"a": torch.zeros(2), "b": torch.tensor([0, 0.5]), "c": torch.tensor([2.0, -3])}) == (
        "2 of 3 tensors: first b, by up to 0.5; most c, by up to 3"
    )
    one_apart = "1 of 3 tensors: first b, by up to inf; most b, by up to inf"
    for other in (torch.zeros(3), torch.zeros(2).double(), torch.tensor([0, math.nan])):
        assert difference(base, {**base, "b": other}) == one_apart
    assert difference(base, {"a": base["a"], "d": base["b"]}) == (
        "3 tensors are on one side alone: first b, in the base"
    )
    assert difference({}, base) == "3 tensors are on one side alone: first a, in this checkout"
