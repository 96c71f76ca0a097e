"""`screen`: planted effects are found, and it trains what its design says, for real on a few synthetic images."""

import json
import re
import shlex

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.cli.experiment import read_options
from fastcifar.costs.flops import count_recipe
from fastcifar.errors import NonFiniteLoss, RenamedWarning, UserError
from fastcifar.experiments import Diverged
from fastcifar.experiments.named.ablate import Ablate
from fastcifar.experiments.named.screen import Screen
from fastcifar.recipes import change, get_recipe
from fastcifar.recipes.factors import read_factor
from fastcifar.training import Trainer
from tests.small import DAVIDNET, MLP

RECIPE = change(MLP, {"epochs": 1, "batch_size": 32, "optimizer.lr": 0.05, "augment.cutout": 8})
FACTORS = ("optimizer.lr=0.1", "network.hidden=16 8", "augment.cutout=4..12")
SIZES = {"dataset": "cifar10", "train_size": 45_000, "test_size": 5_000}


def screen(factors=FACTORS, recipe=RECIPE, **options):
    return Screen(recipe=recipe, factors=tuple(factors), **options)


def test_commas_within_quotes_and_brackets_are_a_values_own():
    words = '"head:lr=2,momentum=0.8"', '["a:lr=2,momentum=0.8", "b:lr=2"]'
    for word, layers in zip(words, (("head:lr=2,momentum=0.8",), ("a:lr=2,momentum=0.8", "b:lr=2")), strict=True):
        factor = read_factor(f"optimizer.layers={word},batch_size=16..32")
        assert (factor.low, list(factor.high)) == ({"batch_size": "16"}, ["optimizer.layers", "batch_size"])
        assert change(MLP, factor.high).optimizer.layers == layers


def planted(new_record, experiment, effects, noise=0.0, failing=lambda signs, n: False):
    """The result of runs whose log-loss has these effects, and whose accuracy is 1 less it."""
    random, outcomes = np.random.default_rng(0), {}
    for arm in experiment.design:
        outcomes[arm] = []
        for n in range(experiment.runs):
            signs = experiment.signs(arm, n)
            loss = (
                0.3 + 0.01 * n + sum(s * e for s, e in zip(signs, effects, strict=True)) / 2 + random.normal() * noise
            )
            record = new_record(tta_loss=loss, tta_accuracy=1 - loss, train_seconds=2.0)
            outcomes[arm].append(Diverged("the loss became nan") if failing(signs, n) else record)
    return experiment.result({**experiment.settings(), **SIZES}, outcomes)


def test_every_run_has_the_recipe_of_its_row_and_each_second_round_is_turned_around(dataset, trained, tmp_path):
    result = screen(runs=3).run(dataset, tmp_path, holdout=64, device="cpu")
    assert (len(trained), [seed for _, seed in trained]) == (12, [0] * 4 + [1] * 4 + [2] * 4)
    levels = [
        (0.1 if lr > 0 else 0.05, (16, 8) if wide > 0 else (8,), 12 if cut > 0 else 4)
        for n in range(3)
        for lr, wide, cut in (result.experiment.signs(arm, n) for arm in result.experiment.design)
    ]
    assert [(r.optimizer.lr, r.network.hidden, r.augment.cutout) for r, _ in trained] == levels
    assert levels[:4] == levels[8:] and levels[0] == (0.05, (8,), 4) and levels[4] == (0.1, (16, 8), 12)
    assert len(set(levels[:8])) == 8

    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == json.loads(json.dumps(result.to_dict()))
    assert [run["seed"] for run in kept["runs"]] == [0, 1, 2] * 4
    for run in kept["runs"]:
        record = result.outcomes[run["arm"]][run["seed"]]
        assert (run["loss"], run["accuracy"]) == (record.tta_loss, record.tta_accuracy)
        assert run["flop"] == count_recipe(record.recipe, 96, 64).training_flop
    assert kept["factors"] == list(FACTORS) and len(kept["effects"]) == 3
    assert all(f"| {factor} |" in (tmp_path / "table.md").read_text() for factor in FACTORS)


