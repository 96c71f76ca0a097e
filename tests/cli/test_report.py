"""`fastcifar report DIR...`: one page about runs that were kept, on the command line."""

import base64
import io
import json
import re

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.output import PARTIAL
from fastcifar.report import Figure
from fastcifar.report.calibration import calibrate

SMALL = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture
def undrawn(monkeypatch):
    """Without figures, which take seconds."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Figure, "svg", lambda *_: "<svg></svg>")


def thumbnails(page: str) -> dict[int, np.ndarray]:
    """Return the images on a page by their places."""
    pictures = pytest.importorskip("PIL.Image")
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="test image (\d+):', page)
    return {int(place): np.asarray(pictures.open(io.BytesIO(base64.b64decode(png)))) for png, place in found}


def test_a_page_of_trained_runs_shows_their_numbers_and_their_test_images(few_images, undrawn, tmp_path, capsys):
    assert main(["train", *SMALL, "--runs", "2", "--out", "kept/two", "--quiet"]) == 0
    assert main(["train", *SMALL, "--holdout", "96", "--seed", "5", "--out", "kept/with-held-out", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["report", "kept"]) == 0
    out, err = capsys.readouterr()
    page = (tmp_path / "kept/report.html").read_text()
    assert (out, err) == (f"3 runs, {len(page.encode()) / 1e6:.1f} MB: kept/report.html\n", "")
    for folder in ("two/seed-0", "two/seed-1", "with-held-out"):
        record = json.loads((tmp_path / "kept" / folder / "run.json").read_text())
        assert f">{record['tta_accuracy']:.2%}<" in page and f">{record['tta_loss']:.4f}<" in page
    tested, held = page.split("96 held-out images of synthetic, predictions of 1 run ")
    assert "64 test images of synthetic, predictions of 2 runs " in tested

    made = make_synthetic(train_size=256, test_size=64)
    for part, images in ((tested, made.test.images), (held, made.hold_out(96).test.images)):
        shown = thumbnails(part)
        assert len(shown) >= 24
        assert all(np.array_equal(pixels, images[place].numpy()) for place, pixels in shown.items())
    files = [np.load(tmp_path / f"kept/two/seed-{seed}/predictions.npz") for seed in (0, 1)]
    right = sum((file["tta_logits"].argmax(1) == file["labels"]).astype(int) for file in files)
    hardest = re.findall(r"image (\d+)</i>", tested.split("The hardest")[1].split("The most confusing")[0])
    assert [right[int(place)] for place in hardest] == sorted(right)[: len(hardest)]

    assert main(["report", "kept/two", "--no-images", "-o", "new/it.html"]) == 0
    page = (tmp_path / "new/it.html").read_text()
    assert "The images are not shown: --no-images leaves them out." in page and not thumbnails(page)
    assert [path.name for path in (tmp_path / "new").iterdir() if not path.name.startswith(PARTIAL)] == ["it.html"]


def test_what_is_not_at_hand_is_said(few_images, undrawn, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda _: str(tmp_path / "cache"))
    assert main(["train", *SMALL, "--runs", "3", "--out", "kept", "--quiet"]) == 0
    for seed, name in ((0, "cifar10"), (1, "cifar10"), (2, "mine from <memory>")):
        file = tmp_path / f"kept/seed-{seed}/run.json"
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "dataset": {**values["dataset"], "name": name}}))
    (tmp_path / "kept/runs.jsonl").unlink()
    (tmp_path / "kept/seed-1/predictions.npz").write_bytes(b"damaged")
    (tmp_path / "kept/more").mkdir()
    (tmp_path / "kept/more/run.json").write_text("{")
    capsys.readouterr()
    assert main(["report", "kept"]) == 0
    page, err = (tmp_path / "kept/report.html").read_text(), capsys.readouterr().err
    assert "Left out of all numbers: 1 damaged (files, or lines of one)" in page and "more/run.json" in err
    said = r"calibration are of 2 of 3 runs: those of 1 cannot be read \(kept/seed-1/predictions\.npz: [^<]*\)<"
    assert re.search(said, page)
    (tmp_path / "kept/seed-1/predictions.npz").unlink()
    assert main(["report", "kept"]) == 0
    page = (tmp_path / "kept/report.html").read_text()
    assert "Images and calibration are of 2 of 3 runs: 1 kept no predictions<" in page
    assert "The images are not shown: cifar10 is not here; --data-dir DIR says where it is." in page
    assert main(["report", "kept/seed-2"]) == 0
    page = (tmp_path / "kept/seed-2/report.html").read_text()
    assert "The images are not shown: mine from &lt;memory&gt; is no set that is known here." in page
    (tmp_path / "kept/seed-2/predictions.npz").unlink()
    assert main(["report", "kept/seed-2"]) == 0
    page = (tmp_path / "kept/seed-2/report.html").read_text()
    assert "Images and calibration are of 0 of 1 runs: 1 kept no predictions<" in page and 'id="images"' not in page
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path))
    assert main(["report", "kept"]) == 0
    page = (tmp_path / "kept/report.html").read_text()
    assert re.search("The images are not shown: [^<]*https://a.place", page)


def test_predictions_count_one_by_one_whatever_lies_beside_them(few_images, undrawn, tmp_path, monkeypatch, capsys):
    """A damaged record beside lines that are whole, a damaged file of predictions, and networks that were trained at
    once, which are one run."""
    assert main(["train", *SMALL, "--runs", "3", "--ensemble.members", "2", "--out", "kept", "--quiet"]) == 0
    (tmp_path / "kept/seed-0/run.json").write_text("{")
    (tmp_path / "kept/seed-2/predictions.npz").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["report", "kept", "-o", "IT.HTML"]) == 0
    page = (tmp_path / "IT.HTML").read_text()
    assert "of 2 of 3 runs: those of 1 cannot be read (kept/seed-2/predictions.npz: " in page
    assert "64 test images of synthetic, predictions of 2 runs with" in page
    found = []
    for seed in (0, 1):
        arrays = np.load(tmp_path / f"kept/seed-{seed}/predictions.npz")
        assert arrays["member_tta_logits"].shape[0] == 2
        found.append(calibrate(arrays["tta_logits"], arrays["labels"]))
    (row,) = re.findall(r"<tr><th[^>]*>davidnet-mlp</th><td>2</td><td>([^<]*)</td>", page.split('id="calibration"')[1])
    assert row == f"{np.mean([each.ece for each in found]):.2%}"


def test_of_test_images_without_labels_none_is_looked_for(few_images, undrawn, tmp_path, monkeypatch, capsys):
    assert main(["train", *SMALL, "--out", "kept", "--quiet"]) == 0
    file = tmp_path / "kept/predictions.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "labels": np.full(64, -1)})
    monkeypatch.setattr("fastcifar.cli.saved.own_images", lambda *_: pytest.fail("the images are loaded"))
    assert main(["report", "kept"]) == 0
    page = (tmp_path / "kept/report.html").read_text()
    assert 'id="images"' not in page and "64 test images of synthetic have no labels." in page


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "report needs a folder of runs, as in: fastcifar report runs"),
        (["nosuch"], "nosuch does not exist; allowed: a folder of runs, as runs.jsonl or run.json lie in one"),
        (["."], ". holds no run; allowed: a folder that fastcifar train wrote"),
        ([".", "-o", "page.pdf"], "--out is page.pdf; allowed: a file whose name ends in .html"),
        ([".", "-o", "folder.html"], "--out is folder.html; allowed: a file whose name ends in .html"),
        (
            ["kept", "-o", "kept/run.json/page.html"],
            "--out is kept/run.json/page.html, and kept/run.json is a file; allowed: a file in a folder, old or new",
        ),
        (["taken"], "taken/report.html is there, and no page of fastcifar report; allowed: -o FILE.html, which is"),
        (["blocked"], "blocked/report.html is there, and no page of fastcifar report; allowed: -o FILE.html, which is"),
    ],
)
def test_what_is_no_page_is_refused_in_one_line_and_leaves_nothing(
    words, line, new_record, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    if words[:1] in (["kept"], ["taken"], ["blocked"]):
        (tmp_path / words[0]).mkdir()
        (tmp_path / words[0] / "run.json").write_text(json.dumps(new_record().to_json()))
    if words == ["taken"]:
        (tmp_path / "taken/report.html").write_text("mine")
    if words == ["blocked"]:
        (tmp_path / "blocked/report.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"fastcifar: {line}"), err.count("\n")) == ("", True, 1), err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_refusals_need_no_torch(without_torch):
    without_torch("report --help", "report", "report nosuch", "report . -o x.pdf")
