"""`--resident`: where the images lie, asked for on the command line."""

import json

import pytest

from fastcifar.cli import main
from fastcifar.data import residency
from fastcifar.data.synthetic import make_synthetic

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


def _file(path):
    h5py = pytest.importorskip("h5py")
    data = make_synthetic(train_size=256, test_size=64)
    with h5py.File(path, "w") as file:
        for name, split in (("train", data.train), ("test", data.test)):
            file[f"images-{name}"], file[f"labels-{name}"] = split.images.numpy(), split.labels.numpy()
        file.attrs["classes"] = data.classes
    return ["train", *TRAIN[1:3], "--dataset", str(path), *TRAIN[5:], "--device", "cpu"]


SMALLER = [
    ["--train-size", "96"],
    ["--fold", "2/4"],
    ["--holdout", "third"],
    ["--classes", "0,1,2,3,4", "--train-fraction", "0.75"],
    ["--resize", "16"],
]


@pytest.mark.parametrize("flags", SMALLER, ids=lambda flags: flags[0])
def test_the_images_that_a_command_takes_are_placed_and_no_others(monkeypatch, tmp_path, flags):
    """From a file, to the same weights as from memory; the need is that of what is left."""
    monkeypatch.chdir(tmp_path)
    train, needs, place = _file(tmp_path / "set.h5"), [], residency._placed

    def placed(dataset, splits, *rest):
        needs.append(sum(split.nbytes for split in splits))
        return place(dataset, splits, *rest)

    monkeypatch.setattr(residency, "_placed", placed)
    assert main([*train, *flags, "--out", "device"]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*train, *flags, "--resident", "disk", "--out", "disk"]) == 0
    (record, weights), (other, same) = saved(tmp_path / "device"), saved(tmp_path / "disk")
    assert weights == same and record["accuracy"] == other["accuracy"]
    side, data = 16 if "--resize" in flags else 32, record["dataset"]
    assert needs == [3 * side**2 * (data["train_size"] + data["test_size"])]
    assert other["resident"] == ("host" if "--resize" in flags else "disk")


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_a_run_is_evaluated_from_another_place(capsys, monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    train = _file(tmp_path / "set.h5")
    assert main([*train, "--out", "run"]) == 0
    record, _ = saved(tmp_path / "run")
    capsys.readouterr()
    assert main(["eval", "run", "--resident", place, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == found["stored_accuracy"] == record["tta_accuracy"] and found["same_images"]
