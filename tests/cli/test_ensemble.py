"""`fastcifar ensemble`: saved runs taken together, with or without predictions, and members that are trained."""

import json
import os
import shutil

import numpy as np
import pytest

from fastcifar.cli import evaluate, main
from fastcifar.report.combined import combine

SMALL = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32"]
SMALL += ["--optimizer.lr", "0.02", "--optimizer.bias-lr-factor", "1"]


def said(capsys, *words):
    capsys.readouterr()
    assert main(["ensemble", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def runs(few_images, capsys):
    assert main(["train", *SMALL, "--runs", "2", "--out", "two", "--quiet"]) == 0
    wide = [*SMALL, "--network.hidden", "12", "--evaluate.tta", "none", "--seed", "7", "--out", "wide", "--quiet"]
    assert main(["train", *wide]) == 0
    return ["two/seed-0", "two/seed-1", "wide"]


def test_kept_predictions_of_any_recipes_are_taken_together(runs, capsys):
    kept = [np.load(f"{run}/predictions.npz") for run in runs]
    for flags, key in (([], "tta_logits"), (["--plain"], "plain_logits")):
        found = said(capsys, "two", "wide", *flags)
        assert found["runs"] == runs and found["images"] == 64
        expected = combine(np.stack([each[key] for each in kept]), kept[0]["labels"], "logits")
        assert found["logits"]["accuracy"]["mean"] == expected.accuracy.mean
        assert found["logits"]["loss_gain"]["interval"] == list(expected.loss_gain.interval)
    assert main(["ensemble", *runs]) == 0
    out = capsys.readouterr().out
    answers = np.stack([each["tta_logits"].argmax(1) for each in kept])
    differ = np.mean([np.mean(answers[one] != answers[other]) for one, other in ((0, 1), (0, 2), (1, 2))])
    assert found["plain"] and said(capsys, *runs)["churn"]["mean"] == pytest.approx(differ)
    assert "members differ" in out and f"{differ:.2%}" in out
    assert "3 members, with each recipe's" in out and "mean probabilities" in out and "two/seed-1" in out
    assert main(["train", *SMALL, "--evaluate.tta", "none", "--runs", "2", "--out", "none", "--quiet"]) == 0
    assert main(["ensemble", "none"]) == 0
    assert "2 members, without test-time augmentation" in capsys.readouterr().out


def test_what_kept_no_predictions_is_evaluated(runs, capsys):
    before = said(capsys, *runs)
    for run in ("two/seed-0", "wide"):
        os.remove(f"{run}/predictions.npz")
    found = said(capsys, *runs)
    assert found["runs"] == runs
    for mean_of in ("probabilities", "logits"):
        for score, summary in before[mean_of].items():
            if score != "members":
                assert found[mean_of][score]["mean"] == pytest.approx(summary["mean"], abs=1e-6)
    weights = said(capsys, "two/seed-0/model.safetensors", "two/seed-1", "wide")
    assert weights["runs"][0] == "two/seed-0/model.safetensors" and weights["logits"] == found["logits"]
    os.symlink("two", "link")
    same = ["two/seed-0", "two/seed-0/model.safetensors", "two/../two/seed-0", "link/seed-0"]
    same += ["two/seed-1", "two/seed-1/model.safetensors"]  # which has predictions
    assert said(capsys, *same, "wide", "wide") == found


def test_equal_networks_are_noticed(runs, capsys):
    shutil.copytree("wide", "copy")
    capsys.readouterr()
    assert main(["ensemble", "two", "wide", "copy"]) == 0
    assert "copy has the logits of wide; each counts as a network" in capsys.readouterr().err
    assert main(["ensemble", *runs]) == 0
    assert "has the logits of" not in capsys.readouterr().err


def test_nothing_is_evaluated_before_all_is_known(runs, capsys, monkeypatch):
    assert main(["train", *SMALL, "--holdout", "32", "--out", "held", "--quiet"]) == 0
    os.remove("wide/predictions.npz")
    shutil.copytree("wide", "copy")
    monkeypatch.setattr(evaluate, "Saved", lambda *_: pytest.fail("a network is evaluated"))
    refused = {
        ("wide", "nothing"): "nothing does not exist",
        ("wide", "held"): "other test images or classes",
        ("wide", "two", "two/seed-0/run.json/x"): "does not exist",
        ("wide",): "wide is the only network",
        ("wide", "wide/model.safetensors"): "wide is the only network",
    }
    for words, message in refused.items():
        capsys.readouterr()
        assert main(["ensemble", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1
    os.remove("held/predictions.npz")
    assert main(["ensemble", "wide", "held"]) == 2
    assert "other test images or classes" in capsys.readouterr().err


def test_members_of_a_run_are_each_one_with_predictions_or_without(few_images, capsys):
    joint = ["--ensemble.members", "3", "--ensemble.joint", "sum", "--out", "joint", "--quiet"]
    joint += ["--epochs", "2", "--keep-weights", "all"]
    assert main(["train", *SMALL, *joint]) == 0
    found = said(capsys, "joint")
    assert found["runs"] == ["joint#0", "joint#1", "joint#2"]
    os.remove("joint/predictions.npz")
    again = said(capsys, "joint")
    assert again["runs"] == found["runs"]
    assert again["logits"]["accuracy"]["mean"] == found["logits"]["accuracy"]["mean"]
    capsys.readouterr()
    for member in range(3):
        assert main(["eval", "joint", "--member", str(member), "--json"]) == 0
    with pytest.raises(json.JSONDecodeError):
        json.loads(capsys.readouterr().out)  # three objects
    first = sorted(os.listdir("joint/weights"))[0]
    weights = f"joint/weights/{first}"
    early = said(capsys, weights)
    assert early["runs"] == [f"{weights}#{member}" for member in range(3)]
    for member in range(3):
        file = f"{member}.npz"
        how = ["--member", str(member), "--weights", weights, "--predictions", file]
        assert main(["eval", "joint", *how]) == 0
    assert said(capsys, "0.npz", "1.npz", "2.npz")["logits"] == early["logits"]
    assert early["logits"]["loss"] != again["logits"]["loss"]
    assert main(["eval", "joint", "--member", "3"]) == 2
    assert "member 3 of joint is asked for; allowed: 0 to 2" in capsys.readouterr().err


def test_members_are_trained_and_the_folder_is_read_again(few_images, capsys):
    words = ["--members", "2", "--joint", "none", "mean", "--order", "shared", "--runs", "1", "--out", "kept"]
    found = said(capsys, *SMALL, *words, "--keep-weights", "true")
    assert list(found["kinds"]) == ["none", "mean"] and found["seeds"] == [0]
    again = said(capsys, "kept/none")
    scores = found["kinds"]["none"]["logits"]["ensembles"][0]
    assert again["logits"] == scores
    shutil.rmtree("kept/mean")
    assert main(["eval", "kept/none/member-1/seed-0"]) == 0
    assert "%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wide"], "wide is the only network; allowed: two or more"),
        (["wide", "nothing"], "nothing does not exist; allowed: a folder that fastcifar train wrote"),
        (["wide", "two/run.json"], "two/run.json does not exist"),
        (["--members", "1", *SMALL], "--members is 1; allowed: 2 to 1,000 networks"),
        (["--joint", "both", *SMALL], "allowed: words out of none, mean, sum, logits, shared"),
        (["wide", "--runs", "3"], "--runs"),
        (["--ensembles", "3", *SMALL], "--ensembles"),
        (["--ensemble.members", "4", *SMALL], "--ensemble.members is 4; allowed: --members 4, which says"),
    ],
)
def test_what_cannot_be_taken_together_is_refused_in_a_line(runs, capsys, words, message):
    capsys.readouterr()
    assert main(["ensemble", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_runs_of_other_images_are_refused(runs, capsys):
    assert main(["train", *SMALL, "--holdout", "32", "--out", "held", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["ensemble", "two", "held"]) == 2
    assert "other test images or classes" in capsys.readouterr().err


def test_help_is_said_of_both(capsys):
    assert main(["ensemble", "--help"]) == 0
    assert "--members" in capsys.readouterr().out
    assert main(["ensemble", "RUN", "--help"]) == 0
    assert "Take saved runs together" in capsys.readouterr().out
