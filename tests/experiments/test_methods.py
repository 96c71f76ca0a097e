"""`warm-start methods`, trained for real with a tiny perceptron on a few synthetic images."""

import dataclasses
import json

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import read_diagnosis
from fastcifar.errors import UserError
from fastcifar.experiments import Diverged
from fastcifar.experiments.methods import METHODS
from fastcifar.experiments.named.methods import Methods, cold_of
from fastcifar.recipes import get_recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.report import summarize

BASE = get_recipe("warmstart-mlp")
RECIPE = dataclasses.replace(
    BASE,
    epochs=2,
    batch_size=32,
    dtype="float32",
    network=MLPConfig(hidden=(16, 12)),
    optimizer=dataclasses.replace(BASE.optimizer, lr=0.1),
)
PLAIN = {"protocols": ("half",), "conditions": ("plain",)}
PART = ("plain", "half")
FITTING = [name for name in METHODS if name != "reset-statistics"]
"""A perceptron has none."""


@pytest.fixture(scope="module")
def data():
    return make_synthetic(192, 60)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("methods") / "new"


@pytest.fixture(scope="module")
def found(data, kept):
    return Methods(recipe=RECIPE, runs=2, **PLAIN).run(data, kept, device="cpu")


def test_every_method_has_a_run_of_each_seed_from_the_weights_of_the_half(found):
    assert found.arms[:2] == ["cold", "warm"] and {*FITTING} < {*found.arms}
    for row in found.rows(PART):
        runs = found.outcomes[f"plain/half/192/{row.arm}"]
        assert row.n == len(runs) == 2
        assert (runs[0].init["mode"] == "cold") == row.arm.startswith("cold")
        if row.arm in METHODS:
            trained = cold_of(row.arm) if METHODS[row.arm].changes else "cold"
            first = found.outcomes[f"plain/half/96/{trained}"][0]
            assert first.dataset.train_size == 96 and first.recipe == runs[0].recipe
            assert "plain/half/96/" in runs[0].init["source"]
        assert runs[0].seed == found.outcomes["plain/half/192/cold"][0].seed, "the order of the images is one"


def test_a_row_says_what_its_runs_say(found):
    for row in found.rows(PART):
        accuracies = {arm: [run.accuracy for run in found.outcomes[f"plain/half/192/{arm}"]] for arm in found.arms}
        assert row.test == summarize(accuracies[row.arm])
        for other, said in (("cold", row.above_cold), ("warm", row.above_warm), (cold_of(row.arm), row.above_own_cold)):
            if other == row.arm or other not in accuracies:
                assert said is None
            else:
                differences = [a - b for a, b in zip(accuracies[row.arm], accuracies[other], strict=True)]
                assert said == summarize(differences)
        runs = found.outcomes[f"plain/half/192/{row.arm}"]
        assert row.seconds == summarize([run.train_seconds for run in runs])


def test_the_first_run_of_each_arm_is_looked_into_before_its_first_step(found, kept):
    for row in found.rows(PART):
        seen = read_diagnosis(kept / f"plain/half/192/{row.arm}/seed-0.plasticity.npz")
        assert seen.steps.tolist() == [0] and not (kept / f"plain/half/192/{row.arm}/seed-1.plasticity.npz").exists()
        assert row.inside["weight_norm"] == summarize([seen.weight_norm[0]])
    norms = {row.arm: row.inside["weight_norm"].mean for row in found.rows(PART)}
    assert norms["shrink-perturb"] < norms["warm"], "shrunk to 0.4"
    assert "plain-half-weight_norm" in found.figures()


def test_seeds_are_of_the_arm_alone_where_a_run_diverged(found):
    arm = "plain/half/192/warm"
    outcomes = {**found.outcomes, arm: [Diverged("the loss is nan"), found.outcomes[arm][1]]}
    changed = dataclasses.replace(found, outcomes=outcomes)
    rows = {row.arm: row for row in changed.rows(PART)}
    assert (rows["warm"].n, rows["cold"].n, rows["warm"].above_cold.n, rows["shrink-perturb"].above_warm.n) == (
        1,
        2,
        1,
        1,
    )
    shown = {row[0] for row in changed.tables()[0].rows}
    assert "warm (1 diverged)" in shown


