"""Files of JSON lines, which processes share and are killed over; locks that wait."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcifar import output
from fastcifar.errors import Notice, UserError
from fastcifar.locks import claimed
from fastcifar.output import append_line, check_out, read_lines, temporary_folder, write_all, write_whole

LINES = [{"seed": 0, "text": "a\nb\u2028c|\r"}, {"seed": 1, "loss": None}, {"seed": 2, "list": [1.5, True]}]


def test_what_is_appended_is_read_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert read_lines(path) == []
    for line in LINES:
        append_line(path, line)
    assert read_lines(path) == LINES
    assert os.listdir(tmp_path) == ["runs.jsonl"]


@given(cut=st.integers(0, 200))
def test_a_kill_while_a_line_is_written_costs_that_line_alone(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "runs.jsonl"
    for line in LINES[:2]:
        append_line(path, line)
    content = path.read_bytes()
    kept = content[: min(cut, len(content))]
    path.write_bytes(kept)
    whole = LINES[: kept.count(b"\n") + (kept[-1:] == b"}")]
    if kept[-1:] not in (b"", b"\n", b"}"):
        with pytest.warns(Notice, match=f"line {len(whole) + 1} is torn or damaged"):
            assert read_lines(path) == whole
    append_line(path, LINES[2])
    assert path.read_bytes() == b"".join(json.dumps(line).encode() + b"\n" for line in [*whole, LINES[2]])


@pytest.mark.parametrize("size", [1, 2**16 - 1, 2**16, 2**16 + 1, 300_000])
@pytest.mark.parametrize("before", [b"", b'{"seed": 0}\n', b"no object\n"])
def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path, size, before):
    path, whole = tmp_path / "runs.jsonl", json.dumps({"x": "y" * size}).encode()
    for last, left in ((whole[:-1], b""), (whole, whole + b"\n"), (b"\0" * size, b""), (b"\xff" * size, b"")):
        path.write_bytes(before + last)
        append_line(path, {"seed": 1})
        assert path.read_bytes() == before + left + b'{"seed": 1}\n'


@pytest.mark.parametrize("damage", [b"[1]", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000])
def test_a_line_that_is_no_object_is_left_out_and_said(tmp_path, damage):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damage + b'\n\n{"a": 2}\n')
    with pytest.warns(Notice, match=r"runs\.jsonl: line 2 is torn or damaged, and is left out") as said:
        assert read_lines(path) == [{"a": 1}, {"a": 2}]
        assert read_lines(path) == [{"a": 1}, {"a": 2}]
    assert len(said) == 1


def test_processes_append_beside_each_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    code = (
        "import sys; from pathlib import Path; from fastcifar.output import append_line\n"
        "for number in range(20):\n"
        " append_line(Path(sys.argv[1]), {'who': sys.argv[2], 'number': number, 'x': 'y' * 5000})"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(path), str(who)]) for who in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    found = read_lines(path)
    assert len(found) == 80
    for who in "0123":
        assert [line["number"] for line in found if line["who"] == who] == list(range(20))


def test_a_value_that_json_lacks_is_no_line(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        append_line(tmp_path / "runs.jsonl", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_appended_to_is_named(tmp_path):
    (tmp_path / "runs.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*runs\.jsonl: Is a directory"):
        append_line(tmp_path / "runs.jsonl", {})
    with pytest.raises(UserError, match=r"cannot read .*runs\.jsonl: Is a directory"):
        read_lines(tmp_path / "runs.jsonl")


def test_a_lock_is_waited_for_and_not_for_ever(tmp_path):
    path = tmp_path / "lock"
    with claimed(path) as ours:
        assert ours
        began = time.monotonic()
        with claimed(path, wait=0.3) as other:
            assert not other
        assert 0.3 <= time.monotonic() - began < 5
    with claimed(path, wait=60) as ours:
        assert ours
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from fastcifar.locks import claimed\n"
        "with claimed(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "True\n"
    with claimed(path) as ours:
        assert not ours
    process.send_signal(signal.SIGKILL)
    with claimed(path, wait=60) as ours:
        assert ours
    process.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_killed_process_is_free_while_its_child_lives(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import os, sys, time; from pathlib import Path; from fastcifar.locks import claimed\n"
        "with claimed(Path(sys.argv[1])) as ours:\n"
        "    child = os.fork()\n"
        "    if child: print(ours, child, flush=True)\n"
        "    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    ours, child = process.stdout.readline().split()
    with claimed(path) as held:
        assert (ours, held) == ("True", False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        with claimed(path, wait=30) as held:
            assert held
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_new_files_have_the_permissions_that_the_system_gives(tmp_path):
    """Whatever other threads do: nothing of the whole process is set."""
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "a.txt", "a")
    finally:
        os.umask(before)
    write_whole(tmp_path / "b.txt", "b")
    (tmp_path / "plain.txt").write_text("")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"a.txt": 0o600, "b.txt": modes["plain.txt"], "plain.txt": 0o666 & ~before}


def test_an_unfinished_run_is_named_with_what_goes_on(tmp_path):
    (tmp_path / "unfinished.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"holds an unfinished run; allowed: fastcifar train --resume .*, or a new"):
        check_out(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run; allowed: a new or an empty folder"):
        check_out(tmp_path)


def test_a_text_with_bytes_that_are_none_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="surrogates not allowed"):
        write_whole(tmp_path / "a.csv", "a\udcff")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("was", [{}, {"a": "old"}, {"a": "old", "b": "old"}])
@pytest.mark.parametrize("replaced", range(3))
def test_an_interrupt_at_any_place_loses_nothing_and_leaves_all_new_files_or_none(tmp_path, monkeypatch, was, replaced):
    for name, text in was.items():
        (tmp_path / name).write_text(text)
    replace, calls = os.replace, []

    def interrupted(*paths):
        if len(calls) == replaced:
            raise KeyboardInterrupt
        calls.append(paths)
        replace(*paths)

    def interrupted_at_last(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    monkeypatch.setattr(output, "_sync", interrupted_at_last)
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, {"a": "new", "b": "new"})
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    if replaced == 2:
        assert found == {"a": "new", "b": "new"}
    else:
        assert found.keys() == was.keys() and found == {**was, **({"a": "new"} if replaced and was else {})}


def test_a_write_that_fails_deletes_no_earlier_result(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*b: Is a directory"):
        write_all(tmp_path, {"a": "new", "b": "new"})
    assert (tmp_path / "a").is_file() and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_where_no_temporary_folder_can_be_made_a_line_says_so(monkeypatch, tmp_path):
    with temporary_folder() as folder:
        (folder / "file").touch()
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no temporary folder can be made: No such"):
        temporary_folder().__enter__()
