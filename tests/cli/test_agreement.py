"""`fastcifar agreement RUN...` on trained runs and on files of predictions."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.cli.agreement import FIGURES

SMALL = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32"]


def predictions(labels, *sure, classes=3):
    """Logits that answer the classes in `sure`, as a file of predictions holds them."""
    logits = 2 * np.eye(classes, dtype=np.float32)[list(sure)]
    return {"plain_logits": logits[::-1].copy(), "tta_logits": logits, "labels": np.array(labels)}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = [0, 1, 2, 0]
    for name, sure in {"a": (0, 1, 1, 1), "b": (0, 1, 1, 0), "c": (0, 2, 0, 0)}.items():
        np.savez(f"{name}.npz", **predictions(labels, *sure))
    return ["a.npz", "b.npz", "c.npz"]


def test_it_says_of_trained_runs_what_their_files_and_records_hold(few_images, tmp_path, capsys):
    assert main(["train", *SMALL, "--runs", "3", "--out", "three", "--quiet"]) == 0
    assert main(["eval", "three/seed-1", "--predictions", "again.npz"]) == 0
    capsys.readouterr()
    assert main(["agreement", "three", "--json", "--out", "said"]) == 0
    text = capsys.readouterr().out
    found, folders = json.loads(text), [tmp_path / f"three/seed-{seed}" for seed in range(3)]
    assert text == (tmp_path / "said/result.json").read_text()
    records = [json.loads((folder / "run.json").read_text()) for folder in folders]
    kept = [np.load(folder / "predictions.npz") for folder in folders]
    assert [run["name"] for run in found["runs"]] == [f"three/seed-{seed}" for seed in range(3)]
    for run, record in zip(found["runs"], records, strict=True):
        assert run["accuracy"] == record["tta_accuracy"] and run["loss"] == pytest.approx(record["tta_loss"], abs=1e-5)
    answers = [file["tta_logits"].argmax(1) for file in kept]
    pairs = [float(np.mean(answers[one] != answers[other])) for one, other in ((0, 1), (0, 2), (1, 2))]
    assert found["churn"] == {"mean": pytest.approx(np.mean(pairs)), "least": min(pairs), "largest": max(pairs)}
    assert [each["members"] for each in found["ensembles"]["logits"]] == [1, 2, 3]
    assert (tmp_path / "said/table.md").read_text().startswith("# 3 runs on 64 test images of synthetic, with test")
    assert found["tta"] is True

    assert main(["agreement", "three", "--plain", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["tta"] is False
    assert [run["accuracy"] for run in plain["runs"]] == [record["accuracy"] for record in records]
    assert main(["agreement", "three/seed-1", "again.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["churn"] == {"mean": 0, "least": 0, "largest": 0}


def test_the_title_says_of_augmentation_and_images_what_all_records_say(few_images, capsys):
    for out, tta in (("a", "none"), ("b", "none"), ("c", "flip")):
        assert main(["train", *SMALL, "--evaluate.tta", tta, "--out", out, "--quiet"]) == 0
    assert main(["eval", "a", "--predictions", "a.npz"]) == 0
    of_synthetic, without = "2 runs on 64 test images of synthetic", ", without test-time augmentation"
    for words, title, tta in (
        (["a", "b"], of_synthetic + without, False),
        (["a", "c"], of_synthetic, None),
        (["a", "c", "--plain"], of_synthetic + without, False),
        (["b", "a.npz"], "2 runs on 64 images", None),
        (["b", "a.npz", "--plain"], "2 runs on 64 images", None),
    ):
        capsys.readouterr()
        assert main(["agreement", *words]) == 0
        out = capsys.readouterr().out
        assert out.splitlines()[0] == title and ("labels alone are compared for a.npz\n" in out) is ("a.npz" in words)
        assert main(["agreement", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["tta"] is tta


def test_of_many_files_a_line_names_a_few(files, capsys):
    for name in range(7):
        np.savez(f"{name}.npz", **predictions([0, 1], 0, 1))
    assert main(["agreement", *(f"{name}.npz" for name in range(7))]) == 0
    assert "compared for 0.npz, 1.npz, 2.npz, 3.npz, 4.npz, 2 others\n" in capsys.readouterr().out


def test_tables_and_lines_hold_numbers_computed_by_hand(files, capsys):
    assert main(["agreement", *files]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["3", "runs", "on", "4", "images"]
    # Right: a 2, b 3, c 2 of 4. Pairs differ on 1 (a, b), 3 (a, c) and 2 (b, c) images.
    assert [*["churn:", "their", "answers", "differ"], "50.00%", "25.00%", "75.00%"] in rows
    # a alone is right where b is wrong: nowhere; c, nowhere; of a and c, each once.
    assert rows[[row[:1] for row in rows].index(["dominance:"])][-3:] == ["8.33%", "0.00%", "25.00%"]
    assert ["2", "2", "0", "1", "2,", "0", "1"] in rows and ["1", "1", "2", "1", "2,", "2", "1"] in rows
    assert "\nlabels alone are compared for a.npz, b.npz, c.npz\n" in out
    assert out.endswith("right: all 1 (25.00%), some 2 (50.00%), none 1 (25.00%)\n")
    # All three by mean probabilities: right on images 0, 1 and 3.
    assert ["3", "all", "1", "75.00%"] in [row[:4] for row in rows]


def test_copies_of_a_network_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        np.savez(f"{name}.npz", **predictions([0, 1], 0, 1))
    assert main(["agreement", "a.npz", "b.npz"]) == 0
    assert "b.npz has the logits of a.npz; each counts as a network" in capsys.readouterr().err


def test_images_without_labels_have_churn_alone(files, capsys):
    for name, sure in (("a", (0, 1)), ("b", (0, 2))):
        np.savez(f"{name}.npz", **predictions([-1, -1], *sure))
    assert main(["agreement", "a.npz", "b.npz"]) == 0
    out = capsys.readouterr().out
    assert "50.00%" in out and "dominance" not in out and "no image has a label: churn is all that can be said" in out


def test_where_no_image_has_a_label_no_figure_is_drawn(files, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        np.savez(f"{name}.npz", **predictions([-1, -1], 0, 1))
    assert main(["agreement", "a.npz", "b.npz", "--out", "said", "--plot"]) == 0
    assert {path.name for path in (tmp_path / "said").iterdir()} == {"result.json", "table.md"}


def test_figures_are_drawn_in_the_folder(files, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["agreement", *files, "--out", "said", "--plot"]) == 0
    capsys.readouterr()
    figures = {f"{name}.{form}" for name in FIGURES for form in ("png", "svg", "pdf")}
    assert {path.name for path in (tmp_path / "said").iterdir()} == figures | {"result.json", "table.md"}
    text = (tmp_path / "said/right.svg").read_text()
    assert "images: all 1, some 2, none 1" in text and ">50<" in text and "mathdefault" not in text


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("result.json", '{"kind": "throughput"}', "--out said holds a result.json of another command; allowed: a new"),
        ("result.json", "{}", "--out said holds a result.json of another command; allowed: a new folder, or one of an"),
        ("result.json", "[", "cannot read an earlier result said/result.json: "),
        ("run.json", "{}", "--out said holds run.json of fastcifar train; allowed: a new folder"),
        ("runs.jsonl", "", "--out said holds runs.jsonl of fastcifar train; allowed: a new folder"),
        ("settings.json", "{}", "--out said holds settings.json of an experiment; allowed: a new folder"),
        ("unfinished.json", "", "--out said holds unfinished.json of fastcifar train; allowed: a new folder"),
    ],
)
def test_folders_of_other_commands_are_refused_and_stay_as_they_are(name, content, line, files, tmp_path, capsys):
    (tmp_path / "said").mkdir()
    for file in (name, "right.png"):
        (tmp_path / "said" / file).write_text(content)
    assert main(["agreement", *files, "--out", "said"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"fastcifar: {line}"), err.count("\n")) == ("", True, 1), err
    found = {path.name: path.read_text() for path in (tmp_path / "said").iterdir()}
    assert found == {name: content, "right.png": content}


def test_figures_of_an_earlier_call_go_and_those_of_others_stay(files, tmp_path, capsys):
    (tmp_path / "said").mkdir()
    figures = {f"{name}.{form}" for name in FIGURES for form in ("png", "svg", "pdf")}
    for name in {*figures, "other.png"}:
        (tmp_path / "said" / name).touch()
    assert main(["agreement", *files, "--out", "said"]) == 0  # no result.json says that the figures are ours
    held = {"result.json", "table.md", "other.png"}
    assert {path.name for path in (tmp_path / "said").iterdir()} == held | figures
    assert main(["agreement", *files[:2], "--out", "said"]) == 0
    assert {path.name for path in (tmp_path / "said").iterdir()} == held
    result = json.loads((tmp_path / "said/result.json").read_text())
    assert (result["kind"], len(result["runs"])) == ("agreement", 2)
    (tmp_path / "said/right.svg").mkdir()
    capsys.readouterr()
    assert main(["agreement", *files, "--out", "said"]) == 2
    assert "cannot remove the earlier figure said/right.svg: " in capsys.readouterr().err


def test_names_of_files_do_not_move_the_cursor(files, tmp_path, capsys):
    (tmp_path / "a\x1b[31m.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-100])
    assert main(["agreement", "a\x1b[31m.npz", "b.npz"]) == 2
    assert "\x1b" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "agreement needs the folders of two runs or more, as in: fastcifar agreement runs/five"),
        (["a.npz"], "a.npz is the only run; allowed: two runs or more"),
        (["a.npz", "./a.npz"], "a.npz is the only run; allowed: two runs or more"),
        (["a.npz", "nosuch"], "nosuch does not exist; allowed: a folder that fastcifar train wrote, or an .npz of"),
        (["a.npz", "b.npz", "--plot"], "--plot is given without --out; allowed: with --out DIR, where the figures go"),
        (["a.npz", "b.npz", "--out", "a.npz"], "output folder a.npz cannot be made: "),
        (["a.npz", "b.npz", "--plt"], "unknown flag --plt; did you mean '--plot'?"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line_and_leaves_nothing(words, line, files, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(["agreement", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"fastcifar: {line}"), err.count("\n")) == ("", True, 1), err
    assert main(["agreement", "a.npz", "nosuch", "--out", "new"]) == 2
    assert sorted(tmp_path.iterdir()) == before


def test_help_and_refusals_need_no_torch():
    code = "import sys; from fastcifar.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for words in (["--help"], ["a", "--plot"], []):
        assert subprocess.run([sys.executable, "-c", code, "agreement", *words], capture_output=True).returncode == 0