def test_files_and_remarks(found, kept):
    values = json.loads((kept / "results.json").read_text())
    assert [part["condition"] for part in values["parts"]] == ["plain"]
    assert [arm["arm"] for arm in values["parts"][0]["arms"]] == found.arms
    said = "\n".join(found.remarks())
    assert "plain half: cold - warm: " in said
    assert all(name in said.replace(",", "").split() for name in FITTING if name != "warm")
    assert "left out, as the network has not what they need: reset-statistics" in said
    assert {"plain-half-cost"} <= found.figures().keys()
    names = [line.note for line in found.figures()["plain-half-cost"].lines]
    assert names == found.arms


def test_other_methods_conditions_and_protocols_go_on_in_the_same_folder(found, kept, data):
    said = []
    options = {"only": ("shrink-perturb",), "protocols": ("half", "online"), "round_size": 1000}
    again = Methods(recipe=RECIPE, runs=2, **{**PLAIN, "only": ("shrink-perturb",)})
    again.run(data, kept, device="cpu", on_progress=said.append)
    assert all(progress.kept for progress in said)
    with pytest.raises(UserError, match="online has rounds of no images"):
        Methods(recipe=RECIPE, runs=2, **options).run(data, kept, device="cpu")


def test_online_goes_on_round_by_round(data):
    options = {"only": ("shrink-perturb",), "protocols": ("online",), "conditions": ("regularized",), "round_size": 64}
    experiment = Methods(recipe=RECIPE, regularized=("label_smoothing=0.1",), **options)
    found = experiment.run(data, device="cpu")
    sizes = [64, 128, 192]
    assert {key.split("/")[2] for key in found.outcomes} == set(map(str, sizes))
    last, before = (found.outcomes[f"regularized/online/{size}/shrink-perturb"][0] for size in (192, 128))
    assert "regularized/online/128/shrink-perturb" in last.init["source"]
    assert "regularized/online/64/cold" in before.init["source"]
    assert last.recipe.label_smoothing == 0.1 and last.dataset.train_size == 192
    row = {row.arm: row for row in found.rows(("regularized", "online"))}["shrink-perturb"]
    assert row.seconds.mean == pytest.approx(last.train_seconds + before.train_seconds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ("warmer",)}, "only has 'warmer'; did you mean 'warm'.; allowed: warm, "),
        ({"only": ("warm", "warm")}, "only is"),
        ({"method_settings": ("shrink-perturb",)}, "method_settings has 'shrink-perturb'; allowed: METHOD:FIELD=VALUE"),
        ({"method_settings": ("shrink-perturb:shrink=2",)}, "shrink-perturb:shrink is 2; allowed: 0 to 1"),
        ({"method_settings": ("warm:epochz=2",)}, "epochz"),
        ({"regularized": ("crop",)}, "'crop' sets no field"),
        ({"protocols": ()}, "protocols is ()"),
    ],
)
def test_what_is_refused_before_the_work(options, said, data, tmp_path, trained):
    with pytest.raises(UserError) as error:
        Methods(recipe=RECIPE, **{**PLAIN, **options}).run(data, tmp_path / "new", device="cpu")
    assert said in str(error.value).replace("?", ".") and not trained and not (tmp_path / "new").exists()


def test_settings_of_a_method_change_its_start_or_its_recipe(data):
    words = ("shrink-perturb:shrink=0.25", "shrink-perturb:label_smoothing=0.3")
    found = Methods(recipe=RECIPE, **PLAIN, only=("shrink-perturb",), method_settings=words).run(data, device="cpu")
    (run,) = found.outcomes["plain/half/192/shrink-perturb"]
    assert (run.init["shrink"], run.init["perturb"], run.recipe.label_smoothing) == (0.25, 0.1, 0.3)
    assert "cold-shrink-perturb" in found.arms
