"""`--resident`: where the images lie, asked for on the command line."""

import json

import pytest

from fastcifar.cli import main

TRAIN = ["train", "--recipe", "warmstart-mlp", "--dataset", "synthetic", "--epochs", "2"]
TRAIN += ["--batch-size", "64", "--network.hidden", "8"]


def saved(folder):
    record = json.loads((folder / "run.json").read_text())
    return record, (folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("few_images")
def test_a_run_says_how_long_its_steps_waited_and_is_the_same(capsys, tmp_path):
    flags = ["--device", "cpu", "--holdout", "third"]
    assert main([*TRAIN, *flags, "--out", "device"]) == 0
    assert not any(line.startswith("images") for line in capsys.readouterr().out.splitlines())
    assert main([*TRAIN, *flags, "--resident", "host", "--out", "host"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("images "))
    assert line.endswith("%): steps waited for their images from host memory")
    (resident, weights), (kept, same) = saved(tmp_path / "device"), saved(tmp_path / "host")
    assert weights == same and kept["accuracy"] == resident["accuracy"]
    assert kept["resident"] == "host" and f"{kept['waited_seconds']:.1f} s" in line
    assert main(["eval", "host"]) == 0


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(
    ("place", "message"), [("disk", "is read into memory; allowed: auto, device, host"), ("ram", "ram")]
)
def test_a_place_where_they_cannot_lie_is_refused_in_one_line(capsys, place, message):
    assert main([*TRAIN, "--resident", place]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
