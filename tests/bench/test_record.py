"""Results are appended with all that a result must say."""

import json
import subprocess

import pytest

import bench.record
from bench.record import append, commit, describe_hardware, missing_keys, versions
from fastcifar.errors import UserError

RESULT = {"what": "a step", "value": "1 s", "n": 3, "spread": "0.9 to 1.1 s", "command": "python -m bench.step"}


def test_a_result_is_appended_with_where_it_comes_from(tmp_path):
    path = tmp_path / "results" / "cpu.jsonl"
    written = [append(path, RESULT, "cpu"), append(path, {**RESULT, "n": 4}, "cpu")]
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert read == written
    assert [result["n"] for result in read] == [3, 4]
    assert missing_keys(read[0]) == []
    assert read[0]["hardware"] == describe_hardware("cpu")
    assert read[0]["versions"] == versions()
    assert read[0]["commit"] == commit()


def test_what_a_result_says_itself_stays(tmp_path):
    written = append(tmp_path / "a.jsonl", {**RESULT, "hardware": "an abacus", "date": "1946-02-14"}, "cpu")
    assert (written["hardware"], written["date"]) == ("an abacus", "1946-02-14")


@pytest.mark.parametrize("key", RESULT)
def test_a_result_that_lacks_something_is_refused_and_not_written(tmp_path, key):
    path = tmp_path / "a.jsonl"
    lacking = {name: value for name, value in RESULT.items() if name != key}
    with pytest.raises(UserError, match=f"the record lacks {key}; allowed"):
        append(path, lacking, "cpu")
    assert not path.exists()


def test_a_result_for_a_table_needs_a_row_or_what_makes_one_and_one_for_none_does_not():
    rest = {key: 1 for key in ("n", "spread", "command", "hardware", "versions", "commit", "date")}
    assert missing_keys({"table": "peers", **rest}) == ["what", "value"]
    assert missing_keys({"table": "peers", "row": {}, **rest}) == []
    assert missing_keys({"table": None, **rest}) == []
    assert missing_keys(rest) == ["what", "value"]


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_a_value_that_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="the record cannot be written as JSON"):
        append(tmp_path / "a.jsonl", {**RESULT, "seconds": value}, "cpu")


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot write to"):
        append(tmp_path, RESULT, "cpu")


def test_the_commit_says_whether_tracked_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.record, "ROOT", tmp_path)
    assert commit() == "unknown"

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "file").write_text("before")
    git("init")
    git("add", "file")
    git("commit", "--no-verify", "-m", "first")
    clean = commit()
    assert len(clean) >= 4
    (tmp_path / "other").write_text("not tracked")
    assert commit() == clean
    (tmp_path / "file").write_text("after")
    assert commit() == f"{clean}+changes"
