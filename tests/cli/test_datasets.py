"""Commands x data sets: whatever trains takes every set with training images, and finds its images again."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastcifar
from fastcifar.cli import main
from fastcifar.data import Dataset, synthetic
from tests import kinds

RANDOM = np.random.default_rng(3)
NAMES = ("ant", "bee", "cow")
SIZES = {"train": 36, "val": 9, "test": 12}
LABELS = {part: np.arange(size) % 3 for part, size in SIZES.items()}
PIXELS = {
    part: (RANDOM.integers(0, 128, (SIZES[part], 8, 8, 3)) + 60 * labels[:, None, None, None]).astype("uint8")
    for part, labels in LABELS.items()
}
ARRAYS = [PIXELS["train"], LABELS["train"], PIXELS["test"], LABELS["test"]]


def as_npz(parts=("train", "test"), labeled=True):
    arrays = {f"{part}_images": PIXELS[part] for part in parts}
    arrays |= {f"{part}_labels": LABELS[part] for part in parts if labeled or part != "test"}
    np.savez("mine.npz", **arrays, classes=np.array(NAMES))
    return "mine.npz"


def as_folder():
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(PIXELS[part], LABELS[part], strict=True)):
            path = Path("pets", part, NAMES[label], f"{number:02}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return "pets"


def as_hdf5():
    with pytest.importorskip("h5py").File("mine.h5", "w") as file:
        for part in ("train", "val", "test"):
            file[f"images-{part}"] = PIXELS[part]
            file[f"labels-{part}"] = LABELS[part] if part != "test" else np.full(SIZES[part], -1)
        file.attrs["classes"] = NAMES
    return "mine.h5"


def as_synthetic():
    return "synthetic"


def of_the_catalogue():
    fastcifar.dataset("mine")(lambda: Dataset.from_arrays(*ARRAYS, classes=NAMES))
    return "mine"


SETS = {
    "npz": as_npz,
    "npz, three splits": lambda: as_npz(("train", "val", "test"), labeled=False),
    "folder": as_folder,
    "hdf5, three splits": as_hdf5,
    "synthetic": as_synthetic,
    "of the catalogue": of_the_catalogue,
}
UNLABELED = {"npz, three splits", "hdf5, three splits"}
SMALL = ["--network", "mlp", "--network.hidden", "4", "--batch-size", "9", "--epochs", "1", "--dtype", "float32"]
SMALL += ["--augment.crop", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("converted", "hdf5"):  # not the environment's: compiled kernels stay where they are
        monkeypatch.setattr(f"fastcifar.data.{module}.user_cache", lambda: tmp_path / "cache")
    made = synthetic.make_synthetic(36, 12)
    monkeypatch.setattr(synthetic, "make_synthetic", lambda: made)
    monkeypatch.setattr(
        "fastcifar.cli.experiment._draw", lambda result, out, is_silent: []
    )  # figures take a second each
    with kinds.forgotten():
        yield


def said(capsys, *words):
    """Return what a command prints, an object of JSON."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def run(folder):
    return json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", SETS)
def test_train_and_eval(kind, capsys, tmp_path):
    word = SETS[kind]()
    assert main(["train", "--dataset", word, "--recipe", "warmstart-mlp", *SMALL, "--out", "run"]) == 0
    out, record = capsys.readouterr().out, run("run")
    name = word if word in ("synthetic", "mine") else str(tmp_path / word)
    assert (record["dataset"]["name"], record["dataset"]["train_size"]) == (name, 36)
    assert f"warmstart-mlp on {'synthetic data, not CIFAR-10' if word == 'synthetic' else word}: 36 training" in out
    logits = np.load("run/predictions.npz")["plain_logits"]
    assert logits.shape == (12, len(record["dataset"]["classes"])) and np.isfinite(logits).all()
    assert (record["accuracy"] is None) == (kind in UNLABELED) == (record["val_accuracy"] is not None)
    if kind in UNLABELED:
        assert "9 validation, 12 test images without labels" in out and " val acc " in out and "test acc" not in out
        assert f"val {record['val_accuracy']:.2%}  no test labels" in out.splitlines()[-1]
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    found = said(capsys, "eval", "../run", "--tta", "none")
    assert found["same_images"] and found["accuracy"] == found["stored_accuracy"] == record["accuracy"]
    assert found["val_accuracy"] == record["val_accuracy"]