def test_a_screen_that_was_killed_goes_on_and_more_rounds_add_to_it(dataset, trained, tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.done == 3:
            raise Killed

    with pytest.raises(Killed):
        screen().run(dataset, tmp_path, holdout=64, device="cpu", on_progress=kill)
    first = screen(runs=1).run(dataset, tmp_path, holdout=64, device="cpu")
    assert (len(trained), first.n, first.fit("loss").df) == (4, 1, 0)
    second = screen(flop_worth=0.001).run(dataset, tmp_path, holdout=64, device="cpu")
    assert (len(trained), second.n, second.fit("loss").df) == (8, 2, 3)
    for other in ({"foldover": False}, {"factors": FACTORS[:2]}, {"seed": 1}):
        with pytest.raises(UserError, match="was begun with other settings"):
            screen(**other).run(dataset, tmp_path, holdout=64, device="cpu")


def test_planted_effects_are_found_best_first_and_the_better_changes_are_named(new_record):
    effects = [0.0, 0.003, -0.004, 0.0, -0.002]
    factors = [*FACTORS, "label_smoothing=0.1", "augment.crop=0,optimizer.momentum=0.8"]
    result = planted(new_record, screen(factors, runs=10), effects, noise=0.001)
    found = result.effects()
    assert [each.factor.word for each in found] == [factors[n] for n in (2, 4, 3, 0, 1)] or (
        [each.factor.word for each in found] == [factors[n] for n in (2, 4, 0, 3, 1)]
    )
    for each in found:
        truth = effects[factors.index(each.factor.word)]
        assert each.loss.mean == pytest.approx(truth, abs=0.0007)
        assert each.accuracy.mean == pytest.approx(-each.loss.mean)
    assert [each.factor.word for each, sign in result.choice()] == [factors[2], factors[4]]
    flags = "--augment.cutout 12 --augment.crop 0 --optimizer.momentum 0.8"
    against = "each against its other value; to be confirmed"
    assert re.fullmatch(
        rf"better together \(log-loss -0\.00\d+ ± 0\.00\d+, FLOP \+0\.0%, {against}\): {flags}",
        result.remarks()[-1],
    )
    (table,) = result.tables()
    assert table.title.endswith("t, 65 degrees of freedom, from the residuals of 10 rounds")
    assert table.rows[0][0] == factors[2] and re.fullmatch(r"-0\.00\d\d ± 0\.000\d", table.rows[0][1])


def test_flags_that_are_said_to_be_better_make_that_recipe(new_record):
    recipe = change(get_recipe("speedrun94"), {"network.widths": [4, 4, 8], "epochs": 1})
    factors = ["augment.early_crops=24 0.4 28 0.8", "augment.flip=random", "select.keep=0.5..0.7", "optimizer=sgd"]
    factors[3] += ",optimizer.lr=0.5,optimizer.bias_lr_factor=2"
    result = planted(new_record, screen(factors, recipe), [-0.1, -0.1, 0.1, -0.1], noise=1e-5)
    flags = result.remarks()[-1].partition("): ")[2]
    words = ["--recipe", "speedrun94", "--network.widths", "4", "4", "8", "--epochs", "1", *shlex.split(flags)]
    made = read_options(Ablate, words).settings
    wanted = {"augment.early_crops": ((24, 0.4), (28, 0.8)), "augment.flip": "random", "select.keep": 0.5}
    sgd = {"optimizer": "sgd", "optimizer.lr": 0.5, "optimizer.bias_lr_factor": 2.0}
    assert made == change(recipe, {**wanted, **sgd})


def test_changes_are_compared_at_equal_flop_where_it_is_said_what_that_is_worth(new_record):
    factors = ["epochs=4", "augment.cutout=0", "epochs=2"]
    for factor, effect, better in (("epochs=4", -0.01, False), ("epochs=4", -0.02, True), ("epochs=2", 0.01, True)):
        factors = [factor, "augment.cutout=4"]
        recipe = change(RECIPE, {"epochs": 3})
        result = planted(new_record, screen(factors, recipe, flop_worth=0.0005), [effect, 0], noise=1e-6)
        (each,) = (each for each in result.effects() if each.factor.word == factor)
        share = 1 / 3 if factor == "epochs=4" else -1 / 3
        assert each.flop == pytest.approx(share)
        assert each.net.mean == pytest.approx(effect + 100 * share * 0.0005, abs=1e-4)
        assert each.net.interval[0] - each.loss.interval[0] == pytest.approx(100 * share * 0.0005)
        assert (factor in [each.factor.word for each, _ in result.choice()]) == better
        row = next(row for row in result.tables()[0].rows if row[0] == factor)
        assert row[3] == f"{share:+.1%}" and row[4].startswith(f"{effect + share * 0.05:+.4f}")


def test_runs_that_diverge_are_told_and_the_effects_are_of_the_others(new_record):
    effects, wild = [0.5, -0.2, 0.1], lambda signs, n: signs[0] > 0 and signs[1] > 0
    result = planted(new_record, screen(runs=4), effects, failing=wild)
    by_word = {each.factor.word: each for each in result.effects()}
    assert [by_word[word].loss.mean for word in FACTORS] == pytest.approx(effects)
    assert [by_word[word].failed for word in FACTORS] == [(0, 4), (0, 4), (2, 2)]
    assert result.tables()[0].columns[-1] == "failed without, with"
    first, mixed, _ = result.remarks()
    assert first.startswith("4 runs diverged (row-") and "least squares over the 12 others" in first
    assert mixed.startswith("effects are mixed with what pairs of changes do together")

    result = planted(new_record, screen(), effects, failing=lambda signs, n: signs[0] > 0)
    by_word = {each.factor.word: each for each in result.effects()}
    assert by_word[FACTORS[0]].loss is None and by_word[FACTORS[1]].loss.mean == pytest.approx(-0.2)
    assert f"the runs that are left cannot tell the effect of {FACTORS[0]}" in result.remarks()
    assert next(row for row in result.tables()[0].rows if row[0] == FACTORS[0])[1] == "-"
    assert json.dumps(result.to_dict())


def test_what_cannot_be_said_of_one_round_is_not(new_record):
    full = planted(new_record, screen(runs=1), [1, 2, 3])
    assert "no intervals, as no run is left" in full.tables()[0].title
    assert full.remarks() == [
        "effects are mixed with what pairs of changes do together; an even number of rounds, with --foldover true, "
        "clears them of that",
        "no change is said to be better, as nothing has an interval",
    ]
    some = planted(new_record, screen(FACTORS[:2], runs=1), [1, 2], noise=1e-3)
    assert some.tables()[0].title.endswith(
        "t, 1 degree of freedom, from the columns of the design that no change takes"
    )
    assert some.remarks() == ["no change is seen to be better"]


def test_a_screen_of_which_every_run_diverges_ends_with_that(dataset, monkeypatch, tmp_path):
    def diverging(*_, **__):
        raise NonFiniteLoss("the loss became nan")

    monkeypatch.setattr(Trainer, "run", diverging)
    with pytest.raises(NonFiniteLoss, match="a run of every seed diverged; row-01: the loss became nan"):
        screen().run(dataset, tmp_path, holdout=64, device="cpu")


def test_effects_are_drawn_with_their_intervals_in_the_tables_order(new_record, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib, the extra 'plot', is not installed")
    result = planted(new_record, screen(), [0.1, -0.1, 0.0], failing=lambda signs, n: signs[2] > 0)
    figure = result.figures()["accuracy"]
    assert figure.rows == (FACTORS[1], FACTORS[0], FACTORS[2]) and figure.dashed_at == 0
    (line,) = figure.lines
    assert line.x[:2] == pytest.approx([10, -10]) and line.y == [0, 1, None]
    assert {path.name for path in result.draw(tmp_path)} >= {"loss.png", "loss.svg", "accuracy.pdf"}
    assert all(factor in (tmp_path / "loss.svg").read_text() for factor in FACTORS)


def test_what_is_better_is_counted_against_the_other_values(new_record):
    for factors, share, told in (
        (["epochs=1..2", "augment.cutout=0"], 1.0, True),
        (["epochs=2..4", "augment.cutout=0"], 1.0, True),
        (["epochs=6", "augment.cutout=0"], 1.0, False),
        (["epochs=3..6", "augment.cutout=0"], 1.0, False),
    ):
        result = planted(new_record, screen(factors, change(RECIPE, {"epochs": 3})), [-0.1, 0], noise=1e-6)
        said = result.remarks()[-1]
        assert f"FLOP {share:+.1%}" in said and ("each against its other value" in said) == told


def test_runs_of_one_recipe_and_seed_count_once(new_record, monkeypatch):
    """Two levels that are one recipe: of four runs only two differ, which no residual can tell apart."""
    experiment = screen(FACTORS[:2], runs=1)
    same = {signs: change(RECIPE, experiment.values({0: signs[0]})) for signs in experiment.recipes}
    monkeypatch.setitem(experiment.__dict__, "recipes", same)
    result = planted(new_record, experiment, [-0.1, 0])
    assert (len(result._kept), len(result.fit("loss").values), result.fit("loss").df) == (4, 2, 0)
    assert all(each.loss is None or each.loss.interval is None for each in result.effects()) and not result.choice()


def test_without_residuals_nothing_is_certain(new_record):
    result = planted(new_record, screen(FACTORS[:2], runs=2), [-0.1, 0.2])
    assert result.fit("loss").df == 4 and result.fit("loss").std is None and not result.choice()
    assert result.tables()[0].title.endswith("no intervals, as nothing is left that the changes do not explain")
    assert result.remarks() == ["no change is said to be better, as nothing has an interval"]


def test_operations_are_counted_for_the_classes_of_the_runs(new_record):
    result = planted(new_record, screen(runs=2), [0, 0, 0])
    ((record, *_), *_) = result.outcomes.values()
    assert len(record.dataset.classes) == 2  # which CIFAR-10 has not
    assert result._count({}) == count_recipe(RECIPE, 45_000, 5_000, 2).training_flop


REFUSED = {
    "optimizer.lrr=0.1": "factors 'optimizer.lrr=0.1': unknown field optimizer.lrr; did you mean 'lr'?",
    "optimizer.lr=0": "factors 'optimizer.lr=0': optimizer.lr is 0.0; allowed: above 0",
    "optimizer.lr=-1..0.1": "factors 'optimizer.lr=-1..0.1': optimizer.lr is -1.0; allowed: above 0",
    "optimizer.lr": "factors 'optimizer.lr': 'optimizer.lr' sets no field; allowed: FIELD=VALUE",
    "optimizer.lr=0.1..": "factors 'optimizer.lr=0.1..' is no change; allowed: FIELD=VALUE, FIELD=LOW..HIGH",
    "epochs=2,epochs=3": "factors 'epochs=2,epochs=3' is no change",
    "optimizer.lr=0.05": "factors 'optimizer.lr=0.05' leaves the recipe as it is; allowed: another value",
    "epochs=2..2.0": "factors 'epochs=2..2.0' has one value twice; allowed: another value",
    "epochs=2 epochs=3": "factors 'epochs=2' and 'epochs=3' both change epochs; allowed: one change of a field",
    "name=mine epochs=2": "factors 'name=mine' changes no training; allowed: any other field",
    "epochs=2,name=mine": "factors 'epochs=2,name=mine' changes no training",
    "epochs=2 early_batches=16": "factors 'early_batches=16': early_batches is (16,); allowed: up to 0, as many as",
    "epochs=2": "factors names 1 change; allowed: 2 to 23, or for one 'fastcifar compare'",
    "network=resnet18 network.hidden=4": "factors 'network=resnet18' and 'network.hidden=4' both change network.hidden",
    " ".join(f"augment.cutout={n}" for n in range(1, 25)): "factors names 24 changes; allowed: 2 to 23",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_change_or_contradicts_another_is_refused(words):
    with pytest.raises(UserError) as caught:
        screen(words.split())
    assert str(caught.value).startswith(REFUSED[words])


def test_changes_that_do_not_go_together_are_refused_by_name_before_the_work(dataset, tmp_path):
    with pytest.raises(
        UserError, match=r"^factors batch_size=24 and network\.ghost_batch=16, in one run: batch_size is "
    ):
        recipe = change(DAVIDNET, {"network.ghost_batch": 8})
        screen(["optimizer.lr=0.1", "batch_size=24", "epochs=2", "network.ghost_batch=16"], recipe)
    for words, said in (
        (
            ["optimizer.lr=0.1", "batch_size=100"],
            r"^factors .*batch_size=100, in one run: batch_size is 100; allowed: up",
        ),
        (
            ["optimizer.lr=0.1", "schedule.name=StepLR"],
            r"^factors .*=StepLR, in one run: schedule.options lacks step_size=",
        ),
        ([], r"^factors names no change; allowed: 2 to 23"),
    ):
        with pytest.raises(UserError, match=said):
            screen(words).run(dataset, tmp_path / "new", holdout=64, device="cpu")
    assert not (tmp_path / "new").exists()
    uneven = change(DAVIDNET, {"batch_size": 64, "network.ghost_batch": 32})
    with pytest.raises(UserError, match=r"drop_last=false, in one run: drop_last is false, which leaves 48 images"):
        screen(["drop_last=false", "epochs=2"], uneven).jobs(dataset.take(112))


def test_an_older_name_of_a_field_is_read(new_record):
    with pytest.warns(RenamedWarning):
        result = planted(new_record, screen(["optim.lr=0.1", "epochs=2"]), [-1.0, 0.0], noise=1e-3)
        assert result.remarks()[-1].endswith(": --optimizer.lr 0.1")


def test_as_it_is_typed(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["screen", "--dataset", "synthetic", "--holdout", "64", "--quick", "--train-size", "256", "--out", "kept"]
    words += ["--network", "mlp", "--optimizer.lr", "0.05", "--epochs", "1", "--batch-size", "64", "--factors"]
    words += ["optimizer.momentum=0.8", "network.hidden=8 8", "label_smoothing=0.0..0.3"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("screen: davidnet-mlp on synthetic: 256 training and 64 held-out images, n=2; kept in kept")
    assert "[8/8] row-04/seed-1" in out and "3 degrees of freedom, from the residuals of 2 rounds" in out
    assert main([*words, "--json", "--quiet"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept == json.loads((tmp_path / "kept" / "results.json").read_text())
    assert main([*words[:-1], "optimizer.momentum=0.7"]) == 2
    assert capsys.readouterr().err.startswith("fastcifar: --factors 'optimizer.momentum=0.8' and 'optimizer.")
    assert main(["screen", "--dataset", "synthetic", "--quick", "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fastcifar: --factors names no change; allowed: 2 to 23") and not said.out
    assert main([*words[:-1], "--factors", "label_smoothing=0.0..0.3"]) == 2
    assert "--factors is given twice; allowed: once, with all its values after it" in capsys.readouterr().err
    assert main(["screen", "--rounds", "2"]) == 2
    assert "unknown flag --rounds; did you mean '--runs'?" in capsys.readouterr().err
