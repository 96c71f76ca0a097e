"""Trainings on images of every place, measured on a small file."""

import contextlib

import pytest

from bench import residency, residency_worker
from bench.tables import read_results
from fastcifar.data import hdf5
from fastcifar.errors import UserError


class Here(contextlib.nullcontext):
    """What takes the place of a worker's process."""

    def __init__(self, way, module):
        super().__init__(self)
        self.answer = None

    def ask(self, request):
        if self.answer:
            return self.answer(request)
        facts, self.answer = residency_worker.load(request)
        return facts


def test_each_way_is_asked_in_turn_and_recorded(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    monkeypatch.setattr(residency, "Resident", Here)
    monkeypatch.setattr(residency_worker, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(hdf5, "user_cache", hdf5.user_cache)  # and back
    flags = ["--gigabytes", "0.0002", "--side", "8", "--steps", "1", "--rounds", "2", "--folder", str(tmp_path)]
    assert residency.main([*flags, "--save", str(tmp_path / "results.jsonl")]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    assert told == [f"{way}, round {number} of 2" for number in (1, 2) for way in residency.WAYS]
    resident, _, _, disk = read_results(tmp_path)
    assert resident["n"] == len(disk["rates"]) == 2 and min(disk["rates"]) > 0
    assert resident["waited"] == [0, 0] < disk["waited"] and "images on disk, not cached" in disk["what"]
    assert disk["facts"]["before_bytes"] <= disk["facts"]["loaded_bytes"] <= disk["facts"]["peak_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--side", "7"], ["--gigabytes", "0.000001"]])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(UserError, match=r"^allowed: rounds, steps and a side"):
        residency.main(flags)
