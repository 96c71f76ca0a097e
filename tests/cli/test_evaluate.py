"""`fastcifar eval` and `fastcifar data info`, for real on a few synthetic images."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from fastcifar import load_run, train
from fastcifar.cli import main
from fastcifar.cli.saved import own_images
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import change
from tests.small import MLP

pytestmark = pytest.mark.usefixtures("few_images")

SMALL = ("--dataset", "synthetic", "--batch-size", "64", "--epochs", "1", "--network.widths", "8", "8", "8", "8")
TRAIN = ["train", *SMALL, "--out", "run", "--quiet"]


@pytest.mark.parametrize("holdout", ["0", "32"])
def test_eval_agrees_with_the_saved_accuracies(capsys, tmp_path, monkeypatch, holdout):
    assert main([*TRAIN, "--holdout", holdout]) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    slow = {getattr(torch, record["dtype"]): 9.0}  # to eval "auto" would be the other type
    seconds = {torch.float32: 1.0, torch.bfloat16: 1.0, **slow}
    monkeypatch.setattr("fastcifar.training.device.convolution_seconds", lambda: seconds)
    capsys.readouterr()
    for tta, key in {"flip": "tta_accuracy", "none": "accuracy"}.items():
        assert main(["eval", "run", "--tta", tta, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["accuracy"] == result["stored_accuracy"] == record[key]
        assert (result["holdout"], result["dataset"]) == (int(holdout), "synthetic")
        if tta == "flip":
            assert result["loss"] == record["tta_loss"]  # to the last bit: in the run's own compute type

    assert main(["eval", "run"]) == 0
    kind = "held-out" if int(holdout) else "test"
    images, accuracy = int(holdout) or 64, record["tta_accuracy"]
    assert capsys.readouterr().out == (
        f"davidnet  {accuracy:.2%} (tta flip) on {images} {kind} images of synthetic; the run said {accuracy:.2%}\n"
    )


CHAINS = {
    "take, then hold out": lambda data: data.take(100, seed=3).hold_out(30),
    "take twice around": lambda data: data.take(200, balanced=True).hold_out(40).take(50),
    "classes first": lambda data: data.take(classes=[0, 2, 5]).take(20),
    "classes twice": lambda data: data.take(classes=[0, 2, 5]).take(classes=[2, 5, 7]),
    "classes, then a fold": lambda data: data.take(classes=[1, 2]).take(30).fold(2, 3),
    "as the command line does": lambda data: data.hold_out(64).take(20, classes=[3, 4]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_images_that_a_run_tested_on_are_found_again_however_they_were_chosen(tmp_path, name):
    data = CHAINS[name](make_synthetic(train_size=256, test_size=64))
    train(dataclasses.replace(MLP, epochs=1, batch_size=4), data, device="cpu").save(tmp_path / "run")
    _, _, record = load_run(tmp_path / "run")
    found = own_images(record, None, None)
    assert torch.equal(found.test.images, data.test.images) and torch.equal(found.test.labels, data.test.labels)


def test_what_one_member_reaches_is_not_compared_with_the_whole_on_validation_images(capsys, tmp_path, monkeypatch):
    data = make_synthetic(train_size=256, test_size=64)
    data = dataclasses.replace(data, val=data.test)
    monkeypatch.setattr("fastcifar.data.load_dataset", lambda *_, **__: data)
    recipe = change(MLP, {"epochs": 1, "ensemble.members": 2})
    train(recipe, data, device="cpu").save(tmp_path / "run")
    assert main(["eval", "run", "--tta", "none"]) == 0 and capsys.readouterr().out.count("the run said") == 2
    assert main(["eval", "run", "--tta", "none", "--member", "1"]) == 0
    out = capsys.readouterr().out
    assert "validation images" in out and "the run said" not in out


WORDS = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--batch-size", "32", "--epochs", "1"]
EXPERIMENTS = {
    "half": (["half"], ["half", "shrink-perturb"]),
    "online": (["online", "--round-size", "96"], ["192/warm"]),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiment_keeps_is_evaluated_and_begun_with(capsys, tmp_path, name):
    words, arms = EXPERIMENTS[name]
    assert main(["warm-start", *words, *WORDS, "--holdout", "64", "--out", "kept", "--json"]) == 0
    capsys.readouterr()
    for arm in arms:
        kept = f"kept/{arm}/seed-0"
        record = json.loads((tmp_path / f"{kept}.json").read_text())
        for path in (kept, f"{kept}.json", f"{kept}.safetensors"):
            assert main(["eval", path, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["accuracy"] == record["tta_accuracy"]
    for number, path in enumerate((kept, f"{kept}.json", f"{kept}.safetensors")):
        assert main(["train", *WORDS, "--quiet", "--warm-start", path, "--out", f"again{number}"]) == 0
    for path in tmp_path.rglob("seed-0.safetensors"):
        path.unlink()
    capsys.readouterr()
    assert main(["eval", kept]) == 2
    assert main(["train", *WORDS, "--warm-start", f"{kept}.json"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert all("holds no run: seed-0.safetensors is missing" in line for line in said) and len(said) == 2


def test_eval_of_a_damaged_run_is_refused_in_one_line(capsys, tmp_path):
    assert main(TRAIN) == 0
    capsys.readouterr()
    weights = tmp_path / "run/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["eval", "run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fastcifar: run holds a damaged run: .*\n", err)


def test_data_info_says_what_a_set_holds(capsys):
    assert main(["data", "info", "--dataset", "synthetic", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["train_size"], facts["test_size"]) == ("synthetic", 256, 64)
    assert main(["data", "info", "--dataset", "synthetic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("synthetic: ")
    assert lines[1] == "256 training and 64 test images, 32 x 32, red green blue"
    assert sum(int(line.split()[-1]) for line in lines[-10:]) == 64


def test_eval_on_other_images_compares_with_nothing(capsys, tmp_path):
    assert main(TRAIN) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["dataset"]["sha256"] = "0" * 64
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["eval", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored_accuracy"] is None


def test_classes_restrict_what_is_tested_on_in_eval_too(capsys, tmp_path):
    assert main([*TRAIN, "--classes", "0,1,2"]) == 0
    assert capsys.readouterr().out.endswith("  classes 0,1,2  synthetic\n")
    record = json.loads((tmp_path / "run/run.json").read_text())
    tested = record["dataset"]["test_size"]
    assert 0 < tested < 64
    assert len(record["dataset"]["classes"]) == 10
    assert main(["eval", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["accuracy"]) == (tested, record["tta_accuracy"])


def test_eval_of_other_weights_is_of_the_same_network(capsys, tmp_path):
    """Those of another run, from its folder and from a file of torch.save; others are refused in a line."""
    assert main(TRAIN) == 0
    assert main([*TRAIN[:-3], "--out", "other", "--quiet", "--seed", "1"]) == 0
    other = json.loads((tmp_path / "other/run.json").read_text())
    state = load_file(tmp_path / "other/model.safetensors")
    torch.save({"model": state}, tmp_path / "other.pt")
    torch.save(state["whitening.weight"], tmp_path / "one.pt")
    capsys.readouterr()
    for weights in ("other", "other.pt"):
        assert main(["eval", "run", "--weights", weights, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["loss"], result["stored_accuracy"], result["weights"]) == (other["tta_loss"], None, weights)
    for weights in ("one.pt", "run/log.tsv", "nowhere"):
        assert main(["eval", "run", "--weights", weights]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
