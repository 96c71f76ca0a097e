"""Trainings on images of every place, measured on a small file."""

import pytest

from bench import residency
from bench.tables import read_results
from fastcifar.errors import UserError


def test_each_way_is_asked_in_turn_and_recorded(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    ways = dict(list(residency.WAYS.items())[::3])  # a process each
    monkeypatch.setattr(residency, "WAYS", ways)
    flags = ["--gigabytes", "0.0002", "--side", "8", "--steps", "1", "--rounds", "2", "--folder", str(tmp_path)]
    assert residency.main([*flags, "--save", str(tmp_path / "results.jsonl")]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    assert told == [f"{way}, round {number} of 2" for number in (1, 2) for way in ways]
    resident, disk = read_results(tmp_path)
    assert resident["n"] == len(disk["rates"]) == 2 and min(disk["rates"]) > 0
    assert resident["waited"] == [0, 0] < disk["waited"] and "images on disk, not cached" in disk["what"]
    assert disk["facts"]["before_bytes"] <= disk["facts"]["loaded_bytes"] <= disk["facts"]["peak_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--side", "7"], ["--gigabytes", "0.000001"]])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(UserError, match=r"^allowed: rounds, steps and a side"):
        residency.main(flags)
