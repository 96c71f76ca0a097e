"""`fastcifar eval` with --on, --corrupt and --predictions: the same accuracies as of the library's calls, and the words
around them."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import torch

import fastcifar
from fastcifar.catalogue import DATASETS, DatasetEntry
from fastcifar.cli import main
from fastcifar.cli.corruptions import read_severities
from fastcifar.corruptions import CORRUPTIONS
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import change
from tests.small import MLP

RECIPE = change(MLP, {"epochs": 4, "network.hidden": (16,), "optimizer.lr": 0.05})
ARCHIVED = ("fog", "frost", "saturate")


@functools.cache
def small():
    return make_synthetic(train_size=256, test_size=64)


def evaluated_only(dataset, **changes):
    """A set to evaluate on, without training images."""
    return dataclasses.replace(dataset, train=dataset.train.subset(torch.tensor([], dtype=torch.int64)), **changes)


@functools.cache
def other():
    return evaluated_only(make_synthetic(train_size=16, test_size=96, seed=5))


def archived(variant):
    """A stand-in for CIFAR-10-C."""
    name, level = variant.rsplit("-", 1)
    data = small()
    images = corrupted(data.test, name, int(level)).images if name != "frost" else data.test.images // int(level)
    return evaluated_only(data, test=fastcifar.Split(images, data.test.labels))


def unlabeled():
    data = other()
    images = data.test.images
    return dataclasses.replace(data, test=fastcifar.Split(images, torch.full((96,), -1)), val=data.test)


def unknown():
    return dataclasses.replace(unlabeled(), val=None)


def half_side():
    return dataclasses.replace(other().resize(16), resized=0)


def renamed():
    return dataclasses.replace(small(), classes=("a", *small().classes[1:]))


def fewer():
    return dataclasses.replace(small().take(classes=[0, 1]), classes=small().classes[:2], subset=None)


@pytest.fixture(scope="module")
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DATASETS, "_values", dict(DATASETS))
        for load in (small, other, unlabeled, unknown, half_side, renamed, fewer):
            DATASETS.add(load.__name__.replace("_", "-"), DatasetEntry("a stand-in", load))
        variants = {f"{name}-{level}": 10 for name in ARCHIVED for level in range(1, 6)}
        DATASETS.add("archive", DatasetEntry("a stand-in", archived, variants=variants, test_only=True))
        DATASETS.add("hundred", DatasetEntry("never loaded", small, homes=("https://nowhere",), classes=100))
        yield


@pytest.fixture(scope="module")
def run(registered, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    trained = fastcifar.train(RECIPE, fastcifar.load_dataset("small"), device="cpu", eval_every=0)
    return trained.save(folder / "run"), trained


@pytest.fixture
def ask(run, capsys):
    """Runs eval, and returns its JSON object or, with text=True, its lines."""

    def call(*words, text=False):
        assert main(["eval", str(run[0]), *words, *([] if text else ["--json"])]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out.splitlines() if text else json.loads(out)

    return call


def corrupted(split, name, level, seed=0):
    return fastcifar.Split(fastcifar.corrupt(split.images, name, level, seed), split.labels)


def accuracy(run, split, tta="none"):
    return fastcifar.evaluate(run[1].model, split, dataclasses.replace(RECIPE.evaluate, tta=tta)).accuracy


def test_a_table_of_corruptions_is_that_of_single_evaluations(run, ask):
    test = small().test
    found = ask("--corrupt", "fog,gaussian-noise,saturate", "--severity", "1,4-5", "--seed", "3")
    expected = {
        name: {str(level): accuracy(run, corrupted(test, name, level, 3)) for level in (1, 4, 5)}
        for name in ("fog", "gaussian-noise", "saturate")
    }
    assert found["accuracies"] == expected
    assert found["accuracy"] == accuracy(run, test) and found["tta"] == "none" and found["seed"] == 3
    means = {name: sum(row.values()) / 3 for name, row in expected.items()}
    assert found["means"] == pytest.approx(means)
    assert found["averaged"] == ["fog", "gaussian-noise"]  # the benchmark's mean leaves saturate out
    assert found["mean_accuracy"] == pytest.approx((means["fog"] + means["gaussian-noise"]) / 2)
    assert found["mean_corruption_error"] == pytest.approx(1 - found["mean_accuracy"])

    lines = ask("--corrupt", "fog,gaussian-noise,saturate", "--severity", "1,4-5", "--seed", "3", text=True)
    assert lines[0] == f"small  {found['accuracy']:.2%} (tta none) on 64 test images of small"
    assert lines[2].split() == ["corruption", "1", "4", "5", "mean"]
    cells = [*expected["fog"].values(), means["fog"]]
    assert lines[3].split() == ["fog", *(f"{value:.2%}" for value in cells)]
    assert lines[-2].split()[0] == "mean" and lines[-2].split()[-1] == f"{found['mean_accuracy']:.2%}"
    said = "over 2 of the benchmark's 15 corruptions, not divided by AlexNet's"
    assert lines[-1] == f"mean corruption error {found['mean_corruption_error']:.2%} {said}"


def test_all_that_can_be_made_here_is_made_and_the_rest_said(ask):
    lines = ask("--corrupt", "all", "--severity", "2", text=True)
    assert [line.split()[0] for line in lines[3:-4]] == list(CORRUPTIONS)
    assert " over 14 of the benchmark's 15 corruptions" in lines[-3]
    assert [line.partition(":")[0] for line in lines[-2:]] == ["without frost", "without spatter"]


def test_images_of_another_set_are_compared_with_the_runs_own(run, ask):
    found, own = ask("--on", "other"), run[1].accuracy
    assert (found["dataset"], found["images"], found["stored_accuracy"]) == ("other", 96, None)
    assert found["accuracy"] == accuracy(run, other().test) and found["run_accuracy"] == own
    assert found["difference"] == pytest.approx(found["accuracy"] - own)
    low, high = found["interval"]
    assert low < found["accuracy"] < high
    lines = ask("--on", "other", text=True)
    assert lines == [
        f"small  {found['accuracy']:.2%} (tta none) on 96 test images of other",
        f"95% interval {low:.2%} to {high:.2%}",
        f"the run said {own:.2%} on 64 test images of its own: {100 * found['difference']:+.2f} points",
    ]
    flipped = ask("--on", "other", "--tta", "flip")
    assert flipped["accuracy"] == accuracy(run, other().test, "flip")
    assert flipped["run_accuracy"] == run[1].tta_accuracy
    assert ask("--on", "other", "--tta", "flip-crop")["difference"] is None
    assert ask("--on", "other", "--weights", str(run[0]))["run_accuracy"] is None
    made = ask("--on", "other", "--corrupt", "fog", "--severity", "3")
    assert made["accuracies"] == {"fog": {"3": accuracy(run, corrupted(other().test, "fog", 3))}}


def test_an_archive_of_corruptions_gives_the_same_table(run, ask):
    found = ask("--on", "archive", "--severity", "2-3")
    expected = {
        name: {str(level): accuracy(run, archived(f"{name}-{level}").test) for level in (2, 3)} for name in ARCHIVED
    }
    assert found["accuracies"] == expected and found["averaged"] == ["fog", "frost"]
    assert (found["dataset"], found["images"], found["accuracy"]) == ("archive", 64, run[1].accuracy)
    assert ask("--on", "archive", "--corrupt", "frost,weather", "--severity", "2")["accuracies"].keys() == {
        "fog",
        "frost",
    }
    assert ask("--on", "archive:saturate-3")["accuracy"] == expected["saturate"]["3"]
    made = ask("--corrupt", "fog,saturate", "--severity", "2-3")["accuracies"]
    assert made == {name: expected[name] for name in ("fog", "saturate")}
    lines = ask("--on", "archive", "--corrupt", "saturate", text=True)
    assert "on 64 test images of its own, as the run said" in lines[0]
    assert lines[-1].endswith("over 1 that the benchmark's mean leaves out, not divided by AlexNet's")


def test_images_without_labels_have_predictions_and_perhaps_validation_images(run, ask, tmp_path, capsys):
    path, data = tmp_path / "out.npz", unlabeled()
    lines = ask("--on", "unlabeled", "--predictions", str(path), text=True)
    val = accuracy(run, data.val)
    assert lines == [
        "small  - (tta none) on 96 test images of unlabeled",
        f"no accuracy: they have no labels; predictions in {path}",
        f"{val:.2%} on 96 validation images",
    ]
    with np.load(path) as saved:
        logits = fastcifar.evaluate(run[1].model, data.test).plain_logits
        assert np.array_equal(saved["plain_logits"], logits.numpy()) and (saved["labels"] == -1).all()
        assert np.array_equal(saved["tta_logits"], saved["plain_logits"])
    found = ask("--on", "unlabeled")
    assert found["accuracy"] is found["interval"] is None and found["val_accuracy"] == val
    assert ask("--on", "unlabeled", text=True)[1] == "no accuracy: they have no labels; --predictions saves logits"
    assert ask("--on", "unlabeled", "--corrupt", "fog", "--severity", "1")["accuracies"] == {
        "fog": {"1": accuracy(run, corrupted(data.val, "fog", 1))}
    }
    assert main(["eval", str(run[0]), "--on", "unknown", "--corrupt", "fog"]) == 2
    assert "the test images of unknown have no labels" in capsys.readouterr().err


def test_other_sides_are_resized_to_the_runs(run, ask):
    assert ask("--on", "half-side", "--resize", "32")["accuracy"] == accuracy(run, half_side().resize(32).test)


def test_a_run_of_some_classes_is_evaluated_on_those(registered, tmp_path, capsys):
    data = fastcifar.load_dataset("small").take(classes=[1, 3])
    folder = fastcifar.train(RECIPE, data, device="cpu", eval_every=0).save(tmp_path / "run")
    assert main(["eval", str(folder), "--on", "other", "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert images == sum(label in (1, 3) for label in other().test.labels.tolist())
    assert main(["eval", str(folder), "--on", "unlabeled"]) == 0  # of which class they are is not known
    assert f"on {len(unlabeled().test)} test images of unlabeled" in capsys.readouterr().out


REFUSED = {
    "--on renamed": r"class 0 of renamed is 'a', the run's '.*'; allowed: a set with the run's",
    "--on fewer": "fewer has 2 classes, the run 10; allowed: a set with the run's",
    "--on hundred": "hundred has 100 classes, the run 10",
    "--on half-side": "the images of half-side are 16 x 16 pixels, the run's 32 x 32; allowed: --resize 32",
    "--on half-side --resize 24": "are 24 x 24 pixels",
    "--on nothing": "unknown data set 'nothing'",
    "--on archive:fog-9": "unknown data set 'archive:fog-9'",
    "--on archive --corrupt blur-3": "unknown corruption 'blur-3'; .*allowed: fog, frost, saturate, noise, blur",
    "--corrupt fogg": "unknown corruption 'fogg'; did you mean 'fog'",
    "--corrupt frost": "frost is not made here",
    "--corrupt fog --severity 0-3": "--severity is '0-3'; allowed: 1 to 5, as in 3, 1-5 or 1,3,5",
    "--corrupt fog --severity 4-2": "--severity is '4-2'",
    "--severity 3": "--severity says how images are corrupted; allowed: with --corrupt",
    "--seed 1": "--seed says how images are corrupted; allowed: with --corrupt",
    "--on archive --seed 1": "--seed is given with --on archive, which is corrupted already; allowed: without it",
    "--on archive:fog-3 --severity 2": "allowed: --on archive --corrupt fog --severity 2",
    "--resize 32": "--resize is 32; allowed: with --on",
    "--predictions out.txt": "--predictions is .*out.txt.*; allowed: a file whose name ends in .npz",
    "--predictions /proc/out.npz": "output folder /proc cannot be written to: ",
    "--predictions nowhere/out.npz": "--predictions is nowhere/out.npz; allowed: a file in a folder that is there",
    "--corrupt fog --predictions out.npz": "--predictions is given for many corruptions",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_go_together_is_refused_in_a_line(run, capsys, words):
    assert main(["eval", str(run[0]), *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert re.search(REFUSED[words], err), err


def test_severities_are_read_from_ranges_and_lists():
    assert [read_severities(text) for text in ("3", "1-5", "5,1-2,2")] == [[3], [1, 2, 3, 4, 5], [1, 2, 5]]
