"""The experiments on warm starts, trained for real with a tiny perceptron on a few synthetic images."""

import dataclasses
import hashlib
import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments import Diverged
from fastcifar.experiments.named.half import Half
from fastcifar.experiments.named.table import Table
from fastcifar.experiments.warm_starts import doubts
from fastcifar.models import build_model
from fastcifar.recipes import EvaluateConfig, change, get_recipe, network_of
from fastcifar.record import Scores
from fastcifar.report import summarize
from fastcifar.training import evaluate
from tests.small import PERCEPTRON

SETTINGS = {"eval_every": 2}


def half(recipe, data, runs=1, folder=None, on_progress=None, **options):
    return Half(recipe=recipe, runs=runs, **options).run(data, folder, device="cpu", on_progress=on_progress)


def table(recipe, data, folder=None, **options):
    return Table(recipe=recipe, **options).run(data, folder, device="cpu")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("half") / "new"


@pytest.fixture(scope="module")
def found(data, kept):
    return half(PERCEPTRON, data, 2, kept, **SETTINGS)


def test_the_first_round_has_half_of_the_images_and_the_second_starts_from_its_weights(found, kept):
    for place, seed in enumerate((0, 1)):
        first, warm, cold, mixed = (found.records[arm][place] for arm in ("half", "warm", "cold", "shrink-perturb"))
        sha256 = hashlib.sha256((kept / f"half/seed-{seed}.safetensors").read_bytes()).hexdigest()
        assert [record.dataset.train_size for record in (first, warm, cold, mixed)] == [96, 192, 192, 192]
        assert (warm.init["mode"], warm.init["sha256"]) == ("warm", sha256)
        assert (mixed.init["shrink"], mixed.init["perturb"], mixed.init["sha256"]) == (0.4, 0.1, sha256)
        assert first.init == cold.init == {"mode": "cold"}
        assert warm.seed == cold.seed == mixed.seed
        assert first.seed not in (warm.seed, *(record.seed for record in found.records["half"][:place]))


def test_the_training_accuracy_is_that_of_the_final_weights_on_the_training_images(found, kept, data):
    model = build_model(PERCEPTRON, 10, data.mean, data.std)
    model.load_state_dict(load_file(kept / "warm/seed-1.safetensors"))
    seen = evaluate(model, data.train, EvaluateConfig(tta="none"))
    assert found.train_accuracies("warm")[1] == pytest.approx(seen.accuracy)
    assert found.records["warm"][1].train_split.loss == pytest.approx(seen.loss, rel=1e-4)


def test_an_interrupted_experiment_goes_on_and_ends_as_one_that_was_not(found, data, tmp_path):
    def interrupt(progress):
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half(PERCEPTRON, data, 2, tmp_path / "new", **SETTINGS, on_progress=interrupt)
    said = []
    again = half(PERCEPTRON, data, 2, tmp_path / "new", **SETTINGS, on_progress=said.append)
    assert [progress.kept for progress in said if progress.outcome] == [True] * 5 + [False] * 3
    assert (said[-1].done, said[-1].total, said[-1].seconds_left) == (8, 8, 0.0)
    assert all(progress.seconds_left > 0 for progress in said[5:-1])
    for arm in found.records:
        assert again.test_accuracies(arm) == found.test_accuracies(arm)
        assert again.train_accuracies(arm) == found.train_accuracies(arm)


