"""`fastcifar robustness`: the accuracies of the library's calls, against the right baseline, and what is refused.
CIFAR-10, CIFAR-10.1 and CIFAR-10-C are stand-ins of a few synthetic images."""

import csv
import dataclasses
import functools
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastcifar
from fastcifar.catalogue import DATASETS, DatasetEntry
from fastcifar.cli import main
from fastcifar.cli.robustness import read_pairs
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.report.statistics import share_interval
from tests.small import MLP

RECIPE = dataclasses.replace(MLP, epochs=3, network=MLPConfig(hidden=(16,)))


@functools.cache
def original():
    return dataclasses.replace(make_synthetic(train_size=256, test_size=96), name="cifar10")


def evaluated_only(test, name):
    data = original()
    return dataclasses.replace(data, train=data.train.subset(torch.arange(0)), test=test, name=name)


@functools.cache
def shifted(variant=""):
    """Some of the images, darker, in another order."""
    places = torch.arange(80, 0, -1) if variant else torch.arange(1, 91)
    test = original().test.subset(places)
    return evaluated_only(fastcifar.Split(test.images // 2, test.labels), "cifar10.1")


def archived(variant):
    name, level = variant.rsplit("-", 1)
    return evaluated_only(corrupted(name, int(level)), "cifar10-c")


def corrupted(name, level, seed=0):
    test = original().test
    return fastcifar.Split(fastcifar.corrupt(test.images, name, level, seed), test.labels)


def absent(data_dir=None):
    raise UserError(f"data_dir {data_dir} holds no such set; looked for its files")


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        others = {name: entry for name, entry in DATASETS.items() if name in ("cifar100", "synthetic")}
        patch.setattr(DATASETS, "_values", others)
        variants = {f"{name}-{level}": 10 for name in ("fog", "saturate", "snow") for level in range(1, 6)}
        DATASETS.add("cifar10", DatasetEntry("a stand-in", original))
        DATASETS.add("cifar10.1", DatasetEntry("a stand-in", shifted, variants={"v4": 10}, test_only=True))
        DATASETS.add("cifar10-c", DatasetEntry("a stand-in", archived, variants=variants, test_only=True))
        DATASETS.add("nowhere", DatasetEntry("never here", absent))
        yield


@pytest.fixture(scope="module")
def runs(registered, tmp_path_factory):
    """Six runs that were trained longer and longer, the second with images held out."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for number in range(6):
        data = original().hold_out(32) if number == 1 else original()
        how = {"epochs": 1 + 2 * number, "optimizer.lr": 0.01}
        run = fastcifar.train(RECIPE, data, device="cpu", eval_every=0, seed=number, **how)
        found[str(run.save(folder / f"run{number}"))] = run
    return found


@pytest.fixture
def ask(capsys):
    def call(*words, text=False):
        assert main(["robustness", *map(str, words), *([] if text else ["--json"])]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out if text else json.loads(out)

    return call


def accuracy(run, split):
    return fastcifar.evaluate(run.model, split, dataclasses.replace(RECIPE.evaluate, tta="none")).accuracy


def test_runs_are_placed_against_the_published_networks(runs, ask):
    """Also one that was tested on held-out images, and with every word that says what was measured."""
    names = list(runs)[:3]
    found = ask(*names, "--on", "cifar10.1", "cifar10.1:v4")
    assert [shift["on"] for shift in found["shifts"]] == ["cifar10.1", "cifar10.1:v4"]
    for shift, images in zip(found["shifts"], (shifted(), shifted("v4")), strict=True):
        line = fastcifar.published_baseline(shift["on"])
        assert (shift["baseline"]["slope"], shift["baseline"]["intercept"]) == (line.slope, line.intercept)
        assert len(shift["baseline"]["networks"]) == 30 and shift["sha256"] == {shift["on"]: images.sha256}
        assert [model["name"] for model in shift["models"]] == names
        for model, run in zip(shift["models"], runs.values(), strict=False):
            pair = fastcifar.AccuracyPair(
                model["name"],
                accuracy(run, original().test),
                accuracy(run, images.test),
                96,
                len(images.test),
            )
            wanted = fastcifar.effective_robustness(pair, line)
            assert (model["original"], model["shifted"]) == (pair.original, pair.shifted)
            assert model["effective_robustness"] == wanted.value and model["predicted"] == wanted.predicted
            assert tuple(model["effective_robustness_interval"]) == wanted.interval
            assert tuple(model["interval"]) == share_interval(round(96 * pair.original), 96)
            assert tuple(model["band"]) == line.band(pair.original)
    for said, (name, run) in zip(found["runs"], runs.items(), strict=False):
        record = json.loads(Path(name, "run.json").read_text())
        sha256 = hashlib.sha256(Path(name, "model.safetensors").read_bytes()).hexdigest()
        assert said["weights_sha256"] == sha256 == record["weights_sha256"]
        assert (said["seed"], said["recipe"]) == (run.seed, run.recipe.name)
    assert [said["predictions"] for said in found["runs"]] == [True, False, True]  # of held-out images they are others
    assert found["original"] == {"dataset": "cifar10", "sha256": original().sha256, "classes": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["date"]) and found["versions"]["torch"]


def test_saved_predictions_that_are_of_other_weights_are_not_believed(runs, ask, tmp_path):
    name, run = next(iter(runs.items()))
    copy = run.save(tmp_path / "copy")
    with np.load(copy / "predictions.npz") as saved:
        wrong = {**saved, "plain_logits": -saved["plain_logits"]}
    for content in (
        lambda path: np.savez(path, **wrong),
        lambda path: path.write_bytes(b"PK"),
        lambda path: path.unlink(),
    ):
        content(copy / "predictions.npz")
        found = ask(copy)
        assert not found["runs"][0]["predictions"]
        assert found["shifts"][0]["models"][0]["original"] == accuracy(run, original().test)
    assert ask(name)["shifts"][0]["models"][0]["original"] == run.accuracy


def test_an_ensemble_is_the_mean_of_probabilities(runs, ask):
    names = list(runs)[:3]
    found = ask(*names, "--ensemble", "--corrupt", "fog", "--severity", "5")
    for what, split in (("original", original().test), ("shifted", corrupted("fog", 5))):
        chances = [fastcifar.evaluate(runs[name].model, split).plain_logits.double().softmax(1) for name in names]
        wanted = (sum(chances).argmax(1) == split.labels).double().mean().item()
        model = found["shifts"][0]["models"][-1]
        assert (model["name"], model["group"]) == ("ensemble of 3", "ensembles")
        assert model[what] == pytest.approx(wanted)


def test_corruptions_are_fitted_to_the_runs_where_these_differ(runs, ask):
    words = ("--corrupt", "fog,saturate", "--severity", "1,4", "--ensemble", "--seed", "2")
    (shift,) = ask(*runs, *words)["shifts"]
    assert (
        shift["on"] == "corrupt" and shift["seed"] == 2 and shift["corruptions"] == {"fog": [1, 4], "saturate": [1, 4]}
    )
    for model, run in zip(shift["models"], runs.values(), strict=False):
        fog = [accuracy(run, corrupted("fog", level, 2)) for level in (1, 4)]
        assert list(model["accuracies"]["fog"].values()) == fog
        assert model["shifted"] == pytest.approx(sum(fog) / 2)  # the benchmark's mean leaves saturate out
    pairs = [fastcifar.AccuracyPair(m["name"], m["original"], m["shifted"], 96, 96) for m in shift["models"][:6]]
    line = fastcifar.fit_baseline(pairs)
    assert shift["baseline"]["slope"] == pytest.approx(line.slope) and len(shift["baseline"]["networks"]) == 6
    assert shift["no_baseline"] is None
    ensemble = shift["models"][-1]
    assert ensemble["effective_robustness"] == pytest.approx(ensemble["shifted"] - line.predict(ensemble["original"]))


def test_copies_of_a_network_are_told(runs, tmp_path, capsys):
    first = next(iter(runs))
    shutil.copytree(first, tmp_path / "copy")
    assert main(["robustness", first, str(tmp_path / "copy")]) == 0
    assert f"{tmp_path / 'copy'} has the weights of {first}; each counts as a network" in capsys.readouterr().err


def test_few_runs_have_accuracies_alone_and_are_told_why(runs, ask):
    names = list(runs)[:2]
    (shift,) = ask(*names, "--on", "cifar10-c", "--corrupt", "fog,snow")["shifts"]
    assert shift["baseline"] is None and "takes 5 networks" in shift["no_baseline"]
    first = shift["models"][0]
    assert first["predicted"] is first["effective_robustness"] is first["effective_robustness_interval"] is None
    wanted = [
        accuracy(runs[names[0]], archived(f"{name}-{level}").test) for name in ("fog", "snow") for level in range(1, 6)
    ]
    assert first["shifted"] == pytest.approx(np.mean(wanted)) and len(shift["sha256"]) == 10
    text = ask(*names, "--on", "cifar10-c:fog-3", text=True)
    assert "accuracies alone: a baseline takes 5 networks" in text and text.split()[0] == "cifar10-c:fog-3"


def test_other_weights_are_of_the_runs_network(runs, ask):
    names = list(runs)
    found = ask(names[0], "--weights", f"{names[2]}/model.safetensors")
    assert [run["name"] for run in found["runs"]] == [names[0], f"{names[2]}/model.safetensors"]
    other = found["shifts"][0]["models"][1]
    assert other["original"] == accuracy(runs[names[2]], original().test) and not found["runs"][1]["predictions"]


def test_given_pairs_need_no_images_and_results_are_kept(tmp_path, ask):
    pytest.importorskip("matplotlib")
    (tmp_path / "p.csv").write_text(
        "name,original,shifted,images,shifted_images\nours,0.94,0.87,10000,2000\nsaid,0.5,0.4,,\n"
    )
    text = ask("--pairs", tmp_path / "p.csv", "--out", tmp_path / "out", "--plot", text=True)
    line = fastcifar.published_baseline("cifar10.1")
    found = fastcifar.effective_robustness(fastcifar.AccuracyPair("ours", 0.94, 0.87, 10_000, 2_000), line)
    low, high = (f"{100 * end:+.2f}" for end in found.interval)
    row = next(each.split() for each in text.splitlines() if "ours" in each)
    assert row == ["ours", "94.00%", "87.00%", f"{found.predicted:.2%}", f"{100 * found.value:+.2f}", low, "to", high]
    assert "baseline: logit(shifted) = -0.472 + 0.839 logit(original)" in text
    assert "beyond the baseline's networks, 81.98% to 97.11%: said" in text
    names = ["cifar10.1.pdf", "cifar10.1.png", "cifar10.1.svg", "results.json", "table.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    kept = json.loads((tmp_path / "out/results.json").read_text())
    assert kept["shifts"][0]["models"][0]["effective_robustness"] == found.value
    assert "| said | 50.00% | 40.00% |" in (tmp_path / "out/table.md").read_text()
    (tmp_path / "out/own.png").write_bytes(b"")
    ask("--pairs", tmp_path / "p.csv", "--out", tmp_path / "out", text=True)
    names = ["own.png", "results.json", "table.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names, "no figure of what was there before"


FIVE = "name,original,shifted,on\n" + "".join(f"m{n},0.{n},0.{n - 1},corrupt\n" for n in range(3, 8))


def test_pairs_of_several_sets_say_which_and_are_fitted(tmp_path, ask):
    (tmp_path / "p.csv").write_text(FIVE + "mine,0.94,0.87,cifar10.1\n")
    words = ("--on", "cifar10.1", "--corrupt", "fog", "--pairs", tmp_path / "p.csv")
    one, other = ask(*words)["shifts"]
    assert [model["name"] for model in one["models"]] == ["mine"] and one["baseline"]["source"].startswith(
        "30 networks"
    )
    assert [model["name"] for model in other["models"]] == [f"m{n}" for n in range(3, 8)]
    assert other["baseline"]["source"] == "the models of this table"


REFUSED = {
    "": "robustness needs saved runs or --pairs",
    "nothing": "nothing holds no run: run.json is missing",
    "RUN0 RUN0": "run0 is given twice",
    "RUN0 SAME0": r"run0(/\.)? is given twice",
    "--pairs FIVE --corrupt fog --out SWEEP": "--out sweep holds settings.json of an experiment; allowed: a new folder",
    "--pairs FIVE --corrupt fog --out RESULT": r"--out result holds a results\.json of another command; allowed: a new",
    "RUN0 --ensemble": "--ensemble is True; allowed: with several runs",
    "RUN0 RUN1 --weights x.pt": r"--weights is .*; allowed: with one RUN, whose network they are for",
    "RUN0 --plot": "--plot is True; allowed: with --out",
    "RUN0 --on cifar11": "unknown data set 'cifar11'",
    "RUN0 --on cifar10.1 nowhere": "holds no such set; looked for its files",
    "RUN0 --on cifar100": "cifar100 has 100 classes, the run 10",
    "RUN0 --corrupt fogg": "unknown corruption 'fogg'; did you mean 'fog'",
    "RUN0 --severity 3": "--severity says how images are corrupted",
    "RUN0 --on cifar10-c --corrupt fog --seed 3": "--seed is given, and nothing is corrupted here",
    "RUN0 OTHER": r"other was trained on data whose name is 'synthetic', .*run0 on 'cifar10'; allowed: runs",
    "--pairs nothing.csv": "cannot read the pairs nothing.csv",
    "--pairs FIVE --corrupt fog --on cifar10.1:v4 --out FIVE": "is a file|cannot be made",
    "--pairs FIVE": r"line 2: on is 'corrupt'; allowed: cifar10\.1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_go_together_is_refused_in_a_line(runs, capsys, tmp_path, monkeypatch, words):
    (tmp_path / "five.csv").write_text(FIVE)
    monkeypatch.chdir(tmp_path)
    if "OTHER" in words:
        data = make_synthetic(train_size=256, test_size=64)
        fastcifar.train(RECIPE, data, device="cpu", eval_every=0).save(tmp_path / "other")
    for folder, file in (("sweep", "settings.json"), ("result", "results.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text('{"experiment": "sweep"}')
    places = {"FIVE": "five.csv", "OTHER": "other", **{f"RUN{n}": name for n, name in enumerate(runs)}}
    places |= {"SAME0": f"{next(iter(runs))}/.", "SWEEP": "sweep", "RESULT": "result"}
    assert main(["robustness", *(places.get(word, word) for word in words.split())]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert re.search(REFUSED[words], err), err


BAD = {
    "": "is empty; allowed: name, original, shifted, and perhaps images, shifted_images, on",
    "name,original\na,0.5\n": r"has the columns \['name', 'original'\]",
    "name,original,shifted,shifted\na,1,1,1\n": "has the columns",
    "name,original,shifted,size\n": "has the columns",
    "name,original,shifted\na,0.5\n": "line 2 has 2 values; allowed: 3",
    "name,original,shifted\na,0.5,0.4\nb,0.5,94%\n": "line 3: shifted is '94%'; allowed: a number",
    "name,original,shifted\na,94.1,87.0\n": "line 2: original of 'a' is 94.1; allowed: 0 to 1",
    "name,original,shifted,images\na,0.5,0.4,1.5\n": "line 2: images is '1.5'; allowed: a whole number",
    'name,original,shifted\n"a,0.5,0.4\n': "cannot read the pairs",
}


@pytest.mark.parametrize("text", BAD)
def test_a_file_of_no_pairs_is_refused_with_the_line(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=BAD[text]):
        read_pairs(tmp_path / "p.csv", ["cifar10.1"])


@given(st.binary(max_size=60) | st.text('name,original,shifted\n"0.15aé', max_size=80).map(str.encode))
def test_any_file_of_pairs_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for start in (b"", b"name,original,shifted\n"):
        path.write_bytes(start + content)
        try:
            (pairs,) = read_pairs(path, ["cifar10.1"]).values()
        except UserError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert all(0 <= each <= 1 for pair in pairs for each in (pair.original, pair.shifted))


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])), st.floats(0, 1), st.floats(0, 1)
        )
    )
)
def test_written_pairs_are_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "original", "shifted"), *rows])
    (found,) = read_pairs(path, ["cifar10.1"]).values()
    assert [(pair.name, pair.original, pair.shifted) for pair in found] == rows
