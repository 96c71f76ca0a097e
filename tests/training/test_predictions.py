"""Predictions of saved runs: found in folders and files, and refused where they are not of the same images."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastcifar.errors import Notice, Unequipped, UserError
from fastcifar.record import DatasetFacts
from fastcifar.report.runs import read_runs
from fastcifar.training import predictions
from fastcifar.training.predictions import read_predictions, read_record, read_run

LABELS = np.array([0, 1, -1, 1])


def arrays(seed=0, labels=LABELS, classes=2):
    logits = np.random.default_rng(seed).normal(size=(2, len(labels), classes)).astype(np.float32)
    return {"plain_logits": logits[0], "tta_logits": logits[1], "labels": labels}


@pytest.fixture
def save(new_record, tmp_path, monkeypatch):
    """Saves a run that never was in a folder."""
    monkeypatch.chdir(tmp_path)

    def put(folder, seed=0, held=None, subset=None, **facts):
        (tmp_path / folder).mkdir(parents=True)
        colors = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        given = {"name": "cifar10", "train_size": 9, "test_size": 4, "sha256": "0" * 64, "holdout": 0, **facts}
        dataset = DatasetFacts(**{"classes": ("cat", "dog"), "source": folder, **given}, mean=colors[0], std=colors[1])
        record = new_record(seed=seed, dataset=dataset, subset=subset)
        (tmp_path / folder / "run.json").write_text(json.dumps(record.to_json()))
        np.savez(tmp_path / folder / "predictions.npz", **(arrays(seed) if held is None else held))

    return put


def test_runs_are_found_in_folders_and_files_each_once_in_order(save, tmp_path):
    for seed in (0, 2, 10):
        save(f"several/seed-{seed}", seed)
    save("one", 5)
    np.savez("file.npz", **arrays(7))
    (tmp_path / "link").symlink_to("one")
    (tmp_path / "several/checkpoints").mkdir()
    np.savez("several/checkpoints/predictions.npz", **arrays(8))
    found = read_predictions(["one", "several", "file.npz", "link", "several/seed-2"])
    assert found.names == ("one", "several/seed-0", "several/seed-2", "several/seed-10", "file.npz")
    assert [record and record.seed for record in found.records] == [5, 0, 2, 10, None]
    assert np.array_equal(found.labels, LABELS) and found.logits.dtype == np.float32
    assert np.array_equal(found.logits, [arrays(seed)["tta_logits"] for seed in (5, 0, 2, 10, 7)])
    plain = read_predictions(["one", "file.npz"], tta=False)
    assert np.array_equal(plain.logits, [arrays(seed)["plain_logits"] for seed in (5, 7)])


def test_runs_behind_links_in_a_folder_count_too_and_links_in_circles_end(save, tmp_path):
    save("kept/one", 3)
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen/best").symlink_to(tmp_path / "kept/one")
    (tmp_path / "chosen/again").symlink_to(tmp_path / "chosen")
    assert read_predictions(["chosen"]).names == ("chosen/best",)
    assert [group.records[0].seed for group in read_runs("chosen").groups] == [3]


def test_what_is_unfinished_or_has_no_predictions_is_left_out_and_said(save, tmp_path):
    for seed in (0, 1, 2):
        save(f"several/seed-{seed}", seed)
    os.remove("several/seed-1/run.json")
    (tmp_path / "several/seed-1/unfinished.json").touch()
    os.remove("several/seed-2/predictions.npz")
    with pytest.warns(Notice) as said:
        assert read_predictions(["several"]).names == ("several/seed-0",)
    assert {str(each.message) for each in said} == {
        "several/seed-1 holds what is not finished, which is left out",
        "several/seed-2 has no predictions.npz, which is left out",
    }


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            {"sha256": "1" * 64},
            "sha256 is '0{64}' in a and '1{64}' in b; allowed: runs with the same test images",
        ),
        ({"holdout": 4}, "other test images or classes: holdout is 0 in a and 4 in b"),
        ({"fold": "1/5"}, "other test images or classes: fold is '' in a and '1/5' in b"),
        ({"tests_val": True}, "other test images or classes: tests_val is False in a and True in b"),
        ({"classes": ("dog", "cat")}, "classes: class 0 is 'cat' in a and 'dog' in b"),
        ({"classes": ("cat", "dog", "emu")}, "classes: the number of classes is 2 in a and 3 in b"),
        (
            {"subset": {"classes": [0, 1]}},
            r"classes: subset.classes is None in a and \[0, 1\] in b",
        ),
        (
            {"held": arrays(labels=LABELS[:3])},
            r"^b: predictions\.npz has logits of 3 images and 2 classes, and run\.json says 4 images and 2 classes",
        ),
        (
            {"held": arrays(classes=3)},
            r"^b: predictions\.npz has logits of 4 images and 3 classes, and run\.json says 4 images and 2 classes",
        ),
        ({"held": arrays(labels=LABELS[::-1])}, "image 0 has label 0 in a and 1 in b; allowed: .* in the same order"),
    ],
)
def test_runs_of_other_images_or_classes_are_refused_in_one_line(save, other, line):
    save("a")
    save("b", **other)
    with pytest.raises(UserError, match=line):
        read_predictions(["a", "b"])


def test_the_number_and_choice_of_training_images_may_differ(save):
    save("a")
    save("b", 1, train_size=3, subset={"size": 3}, source="elsewhere")
    assert len(read_predictions(["a", "b"]).names) == 2


def test_of_files_the_labels_alone_are_compared(save):
    save("a")
    save("b", 1, sha256="1" * 64)
    assert len(read_predictions(["a", "b/predictions.npz"]).names) == 2


def test_a_run_is_read_as_its_accuracy_is(save, new_record, tmp_path):
    members = {f"member_{name}": np.stack([each, each + 1]) for name, each in arrays().items() if name != "labels"}
    save("a", held={**arrays(3), **members})
    record = read_record(tmp_path / "a/run.json")
    (tmp_path / "kept").mkdir()
    (tmp_path / "a/run.json").rename(tmp_path / "kept/seed-0.json")
    (tmp_path / "a/predictions.npz").rename(tmp_path / "kept/seed-0.npz")
    logits, labels = read_run(tmp_path / "kept/seed-0", record)
    assert np.array_equal(logits, arrays(3)["tta_logits"]) and np.array_equal(labels, LABELS)
    with pytest.raises(UserError, match=r"^kept/seed-0: predictions\.npz has logits of 4 images and 2 classes, and"):
        read_run(Path("kept/seed-0"), new_record())
    with pytest.raises(UserError, match=r"^cannot read nothing/predictions\.npz: "):
        read_run(Path("nothing"), record)


@pytest.mark.parametrize("facts", [{"test_size": 5}, {"classes": ("cat",)}, {"classes": ("cat", "dog", "emu")}])
def test_a_record_that_is_not_of_the_predictions_beside_it_is_refused_whatever_other_runs_hold(save, facts):
    for name in ("a", "b"):
        save(name, **facts)
    with pytest.raises(UserError, match=r"^a: predictions\.npz has logits of 4 images and 2 classes, and run\.json"):
        read_predictions(["a", "b"])


@pytest.mark.parametrize(
    ("held", "sizes"), [(arrays(labels=LABELS[:3]), "3 images and 2"), (arrays(classes=3), "4 images and 3")]
)
def test_files_of_other_sizes_are_refused(save, held, sizes):
    save("a")
    np.savez("b.npz", **held)
    with pytest.raises(UserError, match=f"a has logits of 4 images and 2 classes, b.npz of {sizes} classes; allowed"):
        read_predictions(["a", "b.npz"])


LOGITS = arrays()["tta_logits"]


@pytest.mark.parametrize(
    ("held", "line"),
    [
        ({"tta_logits": LOGITS * [np.nan, 1]}, "tta_logits holds NaN, infinity or what is beyond 1e[+]15"),
        ({"tta_logits": LOGITS * [np.inf, 1]}, "tta_logits holds NaN, infinity"),
        ({"tta_logits": LOGITS * 1e17}, "tta_logits holds NaN, infinity"),
        ({"tta_logits": LOGITS.astype(int)}, r"tta_logits is int64 \[4, 2\]; allowed: floats \[N, classes\]"),
        ({"tta_logits": LOGITS[:, :1]}, r"tta_logits is float32 \[4, 1\]; allowed: floats \[N, classes\], of two"),
        ({"tta_logits": LOGITS[:0], "labels": LABELS[:0]}, r"tta_logits is float32 \[0, 2\]"),
        ({"tta_logits": LOGITS.ravel()}, r"tta_logits is float32 \[8\]"),
        ({"labels": LABELS[:3]}, r"labels is int64 \[3\]; allowed: whole numbers \[4\]"),
        ({"labels": LABELS * 1.0}, r"labels is float64 \[4\]; allowed: whole numbers"),
        ({"labels": LABELS + 1}, "a label is 2; allowed: 0 to 1, or -1"),
        ({"labels": LABELS - 1}, "a label is -2; allowed: 0 to 1, or -1"),
        ({"labels": np.array([0, 1, 2**64 - 1, 0], np.uint64)}, f"a label is {2**64 - 1}; allowed"),
        ({"labels": np.array([None] * 4)}, r"labels is object \[4\]; allowed"),
    ],
)
def test_files_that_hold_something_else_are_refused_in_one_line(tmp_path, held, line):
    path = tmp_path / "a.npz"
    np.savez(path, **{**arrays(), **held})
    with pytest.raises(UserError, match=line) as refused:
        read_predictions([path])
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


def test_other_number_types_are_read_as_they_are(tmp_path):
    held = {**arrays(), "labels": LABELS.astype(np.int8), "tta_logits": LOGITS.astype(">f8")}
    np.savez_compressed(tmp_path / "a.npz", **held)
    found = read_predictions([tmp_path / "a.npz"])
    assert np.array_equal(found.logits[0], LOGITS) and found.labels.dtype == np.int64


@pytest.mark.filterwarnings("error")
def test_logits_in_half_precision_are_read_without_a_warning(tmp_path):
    half = LOGITS.astype(np.float16)
    half[0, 0] = 65_504
    np.savez(tmp_path / "a.npz", **{**arrays(), "tta_logits": half})
    assert np.array_equal(read_predictions([tmp_path / "a.npz"]).logits[0], half)
    half[0, 0] = np.inf
    np.savez(tmp_path / "a.npz", **{**arrays(), "tta_logits": half})
    with pytest.raises(UserError, match="tta_logits holds NaN, infinity"):
        read_predictions([tmp_path / "a.npz"])


def test_what_is_damaged_absent_or_none_is_refused(save, tmp_path):
    save("a")
    whole = (tmp_path / "a/predictions.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole.replace(LOGITS.tobytes()[:8], b"\0" * 8))
    (tmp_path / "other.txt").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo("pipe.npz")
    np.savez("less.npz", labels=LABELS)
    for name, line in {
        "torn.npz": "torn.npz: tta_logits is damaged: ",
        "flipped.npz": "flipped.npz: tta_logits is damaged: Bad CRC-32",
        "less.npz": "less.npz: tta_logits is damaged: it is there 0 times",
        "other.txt": "other.txt is no file of predictions; allowed: a folder that fastcifar train wrote, or an .npz of",
        "pipe.npz": "pipe.npz is no file of predictions",
        "nosuch": "nosuch does not exist; allowed: ",
        "empty": "empty holds no predictions of a run; allowed: ",
    }.items():
        with pytest.raises(UserError, match=line):
            read_predictions(["a", name])
    with pytest.raises(UserError, match="there is no run; allowed"):
        read_predictions([])
    (tmp_path / "a/run.json").write_text("{}")
    with pytest.raises(UserError, match=r"a/run\.json: recipe is missing"):
        read_predictions(["a"])


def test_more_than_fits_in_memory_is_refused_before_it_is_read(save, monkeypatch):
    save("a")
    save("b", 1)
    monkeypatch.setattr(predictions, "free_memory", lambda: 127)
    with pytest.raises(Unequipped, match=r"of 2 runs take 0\.0 GB, and 0\.0 GB are free; allowed: fewer runs"):
        read_predictions(["a", "b"])
    monkeypatch.setattr(predictions, "free_memory", lambda: 128)
    assert len(read_predictions(["a", "b"]).names) == 2


def test_networks_that_were_trained_at_once_are_each_a_run_and_kept_runs_have_names(save, tmp_path):
    one, three = arrays(1), np.stack([arrays(seed)["tta_logits"] for seed in (2, 3, 4)])
    save("joint", 1, {**one, "member_plain_logits": 2 * three, "member_tta_logits": three})
    save("alone", 5)
    (tmp_path / "kept").mkdir()
    (tmp_path / "alone/run.json").rename("kept/seed-5.json")
    (tmp_path / "alone/predictions.npz").rename("kept/seed-5.npz")
    found = read_predictions(["joint", "kept"])
    assert found.names == ("joint#0", "joint#1", "joint#2", "kept/seed-5")
    assert np.array_equal(found.logits, [*three, arrays(5)["tta_logits"]]) and len(found.records) == 4
    assert np.array_equal(read_predictions(["joint"], tta=False).logits, 2 * three)
    assert read_predictions(["kept/seed-5"]).names == read_predictions(["kept/seed-5.json"]).names == ("kept/seed-5",)
    for wrong in (three[0], three[:, :2], three[:0], three.astype(int)):
        np.savez("wrong.npz", **one, member_tta_logits=wrong)
        with pytest.raises(UserError, match=r"wrong\.npz"):
            read_predictions(["wrong.npz"])
