"""`fastcifar train --diagnose`: arrays and figures beside the run, in one process and over several."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.diagnose import DIAGNOSES, read_diagnosis
from fastcifar.report.figures import Figure, refuse_without_matplotlib
from tests.cli.test_resume import MLP, kept, unfinished

pytestmark = pytest.mark.usefixtures("few_images", "drawn")

BOTH = ["--diagnose", "updates", "activations"]
ALL = ["--diagnose", *DIAGNOSES]
KINDS = ", ".join(DIAGNOSES)
FIGURES = {"updates-size", "updates-rate", "activations-shift", "activations-constant"}
TRAIN = [each for each in MLP if each != "--quiet"]


@pytest.fixture
def drawn(monkeypatch):
    """The stems of the figures that are to be drawn, which takes longer than the trainings here."""
    stems = []
    monkeypatch.setattr(Figure, "save", lambda figure, stem: stems.append(str(stem)) or [Path(f"{stem}.png")])
    return stems


def files(folder):
    return {path.name for path in Path(folder).iterdir() if not path.name.startswith(".")}


def test_arrays_and_figures_are_beside_the_run(capsys, drawn):
    assert main([*TRAIN, *BOTH, "--diagnose", "updates", "--out", "one"]) == 0  # the last flag holds
    assert {"run.json", "diagnose"} <= files("one")
    assert "updates.npz" in files("one/diagnose") and "activations.npz" not in files("one/diagnose")
    capsys.readouterr()
    assert main([*TRAIN, *BOTH, "--runs", "2", "--out", "two"]) == 0
    out = capsys.readouterr().out
    for seed in (0, 1):
        assert f"updates.npz and activations.npz in two/seed-{seed}/diagnose, and " in out
        assert {"updates.npz", "activations.npz"} <= files(f"two/seed-{seed}/diagnose")
        assert read_diagnosis(f"two/seed-{seed}/diagnose/updates.npz").about["seed"] == seed
        assert {f"two/seed-{seed}/diagnose/{name}" for name in FIGURES} <= set(drawn)
    assert main(["summary", "two"]) == 0


def test_the_plasticity_that_a_warm_start_begins_with_is_that_of_the_weights_it_has(capsys, drawn):
    """Without averages and noise: what the run before ended with."""
    plain = [*TRAIN, "--diagnose", "plasticity", "--ema.decay", "0"]
    assert main([*plain, "--out", "cold"]) == main([*plain, "--out", "warm", "--warm-start", "cold"]) == 0
    assert "plasticity.npz in warm/diagnose, and " in capsys.readouterr().out
    assert {f"warm/diagnose/plasticity-{name}" for name in ("norms", "rank", "curvature")} <= set(drawn)
    cold, warm = (read_diagnosis(f"{folder}/diagnose/plasticity.npz") for folder in ("cold", "warm"))
    assert {name: getattr(cold, name)[-1] for name in warm.at_start()} == pytest.approx(warm.at_start(), nan_ok=True)
    assert np.isfinite(cold.test_accuracy[-1]) and np.isnan(warm.test_accuracy[0])


def test_without_matplotlib_the_arrays_are_there_and_one_line_says_why(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(Figure, "save", lambda figure, stem: refuse_without_matplotlib())
    assert main([*TRAIN, *BOTH, "--epochs", "1", "--out", "one"]) == 0
    out = capsys.readouterr().out
    assert "updates.npz and activations.npz in one/diagnose; no figures: figures need matplotlib" in out
    assert files("one/diagnose") == {"updates.npz", "activations.npz"}


def test_a_training_that_goes_on_goes_on_in_the_arrays(monkeypatch):
    args = [*ALL, "--checkpoint-every", "0.5"]
    assert main([*MLP, *args, "--out", "whole"]) == 0
    unfinished(monkeypatch, args, at=6)
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    whole, resumed = kept("whole/diagnose"), kept("run/diagnose")
    assert whole == resumed


@pytest.mark.parametrize(("words", "said"), [
    (["weights"], f"fastcifar: --diagnose is 'weights'; allowed: words out of {KINDS}"),
    ([], f"fastcifar: --diagnose names nothing; allowed: {KINDS}"),
])  # fmt: skip
def test_other_words_are_refused_before_torch_is_imported(words, said):
    code = "import sys; from fastcifar.cli import main; status = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit(status)", "train", "--diagnose", *words],
                          capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.strip()) == (2, "", said)