def test_more_seeds_train_only_what_is_not_kept(found, kept, data):
    said = []
    half(PERCEPTRON, data, 2, kept, **SETTINGS, on_progress=said.append)
    assert all(progress.kept for progress in said)
    more = half(PERCEPTRON, data, 3, kept, **SETTINGS, on_progress=said.append)
    trained = [progress.key for progress in said if progress.outcome and not progress.kept]
    assert trained == [f"{arm}/seed-2" for arm in more.records]
    assert more.test_accuracies("cold")[:2] == found.test_accuracies("cold")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shrink": 0.5}, "shrink is 0.4 there and 0.5 now"),
        ({"subset_seed": 1}, "subset_seed is 0 there and 1 now"),
        ({"fraction": 0.25}, "fraction is 0.5 there and 0.25 now"),
        ({"until_train_accuracy": 0.9}, "until_train_accuracy is null there and 0.9 now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(found, kept, data, change, said):
    with pytest.raises(UserError, match=said):
        half(PERCEPTRON, data, 1, kept, **{**SETTINGS, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": 0}, "runs is 0; allowed: 1 to 100,000"),
        ({"seed": -1}, "seed is -1; allowed: 0 or more"),
        (
            {"seed": 10**9 - 1, "runs": 2},
            "seed is 999999999; allowed: 0 up to 10**9 - 1, the last of the runs included",
        ),
        ({"fraction": 1}, "fraction is 1; allowed: above 0, below 1"),
        ({"fraction": 0.16}, "the first round has 31 images; allowed: batch_size, 32, or more"),
        ({"shrink": 2}, "shrink is 2; allowed: 0 to 1"),
        ({"shrink": 0, "perturb": 0}, "shrink and perturb are both 0"),
        ({"until_train_accuracy": 0}, "until_train_accuracy is 0; allowed: above 0, up to 1"),
        ({"subset_seed": -1}, "subset_seed is -1; allowed: 0 to 4,294,967,295"),
        ({"eval_every": -1}, "eval_every is -1; allowed: 0 or more epochs"),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_written(data, tmp_path, change, said):
    with pytest.raises(UserError) as refused:
        half(PERCEPTRON, data, **{"folder": tmp_path / "new", **change})
    assert said in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_without_a_folder_the_result_is_the_same(found, data):
    assert half(PERCEPTRON, data, **SETTINGS).test_accuracies("warm") == found.test_accuracies("warm")[:1]


@pytest.fixture
def made_up(new_record):
    """A result with these test accuracies, and 1 for all training accuracies."""
    rest = {"train_split": Scores(accuracy=1.0, loss=0.0), "train_seconds": 2.0, "epochs": 3}

    def result(**accuracies):
        records = {
            arm.replace("_", "-"): [new_record(accuracy=value, **rest) for value in values]
            for arm, values in accuracies.items()
        }
        return Half(runs=len(accuracies["cold"])).result({"experiment": "half"}, records)

    return result


def test_differences_are_taken_seed_by_seed(made_up):
    result = made_up(half=[0.4, 0.2], warm=[0.5, 0.3], cold=[0.6, 0.41], shrink_perturb=[0.58, 0.39])
    gap = result.test_difference("cold", "warm")
    assert (gap.n, gap.mean, gap.std) == (2, pytest.approx(0.105), pytest.approx(0.0070711, rel=1e-4))
    assert result.recovered == pytest.approx(0.085 / 0.105)
    kept = result.to_dict()
    assert kept["differences"]["cold - warm"]["test_accuracy"]["interval"] == gap.interval
    assert kept["arms"]["warm"]["test_accuracy"]["values"] == [0.5, 0.3]
    assert "cold - warm: +10.50 ± 6.35 points of test accuracy, n=2" in result.remarks()
    assert "shrink-perturb closes 81% of the gap from warm to cold" in result.remarks()


@pytest.mark.parametrize(("warm", "cold"), [([0.5], [0.6]), ([0.5, 0.5], [0.4, 0.41]), ([0.5, 0.5], [0.5, 0.53])])
def test_no_share_is_said_of_a_gap_that_is_not_seen(made_up, warm, cold):
    result = made_up(half=warm, warm=warm, cold=cold, shrink_perturb=warm)
    assert result.recovered is None
    assert not any("closes" in line for line in result.remarks())


@pytest.mark.parametrize(
    ("warm", "cold", "said"),
    [
        ([0.5], [0.4], ["one seed says little of .* (the warm start ends higher, against the paper's claim)"]),
        ([0.5], [0.6], ["one seed says little of .* (no interval)"]),
        ([0.5, 0.5], [0.4, 0.41], ["warm starts end higher, against the paper's claim"]),
        ([0.5, 0.5], [0.5, 0.53], ["the interval includes 0"]),
        ([0.5, 0.5], [0.6, 0.61], []),
    ],
)
def test_what_does_not_show_the_claim_is_said(made_up, warm, cold, said):
    result = made_up(half=warm, warm=warm, cold=cold, shrink_perturb=cold)
    lines = [line for line in result.remarks() if re.search("one seed|warm starts end|includes 0", line)]
    assert len(lines) == len(said)
    assert all(
        re.match(each.replace("(", r"\(").replace(")", r"\)"), line) for each, line in zip(said, lines, strict=True)
    )


def test_a_tables_cells_that_do_not_show_the_claim_are_named_together():
    above, none, below = (summarize(values) for values in ([0.1, 0.11], [-0.1, 0.1], [-0.1, -0.11]))
    lines = doubts({"mlp sgd": none, "resnet18 sgd": above, "mlp Adam": none, "resnet18 Adam": below})
    assert [line.partition(":")[0] for line in lines] == ["mlp sgd, mlp Adam", "resnet18 Adam"]


@pytest.mark.parametrize("gap", [0.0625, -0.0625, 0.0])
def test_gaps_that_are_all_the_same_show_nothing(gap):
    (line,) = doubts({"": summarize([gap, gap])})
    assert line.startswith("the gap is the same with every seed, which says nothing")


def test_precision_and_recall_are_macro_means_and_less_the_cold_starts(found):
    for arm in ("half", "warm", "cold", "shrink-perturb"):
        for score in ("precision", "recall"):
            means = [sum(getattr(record.by_class, score)) / 10 for record in found.records[arm]]
            assert found.by_class(score, arm).mean == pytest.approx(sum(means) / 2)
    gap = found.by_class("recall", "warm", "cold")
    recalls = {arm: [record.recall for record in found.records[arm]] for arm in ("warm", "cold")}
    assert gap.mean == pytest.approx(sum(recalls["warm"]) / 2 - sum(recalls["cold"]) / 2)
    kept = found.to_dict()
    assert kept["arms"]["warm"]["recall"]["mean"] == pytest.approx(sum(recalls["warm"]) / 2)
    assert kept["differences"]["cold - warm"]["recall"]["mean"] == pytest.approx(-gap.mean)
    rows = {row[0]: row for row in found.tables()[2].rows}
    assert rows["cold"][3:] == ("-", "-") and rows["warm"][4].startswith(f"{100 * gap.mean:+.2f}")


def test_runs_of_before_there_were_scores_by_class_have_none(found):
    older = [dataclasses.replace(record, by_class=None) for record in found.records["cold"]]
    result = dataclasses.replace(found, outcomes={**found.outcomes, "cold": older})
    assert result.by_class("recall", "cold") is result.by_class("recall", "warm", "cold") is None
    kept = result.to_dict()
    assert kept["arms"]["cold"]["recall"] is None and kept["arms"]["warm"]["recall"]["n"] == 2
    assert [row[1:] for row in result.tables()[2].rows if row[0] == "cold"] == [("-",) * 4]


def test_a_mean_number_of_epochs_is_rounded(made_up):
    result = made_up(half=[0.4] * 3, warm=[0.5] * 3, cold=[0.6] * 3, shrink_perturb=[0.5] * 3)
    result.outcomes["cold"][0] = dataclasses.replace(result.records["cold"][0], epochs=49)
    cells = {row[0]: row for row in result.tables()[0].rows}
    assert (cells["cold"][3], cells["warm"][3]) == ("18.33", "3")


def test_the_curves_have_the_notebooks_form(found):
    curves = found.notebook()
    assert list(curves) == ["half_cifar", "warm_start", "random_init", "shrink_perturb"]
    assert [curve["offset"] for curve in curves.values()] == [0, 4, 4, 4]
    history = found.records["warm"][0].history
    assert curves["warm_start"]["training_accuracy"] == [0, *(100 * row.train_accuracy for row in history)]
    second, third = 100 * history[1].test_accuracy, 100 * history[2].test_accuracy
    assert curves["warm_start"]["test_accuracy"] == [0, None, second, third]


def test_the_result_is_written_and_drawn(found, tmp_path):
    pytest.importorskip("matplotlib")
    for _ in range(2):  # again in the same place
        files = found.write(tmp_path / "out") + found.draw(tmp_path / "out")
    expected = {"results.json", "runs.json", "table.md"}
    expected |= {f"{name}.{form}" for name in ("train", "test") for form in ("png", "svg", "pdf")}
    assert {file.name for file in files} == {file.name for file in (tmp_path / "out").iterdir()} == expected
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["seeds"] == [0, 1]
    assert results["arms"]["cold"]["train_accuracy"]["n"] == 2
    assert json.loads((tmp_path / "out/runs.json").read_text()) == found.notebook()
    text = (tmp_path / "out/table.md").read_text()
    assert all(f"| {arm} |" in text for arm in ("half", "warm", "cold", "shrink-perturb", "cold - warm"))
    assert "n=2, ± 95% interval" in text
    drawn = (tmp_path / "out/test.svg").read_text()
    assert all(label in drawn for label in ("epoch", "test accuracy (%)", "stroke-dasharray", "warm start"))
    assert f">{found.title}, n=2<" in drawn and found.title.endswith(", synthetic")


def test_the_notebooks_files_are_those_of_the_first_seed_in_the_same_folder(found, kept, data):
    pytest.importorskip("matplotlib")
    said = []
    result = half(PERCEPTRON, data, 2, kept, **SETTINGS, notebook_names=True, on_progress=said.append)
    assert all(progress.kept for progress in said)  # the flag does not make the folder another
    result.draw(kept)
    arms = {"half_cifar": "half", "warm_start_full": "warm", "random_full": "cold"}
    for name, arm in arms.items():
        weights = torch.load(kept / f"{name}.pt")
        expected = load_file(kept / arm / "seed-0.safetensors")
        assert list(weights) == ["model"] and weights["model"].keys() == expected.keys()
        assert all(torch.equal(weights["model"][key], value) for key, value in expected.items())
    runs = json.loads((kept / "runs.json").read_text())
    assert {name: found[2] for name, found in runs.items()} == {"half_cifar": 0, "warm_start": 1, "full_cifar": 1}
    for (train, test, _), arm in zip(runs.values(), arms.values(), strict=True):
        history = found.records[arm][0].history
        assert train == [0, *(100 * row.train_accuracy for row in history)]
        assert test == [0, None, 100 * history[1].test_accuracy, 100 * history[2].test_accuracy]
    assert {"fig1_train.pdf", "fig1_test.pdf"} <= {path.name for path in kept.iterdir()}
    figure = result.figures()["fig1_test"]
    assert [list(line.x) for line in figure.lines] == [[0, 1, 2, 3], [3, 4, 5, 6], [3, 4, 5, 6]]
    assert [line.label for line in figure.lines] == list(runs)
    assert (figure.dashed_at, figure.y_range) == (3, (0, 100))
    again = half(PERCEPTRON, data, 2, kept, **SETTINGS)
    assert json.loads((kept / "runs.json").read_text()) == again.notebook()


def test_the_notebooks_weights_are_torchvisions_by_name(data, tmp_path):
    pytest.importorskip("matplotlib")
    recipe = change(get_recipe("warmstart-resnet18"), {"epochs": 1, "batch_size": 64, "network.width": 4})
    half(recipe, data, folder=tmp_path / "new", notebook_names=True)
    weights = torch.load(tmp_path / "new/random_full.pt")["model"]
    some = {"conv1.weight", "bn1.running_var", "layer4.1.conv2.weight", "layer2.0.downsample.0.weight", "fc.bias"}
    assert some < set(weights) and len(weights) == 102  # torchvision's 122 without the 20 counts of batches ...
    norm = {name.removeprefix("bn1."): value for name, value in weights.items() if name.startswith("bn1.")}
    torch.nn.BatchNorm2d(4).load_state_dict(norm)  # ... which torch fills in


def test_the_notebooks_files_are_refused_before_the_work_where_they_cannot_be(data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="notebook_names writes files, and nothing is kept; allowed: with a folder"):
        half(PERCEPTRON, data, notebook_names=True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="figures need matplotlib"):
        half(PERCEPTRON, data, folder=tmp_path / "new", notebook_names=True)
    assert not (tmp_path / "new").exists()


def test_davidnet_keeps_its_whitening_through_a_warm_start(data):
    recipe = get_recipe("davidnet")
    narrow = dataclasses.replace(recipe.network, widths=(4, 4, 8, 8), ghost_batch=16)
    result = half(dataclasses.replace(recipe, network=narrow, batch_size=32, epochs=1), data)
    assert all(0 <= result.test_accuracies(arm)[0] <= 1 for arm in result.records)
    assert result.records["warm"][0].init["mode"] == "warm"


def test_the_table_has_a_cell_for_every_network_and_optimizer(data, tmp_path):
    result = table(
        dataclasses.replace(PERCEPTRON, epochs=1),
        data,
        networks=("mlp",),
        optimizers=("sgd", "Adam=0.01"),
    )
    assert list(result.cells) == [("mlp", "sgd"), ("mlp", "Adam")]
    for (network, optimizer), cell in result.cells.items():
        recipe = cell.records["warm"][0].recipe
        assert (recipe.network.kind, recipe.optimizer.kind) == (network, optimizer)
        assert recipe.optimizer.lr == {"sgd": 0.1, "Adam": 0.01}[optimizer]
    assert result.paper("mlp", "sgd") is None  # nothing of the paper's is on synthetic images
    on_cifar = dataclasses.replace(result, settings={**result.settings, "dataset": "cifar10"})
    assert on_cifar.paper("mlp", "sgd") == (0.39, 0.374)
    assert on_cifar.paper("resnet18", "Adam") == (0.78, 0.744)
    assert "39.0 / 37.4" in on_cifar.tables()[0].markdown()
    for dataset, expected in (("cifar100", "10.3 / 9.4"), ("svhn", "76.5 / 75.4")):
        other = dataclasses.replace(result, settings={**result.settings, "dataset": dataset})
        assert expected in other.tables()[0].markdown()
    assert [row[0] for row in result.tables()[1].rows][:2] == ["mlp sgd: half", "mlp sgd: warm"]
    assert json.loads(json.dumps(result.to_dict()))["cells"][0]["arms"]["warm"]["precision"]["n"] == 1
    cold, warm, difference = result.notebook()["mlp-adam-synthetic"]
    assert difference == pytest.approx(cold - warm)
    result.write(tmp_path)
    assert [cell["optimizer"] for cell in json.loads((tmp_path / "results.json").read_text())["cells"]] == [
        "sgd",
        "Adam",
    ]


@pytest.mark.parametrize("change", [{"networks": ()}, {"networks": ("mlp", "mlp")}, {"optimizers": ("sgd", "sgd=1")}])
def test_a_table_without_cells_or_with_equal_ones_is_refused(data, change):
    with pytest.raises(UserError, match="allowed: one or more, all different"):
        table(PERCEPTRON, data, **change)


def test_the_papers_split_is_told_from_others(data):
    result = table(PERCEPTRON, data, networks=("mlp",), optimizers=("sgd",))
    assert not any("compare differences only" in line for line in result.remarks())
    other = dataclasses.replace(result, settings={**result.settings, "holdout": 0})
    assert "compare differences only" in other.remarks()[-1]


def test_a_run_whose_last_step_spoils_the_network_ends_the_experiment(data, tmp_path):
    wild = dataclasses.replace(PERCEPTRON, epochs=0.1, optimizer=dataclasses.replace(PERCEPTRON.optimizer, lr=1e30))
    with pytest.raises(NonFiniteLoss, match=r"loss is (nan|inf): most likely optimizer\.lr 1e\+30 is too high"):
        half(wild, data, folder=tmp_path)
    kept = json.loads((tmp_path / "warm/seed-0.json").read_text())
    assert kept["diverged"].startswith(
        "the run that it begins with, half/seed-0, diverged: the trained network's loss is"
    )
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_seed_of_which_a_run_diverged_is_in_no_number_and_counted(made_up):
    result = made_up(half=[0.4, 0.2], warm=[0.5, 0.3], cold=[0.6, 0.41], shrink_perturb=[0.58, 0.39])
    result.outcomes["cold"][0] = Diverged("the loss became nan")
    assert (result.seeds, result.n, result.test_accuracies("warm")) == ([1], 1, [0.3])
    assert result.remarks()[-1] == (
        "1 run diverged, whose seeds are in no number beside them (cold: the loss became nan)"
    )


def test_another_network_is_as_the_first_named_recipe_has_it():
    narrow = get_recipe("warmstart-narrow")
    assert network_of(narrow, "resnet18") == get_recipe("warmstart-resnet18").network
    assert network_of(narrow, "davidnet") == narrow.network


def test_a_folder_of_a_table_is_of_these_networks_and_no_others(data, tmp_path):
    settings = {"networks": ("mlp",), "optimizers": ("sgd",)}
    table(PERCEPTRON, data, tmp_path / "new", **settings)
    with pytest.raises(UserError, match=r"recipe\.network\.hidden is \[16\] there and \[8\] now"):
        table(change(PERCEPTRON, {"network.hidden": (8,)}), data, tmp_path / "new", **settings)
