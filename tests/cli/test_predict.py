"""`fastcifar predict`, and `predict`: what is written is what the network says."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastcifar
from fastcifar.cli import main
from fastcifar.cli.predict import Options
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.report.grid import save_grid, spread
from fastcifar.training import load_run, train
from tests.small import MLP

WORDS = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--batch-size", "32", "--epochs", "1"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that was tested on 23 images of another file, and its folder."""
    folder = tmp_path_factory.mktemp("saved")
    data = make_synthetic(64, 23)
    file = folder / "own.npz"
    arrays = {"train_images": data.train.images, "train_labels": data.train.labels}
    arrays |= {"test_images": data.test.images, "test_labels": data.test.labels}
    np.savez(file, **{name: tensor.numpy() for name, tensor in arrays.items()}, classes=list(data.classes))
    run = train(MLP, str(file), device="cpu")
    run.save(folder / "run")
    return folder, run


def lines_of(file):
    with file.open(newline="") as text:
        return list(csv.reader(text))


def test_the_file_has_the_predicted_class_of_each_image(saved, tmp_path, capsys):
    folder, run = saved
    predicted, names = run.tta_logits.argmax(1).tolist(), run.record.dataset.classes
    assert main(["predict", str(folder / "run"), "--csv", str(tmp_path / "a.csv")]) == 0
    assert lines_of(tmp_path / "a.csv") == [["Id", "Category"], *([str(i), str(c)] for i, c in enumerate(predicted))]
    assert f"23 test images of own.npz (tta {run.recipe.evaluate.tta}), {run.tta_accuracy:.2%} right" in (
        capsys.readouterr().out
    )
    words = ["--csv", str(tmp_path / "a.csv"), "--names", "--probabilities", "--first-id", "1"]
    assert main(["predict", str(folder / "run"), *words]) == 0  # in place of the other
    head, *rows = lines_of(tmp_path / "a.csv")
    assert head == ["Id", "Category", *names]
    assert [row[:2] for row in rows] == [[str(i), names[c]] for i, c in enumerate(predicted, start=1)]
    shares = np.array([row[2:] for row in rows], float)
    np.testing.assert_allclose(shares, run.tta_logits.softmax(1), atol=1e-5)
    assert main(["predict", str(folder / "run"), "--tta", "none", "--csv", str(tmp_path / "a.csv")]) == 0
    assert [row[1] for row in lines_of(tmp_path / "a.csv")[1:]] == [str(c) for c in run.plain_logits.argmax(1).tolist()]


@pytest.mark.parametrize("kind", ["folder", "npz", "hdf5"])
def test_images_without_labels(saved, tmp_path, kind, capsys):
    folder, run = saved
    images = load_images(run, folder)[:7]
    place = tmp_path / {"folder": "alone", "npz": "alone.npz", "hdf5": "alone.h5"}[kind]
    if kind == "folder":
        place.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(place / f"{number}.png")
        (place / "notes.txt").write_text("no image")
    elif kind == "npz":
        np.savez(place, test_images=images)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(place, "w") as file:
            file["images-test"] = images
    grid = tmp_path / "grid.png"
    assert main(["predict", str(folder / "run"), "--on", str(place), "--csv", str(tmp_path / "a.csv"),
                 "--grid", str(grid)]) == 0  # fmt: skip
    assert "7 test images" in (said := capsys.readouterr().out) and "no labels" in said
    expected = run.tta_logits[:7].argmax(1).tolist()
    assert [row[1] for row in lines_of(tmp_path / "a.csv")[1:]] == [str(each) for each in expected]
    assert Image.open(grid).size[0] > 500


def load_images(run, folder):
    return np.load(folder / "own.npz")["test_images"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "predict has nothing to write; allowed: --csv FILE.csv, --grid FILE.png, or both"),
        (["--csv", "a.txt"], "--csv is 'a.txt'; allowed: a file whose name ends in .csv"),
        (["--csv", "/proc/a.csv"], "output folder /proc cannot be written to: "),
        (["--grid", "nowhere/a.png"], "allowed: a file in a folder that is there"),
        (["--grid", "a.png", "--names"], "--names says what --csv holds; allowed: with --csv FILE.csv"),
    ],
)
def test_what_cannot_be_written_is_refused_first(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "nowhere", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_the_home_folder_is_that(tmp_path, monkeypatch):
    """A shell does not expand ~ after =."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    assert Options(run_dir="run", csv=Path("~/there/a.csv")).csv == Path("~/there/a.csv")
    with pytest.raises(UserError, match=r"^--csv is ~/gone/a\.csv; allowed: a file in a folder that is there$"):
        Options(run_dir="run", csv=Path("~/gone/a.csv"))


def test_refusals_need_no_torch(without_torch):
    without_torch("predict --help", "predict", "predict nowhere", "predict nowhere --csv a.csv")


def test_a_grid_is_drawn_of_images_from_all_over(tmp_path):
    assert spread(3) == [0, 1, 2] and spread(10_000)[::19] == [0, 9999] and len(spread(10_000)) == 20
    images = np.zeros((2, 8, 8, 3), np.uint8)
    save_grid(tmp_path / "a.png", images, [0, -1], [1, 0], ["$a$", "\x1bb"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_predict_gives_probabilities_of_a_run_its_folder_or_its_network(saved):
    folder, run = saved
    images = load_images(run, folder)
    wanted = run.tta_logits.softmax(1)
    for model in (run, folder / "run", str(folder / "run")):
        found = fastcifar.predict(model, images)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    _, model, record = load_run(folder / "run")
    plain = fastcifar.predict(model, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(plain, run.plain_logits.softmax(1), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="model is of type int"):
        fastcifar.predict(3, images)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="images is"):
        fastcifar.predict(run, np.zeros((2, 5)))
    assert dataclasses.asdict(record.dataset)["test_size"] == len(images)


@pytest.mark.usefixtures("few_images")
def test_eval_shows_scores_by_class(capsys, tmp_path):
    assert main(["train", *WORDS, "--evaluate.tta", "none", "--out", "run", "--quiet"]) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    capsys.readouterr()
    assert main(["eval", "run", "--by-class", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["by_class"] == record["by_class"] and found["recall"] <= 1
    assert main(["eval", "run", "--by-class"]) == 0
    out = capsys.readouterr().out
    assert "Precision and recall, by class" in out and f"{found['precision']:.2%}" in out
    assert main(["eval", "run", "--by-class", "--corrupt", "fog"]) == 2
    assert "--by-class is True; allowed: without --corrupt" in capsys.readouterr().err
    assert main(["summary", "run", "--metric", "recall"]) == 0
    assert f"{found['recall']:.2%}" in next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("recall")
    )


def test_classes_whose_names_are_no_text_are_refused_before_the_evaluation(capsys, monkeypatch, tmp_path):
    assert main(["train", *WORDS, "--train-size", "64", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    made = make_synthetic(64, 16)
    classes = ("a\udcff", *made.classes[1:])
    monkeypatch.setattr("fastcifar.cli.saved.Saved.dataset", lambda _: dataclasses.replace(made, classes=classes))
    monkeypatch.setattr("fastcifar.cli.saved.Saved.score", None)
    assert main(["predict", str(tmp_path / "run"), "--csv", str(tmp_path / "a.csv"), "--names"]) == 2
    said = r"--names: class 'a\udcff' is no UTF-8; allowed: classes whose names are"
    assert said in capsys.readouterr().err and not (tmp_path / "a.csv").exists()
