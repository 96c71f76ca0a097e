"""Runs that are kept in folders are found, those that belong together are taken together, and no others."""

import dataclasses
import json
import math
import os
import re
import statistics
import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcifar.errors import Notice, UserError
from fastcifar.recipes import Recipe, change
from fastcifar.record import DeviceFacts, Versions
from fastcifar.report.runs import Runs, read_runs
from fastcifar.report.summary import heading, row_names, summary_data, summary_lines, summary_tables

ACCURACIES = [0.941, 0.9395, 0.9425, 0.938]


@pytest.fixture
def write(new_record, tmp_path):
    """Writes the record of a run to a file below an empty folder."""

    def write(path, **fields):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(new_record(**fields).to_json()))
        return file

    return write


@pytest.fixture
def lines(new_record, tmp_path):
    """Writes the outcomes of several runs: an accuracy or the reason of a failure for each seed."""

    def lines(path, outcomes, **fields):
        file = tmp_path / path / "runs.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as opened:
            for seed, found in outcomes:
                record = new_record(seed=seed, tta_accuracy=0.5, **fields).to_json()
                asked = {name: record[name] for name in ("recipe", "subset", "init", "dataset", "device", "seed")}
                failed = {"seed": seed, "failed": str(found), "run": asked}
                opened.write(json.dumps(failed if isinstance(found, str) else record | {"tta_accuracy": found}) + "\n")
        return file

    return lines


def accuracies(runs):
    return {record.seed: record.tta_accuracy for record in runs.records}


def only(*folders):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = read_runs(*folders)
    (runs,) = kept.groups
    assert (kept.unreadable, kept.unfinished) == (0, 0)
    return runs


def test_several_runs_are_those_of_the_lines_and_of_folders_without_one(write, lines, tmp_path):
    lines("out", [(0, 0.9), (1, "the loss became NaN"), (2, "out of memory"), (2, 0.92), (3, "killed")])
    write("out/seed-0/run.json", seed=0, tta_accuracy=0.9)
    write("out/seed-3/run.json", seed=3, tta_accuracy=0.93)  # which was finished before its line was written
    write("out/seed-4/run.json", seed=4, tta_accuracy=0.94)
    (tmp_path / "out/seed-5.diverged.json").write_text(json.dumps({"diverged": "NaN", "run": {"seed": 5}}))
    runs = only(tmp_path / "out")
    assert accuracies(runs) == {0: 0.9, 2: 0.92, 3: 0.93, 4: 0.94}
    assert [(each.seed, each.reason) for each in runs.failed] == [(1, "the loss became NaN"), (5, "NaN")]
    assert only(tmp_path) == runs == only(tmp_path, tmp_path / "out")
    assert runs.folders == tuple(tmp_path / f"out/seed-{seed}" for seed in (0, 2, 3, 4))


def test_a_single_run_and_single_runs_in_folders_of_one_are_summarized(write, tmp_path):
    for seed, accuracy in enumerate(ACCURACIES):
        write(f"runs/davidnet-{seed}/run.json", seed=seed, tta_accuracy=accuracy)
        write(f"runs/davidnet-{seed}/checkpoints/run.json", seed=9)
    assert accuracies(only(tmp_path / "runs/davidnet-2")) == {2: 0.9425}
    runs = only(tmp_path / "runs")
    assert runs.folders == tuple(tmp_path / f"runs/davidnet-{seed}" for seed in range(4))
    assert accuracies(runs) == dict(enumerate(ACCURACIES))
    summary, values = runs.summary(), ACCURACIES
    assert (summary.mean, summary.std) == (statistics.fmean(values), statistics.stdev(values))
    found = runs.at_target(0.94)
    t = (statistics.fmean(values) - 0.94) / (statistics.stdev(values) / 2)
    closed = 0.5 - (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3)) / math.pi  # df 3
    assert (found.n, found.reached, found.share, found.test.t) == (4, 2, 0.5, pytest.approx(t))
    assert found.test.p == pytest.approx(closed)