RECIPE = ["--recipe", "warmstart-mlp"]
EXPERIMENTS = {
    "compare": [*("warmstart-mlp", "warmstart-mlp", "--b-set", "optimizer.lr=0.01", "--runs", "2", "--holdout", "0")],
    "ablate": [*RECIPE, "--only", "crop", "--holdout", "0"],
    "warm-start half": RECIPE,
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("command", EXPERIMENTS)
def test_experiments(command, kind, capsys):
    """On the validation images where no test image has a label."""
    word = SETS[kind]()
    found = said(capsys, *command.split(), *EXPERIMENTS[command], "--dataset", word, *SMALL, "--out", "runs")
    tested = ("validation", 9) if kind in UNLABELED else ("test", 12)
    assert (found.get("tests_val", False), found["test_size"]) == (kind in UNLABELED, tested[1])
    assert os.path.basename(found["dataset"]) == word
    if command == "warm-start half":
        again = said(capsys, "eval", "runs/warm/seed-0", "--tta", "none")
        record = json.loads(Path("runs/warm/seed-0.json").read_text(encoding="utf-8"))
        assert again["images"] == tested[1] and again["accuracy"] == again["stored_accuracy"] == record["accuracy"]
        assert main(["eval", "runs/warm/seed-0"]) == 0
        assert f"on {tested[1]} {tested[0]} images of {word}; the run said" in capsys.readouterr().out
        table = Path("runs/table.md").read_text(encoding="utf-8")
        assert table.count(f"{tested[0]} accuracy") == 2 and (tested[0] == "test" or "test accuracy" not in table)
        title = Path("runs/table.md").read_text(encoding="utf-8").splitlines()[0]
        assert title.endswith(f", {word}".replace("_", "\\_"))


def test_moved_and_changed_images(capsys):
    word = as_folder()
    assert main(["train", "--dataset", word, *RECIPE, *SMALL, "--out", "run", "--quiet"]) == 0
    shutil.move("pets", "moved")
    assert main(["eval", "run"]) == 2
    assert "pets does not exist; allowed: a folder of images by class" in capsys.readouterr().err
    assert main(["eval", "run", "--data-dir", "moved"]) == 0
    assert "on 12 test images of pets; the run said" in capsys.readouterr().out
    assert main(["eval", "run", "--on", "moved", "--data-dir", "moved"]) == 2
    assert "--data-dir is moved; allowed: without --on PATH, which is read there" in capsys.readouterr().err
    shutil.copy("moved/test/ant/00.png", "moved/test/bee/new.png")
    assert main(["eval", "run", "--data-dir", "moved"]) == 0
    assert "on 13 test images of pets; other images than the run's, of another sha256\n" in capsys.readouterr().out


OTHERS = {
    "side": (lambda x, y: (x[:, :6, :6], y, NAMES), "new.npz are 6 x 6 pixels, the run's 8 x 8; allowed: "),
    "classes": (lambda x, y: (x, y % 2, NAMES[:2]), "new.npz has 2 classes, the run 3; allowed: a set with the run's"),
    "names": (lambda x, y: (x, y, ("ant", "bee", "cat")), "class 2 of .*new.npz is 'cat', the run's 'cow'"),
}


@pytest.mark.parametrize("words", [["--data-dir", "new.npz"], ["--on", "new.npz"], []], ids=["moved", "on", "in place"])
@pytest.mark.parametrize("kind", OTHERS)
def test_images_that_a_runs_network_is_not_made_for_are_refused(kind, words, capsys):
    word, (change, message) = as_npz(), OTHERS[kind]
    assert main(["train", "--dataset", word, *RECIPE, *SMALL, "--out", "run", "--quiet"]) == 0
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"], arrays[f"{part}_labels"], names = change(PIXELS[part], LABELS[part])
    np.savez("new.npz" if words else word, **arrays, classes=np.array(names))
    capsys.readouterr()
    assert main(["eval", "run", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(message.replace("new", "new" if "--on" in words else "mine"), said) and said.count("\n") == 1


def test_a_run_on_arrays_in_memory_says_how_it_is_evaluated(capsys):
    data = Dataset.from_arrays(*ARRAYS, classes=NAMES)
    fastcifar.train("warmstart-mlp", data, epochs=1, batch_size=9, **{"network.hidden": (4,)}).save("run")
    assert main(["eval", "run"]) == 2
    said = capsys.readouterr().err
    assert "the run's images, 'arrays', are no set that is known here: arrays in memory; allowed: --on PATH" in said
    assert main(["eval", "run", "--on", as_npz()]) == 0


def test_a_path_object_is_a_data_set_too(tmp_path):
    as_npz()
    assert fastcifar.load_dataset(Path("mine.npz")).name == str(tmp_path / "mine.npz")
    found = fastcifar.train("warmstart-mlp", Path("mine.npz"), epochs=1, batch_size=9, **{"network.hidden": (4,)})
    assert found.record.dataset.name == str(tmp_path / "mine.npz")


def test_a_folder_here_of_a_published_sets_name_is_not_read_in_its_place(monkeypatch):
    Path("synthetic").mkdir()
    assert fastcifar.load_dataset("synthetic").name == "synthetic"
    read = []
    monkeypatch.setattr("fastcifar.data.digits.load_mnist", lambda data_dir: read.append(data_dir))
    Path("mnist").mkdir()
    with pytest.raises(fastcifar.UserError):
        fastcifar.load_dataset("mnist")
    assert read == [None]


def test_resized_files_are_found_again(capsys):
    word = as_folder()
    Image.fromarray(PIXELS["test"][0, :7]).save("pets/test/ant/00.png")
    assert main(["train", "--dataset", word, *RECIPE, *SMALL, "--out", "run"]) == 2
    assert "00.png is 7 x 8 pixels; allowed: 8 x 8, as train/ant/00.png, or --resize N" in capsys.readouterr().err
    assert main(["train", "--dataset", word, *RECIPE, *SMALL, "--out", "run", "--resize", "8"]) == 0
    assert run("run")["dataset"]["resized"] == run("run")["dataset"]["side"] == 8
    assert said(capsys, "eval", "run")["same_images"]
    assert said(capsys, "data", "info", "--dataset", word, "--resize", "8")["image_shape"] == [8, 8, 3]


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_an_experiment_on_images_without_labels_asks_for_some_to_be_held_out(command, capsys):
    word = as_npz(labeled=False)
    words = [*command.split(), *EXPERIMENTS[command], "--dataset", word, *SMALL, "--out", "runs", "--json"]
    assert main(words) == 2
    message = "mine.npz has a label; allowed: --holdout N (holdout=N), which tests on N training images, or a data set"
    assert message in capsys.readouterr().err and not Path("runs").exists()
    assert said(capsys, *words[:-1], "--holdout", "9")["test_size"] == 9


def test_a_training_goes_on_with_moved_images(capsys, monkeypatch):
    word, save = as_npz(), fastcifar.training.Run.save

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastcifar.training.Run, "save", interrupted)
    words = ["train", "--dataset", word, *RECIPE, *SMALL, "--epochs", "2", "--checkpoint-every", "1", "--out", "run"]
    assert main(words) != 0
    monkeypatch.setattr(fastcifar.training.Run, "save", save)
    shutil.move(word, "moved.npz")
    assert main(["train", "--resume", "run"]) == 2
    assert "mine.npz does not exist; allowed: " in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--data-dir", "moved.npz"]) == 0
    assert run("run")["dataset"]["name"] == os.path.abspath(word)


@pytest.mark.parametrize("command", ["train", "ablate", "data info"])
def test_a_path_with_nothing_there_is_refused_before_torch_is_imported(command, capsys, monkeypatch):
    monkeypatch.setattr(fastcifar.data, "load_dataset", None)
    assert main([*command.split(), "--dataset", "no/such.npz"]) == 2
    assert "--dataset is 'no/such.npz', which does not exist; allowed: a folder of images" in capsys.readouterr().err
