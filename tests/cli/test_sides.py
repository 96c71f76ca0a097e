"""`--resize` and `--fold`, from the command to its record and back."""

import json

import pytest

from fastcifar import Trainer
from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import change
from tests import small

pytestmark = pytest.mark.usefixtures("few_images")

MLP = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "4", "--batch-size", "32", "--epochs", "1"]


def record_of(path):
    return json.loads((path / "run.json").read_text())


@pytest.mark.parametrize(
    ("flags", "facts", "remark"),
    [
        ([], {"resized": 0, "side": 32, "fold": "", "holdout": 0, "train_size": 256, "test_size": 64}, ""),
        (["--resize", "20"], {"resized": 20, "side": 20, "fold": "", "holdout": 0, "test_size": 64}, "resize 20"),
        (["--fold", "2/3"], {"fold": "2/3", "holdout": 85, "train_size": 171, "test_size": 85}, "fold 2/3"),
        (["--fold", "1/4", "--resize", "8"], {"fold": "1/4", "resized": 8, "test_size": 64}, "fold 1/4  resize 8"),
    ],
    ids=["as it is", "resized", "fold", "both"],
)
def test_a_run_is_evaluated_on_the_images_that_it_tested_on(capsys, tmp_path, flags, facts, remark):
    assert main(["train", *MLP, *flags, "--out", "run", "--quiet"]) == 0
    line = capsys.readouterr().out
    assert remark in line
    record = record_of(tmp_path / "run")
    assert {name: record["dataset"][name] for name in facts} == facts
    assert main(["eval", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == result["stored_accuracy"] == record["tta_accuracy"]
    assert (result["loss"], result["images"]) == (record["tta_loss"], facts["test_size"])
    assert main(["train", "--resume", "run", "--quiet"]) == 0  # finished: it is shown again
    assert remark in capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        (["--resize", "20"], ["--resize", "16"], "resized is 20 there and 16 now"),
        (["--resize", "20"], [], "resized is 20 there and 0 now"),
        (["--fold", "1/4"], ["--fold", "2/4"], 'fold is "1/4" there and "2/4" now'),
        (["--fold", "1/4"], ["--holdout", "64"], 'fold is "1/4" there and "" now'),
    ],
)
def test_runs_on_other_images_do_not_join(capsys, one, other, difference):
    assert main(["train", *MLP, *one, "--runs", "2", "--out", "runs", "--quiet"]) == 0
    assert main(["train", *MLP, *one, "--runs", "3", "--out", "runs", "--quiet"]) == 0
    assert "n=3" in capsys.readouterr().out
    assert main(["train", *MLP, *other, "--runs", "3", "--out", "runs", "--quiet"]) == 2
    assert difference in capsys.readouterr().err
    assert main(["summary", "runs"]) == 0
    assert ("resized to 20 pixels" if "--resize" in one else "fold 1/4") in capsys.readouterr().out


def test_an_experiment_takes_folds_in_place_of_its_holdout(capsys, tmp_path):
    words = ["ablate", *MLP, "--only", "label-smoothing", "--resize", "12", "--out", "kept", "--json"]
    assert main([*words, "--fold", "2/4"]) == 0
    assert json.loads(capsys.readouterr().out)["holdout"] == 64
    settings = json.loads((tmp_path / "kept/settings.json").read_text())
    assert (settings["fold"], settings["resized"], settings["train_size"]) == ("2/4", 12, 192)
    assert main([*words, "--fold", "3/4"]) == 2
    assert 'fold is "2/4" there and "3/4" now' in capsys.readouterr().err


def test_a_training_does_not_go_on_on_other_images(tmp_path):
    data, recipe = make_synthetic(64, 16), change(small.DAVIDNET, {"epochs": 1})
    trained = Trainer(recipe, data.resize(16), "cpu")
    trained.run(seed=0)
    state = trained.state.state_dict()
    for other, difference in (
        (data.resize(20), "data.resized is 16 there and 20 here"),
        (data, "data.resized is 16 there and None here"),
    ):
        with pytest.raises(UserError, match=difference):
            Trainer(recipe, other, "cpu").run(resume=state)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--fold 2/5 --holdout 10", "--holdout is 10; allowed: with --fold none, as a fold is held out"),
        ("--fold 6/5", "--fold is '6/5'; allowed: a part and how many there are, as in 1/5 to 5/5"),
        ("--fold 1", "--fold is '1'; allowed: a part and how many there are, as in 1/5 to 5/5"),
        ("--fold 1/400", "the number of folds is 400; allowed: 2 to 256 parts of the training images"),
        ("--resize 0", "--resize is 0; allowed: 1 to 4,096"),
        ("--resize 7", "network is davidnet, and images have 7 pixels a side; allowed: 8 or more"),
        ("--resize 4", "augment.crop is 4; allowed: 0 to 3, below the side of the images, 4 pixels"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, tmp_path, words, message):
    assert main(["train", "--dataset", "synthetic", *words.split(), "--quick", "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_damaged_record_names_its_fold(capsys, tmp_path):
    assert main(["train", *MLP, "--fold", "2/3", "--out", "run", "--quiet"]) == 0
    record = record_of(tmp_path / "run")
    record["dataset"]["fold"] = "2/x"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    assert main(["eval", "run"]) == 2
    assert "the run's fold is '2/x'; allowed: a part" in capsys.readouterr().err