def test_each_arm_of_an_experiment_has_a_row(write, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/settings.json").write_text("{}")
    for seed in (0, 1):
        for arm in ("1000/warm", "full"):
            start = {"mode": "warm", "source": f"x/{seed}", "sha256": str(seed), "seed": seed, "shrink": 1.0}
            write(f"kept/{arm}/seed-{seed}.json", seed=seed, init=start, tta_accuracy=0.9 + seed / 100)
    (tmp_path / "kept/full/seed-2.json").write_text('{"diverged": "NaN"}')
    groups = read_runs(tmp_path / "kept").groups
    found = [(runs.name, len(runs.records), len(runs.failed)) for runs in groups]
    assert found == [("1000/warm", 2, 0), ("full", 2, 1)]
    assert groups[0].folders == tuple(tmp_path / f"kept/1000/warm/seed-{seed}" for seed in (0, 1))
    assert [runs.name for runs in read_runs(tmp_path).groups] == ["kept/1000/warm", "kept/full"]
    assert only(tmp_path / "kept/full").name == "full"
    two = read_runs(tmp_path / "kept/full", tmp_path / "kept/1000").groups
    assert [runs.name for runs in two] == [f"{tmp_path}/kept/full", f"{tmp_path}/kept/1000/warm"]


def test_a_failed_run_of_an_arm_is_no_other_arms_though_all_have_one_recipe(write, new_record, tmp_path):
    recipe = {"recipe": dataclasses.asdict(new_record().recipe)}
    (tmp_path / "settings.json").write_text("{}")
    for seed in (0, 1):
        write(f"cold/seed-{seed}.json", seed=seed)
        for arm, word in (("warm", "diverged"), ("further", "not trained")):
            (tmp_path / arm).mkdir(exist_ok=True)
            (tmp_path / f"{arm}/seed-{seed}.json").write_text(json.dumps({word: "NaN", "run": recipe}))
    found = read_runs(tmp_path)
    assert [(runs.name, len(runs.records), len(runs.failed)) for runs in found.groups] == [
        ("cold", 2, 0),
        ("warm", 0, 2),
    ]
    assert found.unreadable == 0


DIFFERENT = {
    "recipe.optimizer.lr": lambda run: {"recipe": change(run.recipe, {"optimizer.lr": 0.123})},
    "recipe.network.kind": lambda run: {"recipe": change(run.recipe, {"network": "mlp", "augment.early_crops": []})},
    "dataset.sha256": lambda run: {"dataset": dataclasses.replace(run.dataset, sha256="1" * 64)},
    "dataset.holdout": lambda run: {"dataset": dataclasses.replace(run.dataset, holdout=5000)},
    "subset.size": lambda run: {"subset": {"size": 100, "seed": 0}},
    "init.mode": lambda run: {"init": {"mode": "warm", "sha256": "0"}},
    "network": lambda run: {"network": "own"},
    "dtype": lambda run: {"dtype": "bfloat16"},
    "device.type": lambda run: {"device": DeviceFacts("cuda", "a GPU")},
    "versions.torch": lambda run: {"versions": Versions("3.12", "9.9")},
}
"""What may differ between runs that do not belong together, by the field that says so."""


@pytest.mark.parametrize("field", DIFFERENT)
def test_runs_that_do_not_belong_together_are_apart_and_say_how(field, write, new_record, tmp_path):
    fields = DIFFERENT[field](new_record())
    for seed in range(2):
        write(f"a/{seed}/run.json", seed=seed, tta_accuracy=0.9)
        write(f"b/{seed}/run.json", seed=seed, tta_accuracy=0.1, **fields)
    one, other = read_runs(tmp_path).groups
    assert (one.summary().mean, other.summary().mean) == (0.9, 0.1)
    assert one.name != other.name or field in {**one.differs, **other.differs}


def test_where_it_was_found_and_on_which_processor_it_ran_does_not_keep_runs_apart(write, new_record, tmp_path):
    elsewhere = dataclasses.replace(new_record().dataset, source="elsewhere")
    write("a/run.json", seed=0)
    write("b/run.json", seed=1, dataset=elsewhere, device=DeviceFacts("cpu", "a slide\x1brule"))
    runs = only(tmp_path)
    assert len(runs.records) == 2
    assert r"times are of several devices: a slide\x1brule, an abacus" in summary_lines(runs)


def test_times_with_several_numbers_of_threads_are_said(write, tmp_path):
    two, three = "times are with 1 and 2 threads", "times are with 1, 2 and 4 threads"
    for seed, (threads, said) in enumerate(((2, []), (1, [two]), (1, [two]), (4, [three]))):
        write(f"{seed}/run.json", seed=seed, device=DeviceFacts("cpu", "an abacus", threads))
        assert [line for line in summary_lines(only(tmp_path)) if line.startswith("times are")] == said


def test_a_single_run_may_be_in_a_folder_of_any_name(write, tmp_path):
    write("seed-7/run.json", seed=0, tta_accuracy=0.5)
    assert accuracies(only(tmp_path)) == accuracies(only(tmp_path / "seed-7")) == {0: 0.5}


def test_of_two_runs_of_a_seed_the_later_counts(write, tmp_path):
    write("b/run.json", seed=0, tta_accuracy=0.8, started="2025-01-31T12:00:00Z")
    write("a/run.json", seed=0, tta_accuracy=0.9, started="2025-02-01T12:00:00Z")
    with pytest.warns(Notice, match="^davidnet: 1 run is left out, of seeds that were trained again; the later"):
        (runs,) = read_runs(tmp_path).groups
    assert accuracies(runs) == {0: 0.9} and runs.folders == (tmp_path / "a",)


def test_a_failed_run_is_counted_where_it_belongs(lines, tmp_path):
    lines("a", [(0, 0.9), (1, "NaN")])
    lines("b", [(0, 0.1), (2, "NaN")], recipe=change(Recipe(), {"optimizer.lr": 0.5}))
    lines("c", [(3, "NaN"), (4, "NaN")], recipe=change(Recipe(), {"optimizer.lr": 9.0}))
    groups = read_runs(tmp_path).groups
    assert [[record.seed for record in runs.records] for runs in groups] == [[0], [0], []]
    assert [[each.seed for each in runs.failed] for runs in groups] == [[1], [2], [3, 4]]
    assert [runs.differs["recipe.optimizer.lr"] for runs in groups][1:] == [0.5, 9.0]
    assert groups[2].summary() is groups[2].at_target(0.5) is None
    found, compared = summary_tables(groups, 0.94)
    assert [row[1:4] for row in found.rows] == [("1", "1", "90.00%"), ("1", "1", "10.00%"), ("0", "2", "-")]
    assert [row[1:3] for row in compared.rows] == [("0 of 1", "0.0%")] * 2
    assert [row[0] for row in found.rows][1:] == ["davidnet, optimizer.lr 0.5", "davidnet, optimizer.lr 9.0"]


@given(
    st.lists(
        st.builds(
            Runs, st.text("a #12", max_size=3), st.just(()), differs=st.dictionaries(st.text(), st.text(max_size=70))
        )
    )
)
def test_groups_have_names_of_their_own_that_fit_a_legend(groups):
    names = row_names(groups)
    assert len(set(names)) == len(names) == len(groups) and all(len(name) < 60 for name in names)


def test_groups_that_differ_in_what_a_name_has_no_room_for_are_numbered():
    one, other = groups = [Runs("a", (), differs={**dict.fromkeys("xyz", 1), "w": each}) for each in (1, 2)]
    name = "a, x 1, y 1, z 1, and 1 more difference"
    assert row_names(groups) == [f"{name} #1", f"{name} #2"] and row_names([other]) == [name]
    assert [row[0] for row in summary_tables(groups)[0].rows] == row_names(groups)
    assert heading(one) == f"{name}, n=0"
    longer = dataclasses.replace(one, differs={"recipe.a": "b" * 9, "recipe.c": "d" * 9, "recipe.e": "f" * 50})
    assert row_names([longer]) == ["a, a bbbbbbbbb, c ddddddddd, and 1 more difference"]
    assert row_names([dataclasses.replace(one, name="n" * 99)]) == ["n" * 51 + "…"]


DAMAGES = [
    "",
    "{",
    "[]",
    "nonsense",
    '{"seed": 0}',
    '{"recipe": 3}',
    "[" * 100_000,
    '{"a": ' * 5000,
    "\x00",
    '{"x": 1e999}',
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_is_left_out_said_and_counted(damage, write, tmp_path):
    write("good/run.json", tta_accuracy=0.9)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text(damage)
    with pytest.warns(Notice, match="bad/run.json.*; it is left out"):
        kept = read_runs(tmp_path)
    assert (kept.unreadable, [accuracies(runs) for runs in kept.groups]) == (1, [{0: 0.9}])
    with (
        pytest.warns(Notice),
        pytest.raises(UserError, match=r"bad holds no run that can be read; 1 cannot; allowed: "),
    ):
        read_runs(tmp_path / "bad")


@pytest.mark.parametrize(("key", "value"), [("tta_accuracy", 94.1), ("accuracy", -0.1), ("train_seconds", -1.0)])
def test_numbers_that_no_run_has_are_not_averaged(key, value, write, tmp_path):
    write("good/run.json")
    write("bad/run.json", seed=1, **{key: value})
    with pytest.warns(Notice, match=f"{key} is {value}; allowed: "):
        kept = read_runs(tmp_path)
    assert (kept.unreadable, len(kept.groups[0].records)) == (1, 1)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_record_with_a_number_that_is_not_finite_is_unreadable(number, write, lines, tmp_path):
    write("good/run.json", tta_accuracy=0.9)
    for file in (write("bad/run.json", seed=1), lines("several", [(2, 0.5)])):
        file.write_text(re.sub(r'"tta_accuracy": [\d.]+', f'"tta_accuracy": {number}', file.read_text()))
    with pytest.warns(Notice, match=r"(run\.json|runs\.jsonl, seed 2): it holds NaN or infinity; .*left out") as said:
        kept = read_runs(tmp_path)
    assert (kept.unreadable, len(said), [accuracies(runs) for runs in kept.groups]) == (2, 2, [{0: 0.9}])


def test_damaged_lines_are_left_out_said_and_counted(lines, tmp_path):
    file = lines("out", [(seed, 0.9) for seed in range(5)])
    written = file.read_bytes().splitlines()
    written[1] = written[1].replace(b'"seed": 1', b'"seed": "1"')
    written[2] = written[2][:100]
    written[3] = written[3].replace(b'"steps"', b'"st\xffps"')
    file.write_bytes(b"\n".join(written)[:-9])
    with pytest.warns(Notice) as said:
        kept = read_runs(tmp_path)
    assert (kept.unreadable, [accuracies(runs) for runs in kept.groups]) == (4, [{0: 0.9}])
    assert len(said) == 4 and summary_data(kept)["unreadable"] == 4


def test_what_is_still_trained_is_counted_as_unfinished(write, tmp_path):
    write("out/seed-0/run.json")
    for folder in ("out", "out/seed-1", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "unfinished.json").write_text("{}")
    kept = read_runs(tmp_path)
    assert (len(kept.groups[0].records), kept.unfinished) == (1, 2)
    with pytest.raises(UserError, match="other holds no run; 1 unfinished; allowed: "):
        read_runs(tmp_path / "other")


def test_of_several_runs_those_without_an_outcome_are_unfinished(write, lines, tmp_path):
    def asked(folder, *seeds):
        (tmp_path / folder / "unfinished.json").write_text(json.dumps({"seeds": seeds}))

    lines("lines", [(0, 0.9), (1, "NaN")])
    asked("lines", 0, 1, 2, 3, 3)  # of which seed 2 is in the midst of its training
    (tmp_path / "lines/seed-2/checkpoints").mkdir(parents=True)
    write("folders/seed-1/run.json", seed=1)
    asked("folders", 0, 1, 2)
    write("single/run.json", seed=9)
    asked("single", 9)
    for folder, seeds in {"none": (0, 1), "one": (5,), "damaged": ("0", {})}.items():
        (tmp_path / folder).mkdir()
        asked(folder, *seeds)
    found = {}
    for folder in ("lines", "folders", "single"):
        found[folder] = read_runs(tmp_path / folder).unfinished
    assert found == {"lines": 2, "folders": 2, "single": 0}
    assert read_runs(tmp_path).unfinished == 2 + 2 + 2 + 1 + 1
    with pytest.raises(UserError, match="none holds no run; 2 unfinished; allowed: "):
        read_runs(tmp_path / "none")


def test_pipes_links_in_circles_and_folders_in_the_place_of_files_do_not_stop_it(write, tmp_path):
    write("good/run.json")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "a/run.json")
    os.mkfifo(tmp_path / "b/runs.jsonl")
    (tmp_path / "b/seed-1.json").symlink_to(tmp_path / "b/seed-1.json")
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "a/seed-3.json").mkdir()
    with pytest.warns(Notice):
        kept = read_runs(tmp_path)
    assert (kept.unreadable, len(kept.groups)) == (3, 1)


@pytest.mark.parametrize("folder", ["nosuch", "empty", "file"])
def test_where_there_is_no_run_one_line_says_so(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{folder} (does not exist|holds no run|is a file); allowed: a folder"):
        read_runs(tmp_path / folder)


def test_the_lines_say_what_no_test_is_for(write, tmp_path):
    write("a/run.json", tta_accuracy=0.95)
    said = summary_lines(only(tmp_path), 0.94)
    assert said[-2:] == [
        "at 94% or above: 1 of 1 runs, 100.0% (95% interval 2.5% to 100.0%, Clopper-Pearson)",
        "mean above 94%: no test, which needs two runs or more that are not all equal",
    ]
    assert "val accuracy" not in "".join(said)
    lost = summary_lines(only(tmp_path), 0.94, "val_accuracy")
    assert lost[-1] == "no run has val accuracy, so nothing is compared with 94%"


def test_a_process_that_summarizes_needs_no_torch(write, tmp_path):
    write("a/run.json")
    code = f"import sys; sys.modules['torch'] = None; import fastcifar; print(fastcifar.read_runs({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
