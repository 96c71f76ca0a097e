"""The ways to make batches, measured on a few images."""

import pytest

from bench import loading
from bench.tables import read_results
from fastcifar.errors import UserError


def test_each_way_trains_in_turn_and_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "BATCH", 32)
    flags = ["--images", "96", "--epochs", "1", "--rounds", "2", "--workers", "1"]
    assert loading.main([*flags, "--save", str(tmp_path / "results.jsonl")]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    assert told == [f"{way}, round {number} of 2" for number in (1, 2) for way in loading.ways(1)]
    first, *_, last = read_results(tmp_path)
    assert first["n"] == len(last["rates"]) == 2 and min(last["rates"]) > 0
    assert "made by a DataLoader, workers 1" in first["what"] and "way before" not in first["value"]
    assert "images/s, 1 of the device's, " in last["value"]


def test_ratios_are_of_the_same_round():
    rates = {"a": [1.0, 4.0, 9.0], loading.RESIDENT: [10.0, 80.0, 45.0]}
    values = [record["value"] for record in loading.records(rates, "")]
    assert values[0] == "4 images/s, 0.1 of the device's"
    assert values[1].endswith("1 of the device's, 10 of the way before")


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--images", "511"], ["--workers", "-1"]])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(UserError, match=r"allowed: (1 or more rounds|0 to 256)"):
        loading.main(flags)
