"""Every fuzz target for a moment, and the engine on targets that are known to be faulty."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import engine

ROOT = Path(__file__).parents[2]
ARCHIVES = ("cifar_archive", "cifar_folder", "npz", "pickled")


def test_no_target_has_a_finding(tmp_path):
    # In a process of its own: a worker that is forked must have no threads. One for all: the imports take seconds.
    command = [sys.executable, "-m", "tests.fuzz", "--all", "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = {line.split(":")[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    assert list(cases) == engine.names()
    assert sum(cases[name] for name in ARCHIVES) >= 1000


def killed(data, folder):
    os.kill(os.getpid(), 11)


def escaped(data, folder):
    (folder / ".." / "outside" / "new").write_bytes(data)


def linked(data, folder):
    (folder / "link").symlink_to("/etc")


def greedy(data, folder):
    mmap.mmap(-1, 200 << 20)  # anew: what is freed may be kept for later


def refusing(data, folder):
    raise KeyError(data)


def hanging(data, folder):
    import time

    time.sleep(60)


FAULTS = {
    killed: "dies of SIGSEGV",
    escaped: "written beside the folder",
    linked: "a link out of the folder: link",
    greedy: "MiB of memory for 3 bytes",
    refusing: "KeyError: b'one'",
    hanging: "hangs: more than",
}


@pytest.mark.parametrize("check", FAULTS)
def test_the_engine_finds_every_kind_of_fault(check, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 0.2)
    target = engine.Target("faulty", {"one": b"one"}, check, None, len)
    [finding] = engine.fuzz(target, cases=1, out=tmp_path).findings
    assert FAULTS[check] in finding["what"]
    assert Path(finding["file"]).read_bytes() == b"one"
    assert engine.fuzz(target, cases=1, data=b"one").findings


def test_cases_are_the_same_for_a_seed():
    target = engine.Target("right", {"one": bytes(range(256)), "two": b"[1, 2]"}, refusing, None, len)
    cases = [target.case(3, number) for number in range(200)]
    assert cases == [target.case(3, number) for number in range(200)]
    assert cases[:2] == list(target.inputs.values()) and len(set(cases)) > 150
    assert target.case(4, 50) != cases[50]


def test_a_case_that_takes_much_hides_none_that_takes_less():
    def check(data, folder):
        mmap.mmap(-1, 300 << 20 if data == b"large" else 100 << 20)

    target = engine.Target("hidden", {"large": b"large", "small": b"small"}, check, None, lambda data: 1 << 28)
    assert not engine.fuzz(target, cases=2).findings
    target.true_size = lambda data: 1 << 28 if data == b"large" else len(data)
    [finding] = engine.fuzz(target, cases=2).findings
    assert finding["case"] == 1
