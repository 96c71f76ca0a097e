"""`warm-start methods`, trained for real with a tiny perceptron on a few synthetic images."""

import dataclasses
import json

import pytest

from fastcifar.diagnose import read_diagnosis
from fastcifar.errors import UserError
from fastcifar.experiments import Diverged
from fastcifar.experiments.methods import METHODS, cold_of
from fastcifar.experiments.methods_result import MethodsResult
from fastcifar.experiments.named.methods import Methods
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.report import summarize
from tests.small import PERCEPTRON

RECIPE = dataclasses.replace(PERCEPTRON, epochs=2, network=MLPConfig(hidden=(16, 12)))
PLAIN = {"protocols": ("half",), "conditions": ("plain",)}
PART = ("plain", "half")
FITTING = [name for name in METHODS if name != "reset-statistics"]
"""A perceptron has none."""


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
            assert first.dataset.train_size == 96
            sized = {"ema": runs[0].recipe.ema, "continual_backprop": runs[0].recipe.continual_backprop}
            assert dataclasses.replace(first.recipe, **sized) == runs[0].recipe, (
                "but for what goes by the round's steps"
            )
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
        assert row.seconds == [run.train_seconds for run in runs]


def test_the_first_run_of_each_arm_is_looked_into_before_its_first_step(found, kept):
    for row in found.rows(PART):
        seen = read_diagnosis(kept / f"plain/half/192/{row.arm}/seed-0.plasticity.npz")
        assert seen.steps.tolist() == [0] and not (kept / f"plain/half/192/{row.arm}/seed-1.plasticity.npz").exists()
        assert row.inside[-1]["weight_norm"] == summarize([seen.weight_norm[0]])
        first = kept / f"plain/half/96/{row.arm}/seed-0.plasticity.npz"  # of cold starts, which have a first round
        ranks = {"srank": summarize([read_diagnosis(first).srank[0]])} if row.arm.startswith("cold") else {}
        assert row.inside[0] == row.inside[0] | ranks and bool(row.inside[0]) == bool(ranks)
    norms = {row.arm: row.inside[-1]["weight_norm"].mean for row in found.rows(PART)}
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
    assert "plain half: cold - warm: " in said and "miss 0 by chance alone" in said
    assert all(name in said.replace(",", "").split() for name in FITTING if name != "warm")
    assert "left out, as the network has not what they need: reset-statistics" in said
    assert {"plain-half-cost"} <= found.figures().keys()
    figure = found.figures()["plain-half-cost"]
    assert [line.note for line in figure.lines] == ["cold", *FITTING] and "plain half" in figure.title


def test_other_methods_and_more_to_look_into_go_on_in_the_same_folder(found, data, tmp_path):
    said = []

    def run(**options):
        said.clear()
        experiment = Methods(recipe=RECIPE, **{**PLAIN, "runs": 2, **options})
        result = experiment.run(data, tmp_path / "new", device="cpu", on_progress=said.append)
        return result, [progress.key for progress in said if progress.outcome and not progress.kept]

    run(only=("fire",))
    result, trained = run(only=("dash",))
    assert trained == [f"plain/half/192/dash/seed-{seed}" for seed in (0, 1)]
    assert [row.test for row in result.rows(PART) if row.arm == "dash"] == [
        row.test for row in found.rows(PART) if row.arm == "dash"
    ], "from the weights of the first round, which were removed and are trained again"
    _, trained = run(only=("dash",), looked_into=2)
    assert trained == [f"plain/half/{arm}/seed-1" for arm in ("96/cold", "192/cold", "192/warm", "192/dash")]
    _, trained = run(only=("fire", "dash"))
    assert not trained


def test_the_weights_of_a_chain_of_rounds_are_made_again(data, tmp_path):
    options = {"only": ("fire",), "protocols": ("online",), "conditions": ("plain",), "round_size": 64}
    first = Methods(recipe=RECIPE, **options, looked_into=0).run(data, tmp_path / "new", device="cpu")
    again = Methods(recipe=RECIPE, **options, looked_into=1).run(data, tmp_path / "new", device="cpu")
    for key, outcomes in first.outcomes.items():
        assert outcomes[0].accuracy == again.outcomes[key][0].accuracy
    assert not list((tmp_path / "new").rglob("*.safetensors")), "kept no longer than they are needed"


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
    assert row.seconds == [pytest.approx(last.train_seconds + before.train_seconds)]


def test_of_seconds_the_median_is_shown(found, monkeypatch):
    row = dataclasses.replace(found.rows(PART)[0], seconds=[9.0, 1.25, 2.0], start_seconds=[0.0] * 3)
    monkeypatch.setattr(MethodsResult, "_row", lambda self, part, arm: dataclasses.replace(row, arm=arm))
    table = found.tables()[0]
    assert table.columns[-2:] == ("training, median", "of which the start")
    assert {cells[-2:] for cells in table.rows} == {("2.0 s (1.2 to 9.0)", "-")}


def test_what_a_start_computes_is_a_part_of_the_seconds(found):
    rows = {row.arm: row for row in found.rows(PART)}
    assert all(0 < start < whole for start, whole in zip(rows["fire"].start_seconds, rows["fire"].seconds, strict=True))
    assert rows["continual-backprop"].replaced.mean > 0 and rows["warm"].replaced is None
    assert "units that began again in the last round, mean: redo " in "\n".join(found.remarks())
    assert not any(rows["warm"].start_seconds)


def test_more_regularization_leaves_no_method_with_less_decay(data):
    experiment = Methods(recipe=RECIPE, protocols=("half",), regularized=("optimizer.weight_decay=0.01",))
    decays = {job.arm: job.recipe.optimizer.weight_decay for job in experiment.jobs(data)}
    plain = {arm: decay for arm, decay in decays.items() if arm.startswith("plain")}
    assert set(plain.values()) == {0.0, 1e-4} and set(decays.values()) - set(plain.values()) == {0.01}
    assert all(decay == 0.01 for arm, decay in decays.items() if arm.startswith("regularized"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ("warmer",)}, "only has 'warmer'; did you mean 'warm'.; allowed: warm, "),
        ({"only": ("warm", "warm")}, "only is"),
        ({"method_settings": ("shrink-perturb",)}, "method_settings has 'shrink-perturb'; allowed: METHOD:FIELD=VALUE"),
        ({"method_settings": ("shrink-perturb:shrink=2",)}, "shrink-perturb:shrink is 2; allowed: 0 to 1"),
        ({"method_settings": ("dash:flor=2",)}, "dash has no setting 'flor'; did you mean 'floor'.; allowed: "),
        ({"method_settings": ("warm:optimizer.lrr=2",)}, "lrr"),
        ({"method_settings": ("warm:reset=last-3",)}, "reset has 'last-3', and the network has 3 layers"),
        ({"only": ("reset-statistics",)}, "reset-statistics needs statistics, which MLP has not; allowed: "),
        ({"protocols": ("online",)}, "online has rounds of no images"),
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
