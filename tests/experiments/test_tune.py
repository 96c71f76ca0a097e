"""`tune`: the search on made-up objectives, and what it trains, keeps and says for real."""

import dataclasses
import itertools
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss, OutOfMemory, UserError
from fastcifar.experiments import Diverged, Failed
from fastcifar.experiments.named.tune import Refused, Tune
from fastcifar.recipes import change, read_toml
from fastcifar.recipes.optimizers.torch import AdamConfig, AdamWConfig
from fastcifar.training import Trainer
from tests.small import MLP

FIELDS = ("optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "batch_size")
BAD = {"optimizer.lr": 0.001, "optimizer.momentum": 0.5, "optimizer.weight_decay": 0.01}
IMAGES = make_synthetic(train_size=100, test_size=20)
RECIPE = change(MLP, {"epochs": 1, "ema.decay": 0.0})


def search(tune, outcome_of):
    """The result of a search whose runs are made up, and its jobs."""
    jobs, done = tune.jobs(IMAGES), []
    result = tune.result(tune.settings() | {"dataset": "made up"}, {job.arm: [] for job in jobs})
    while jobs:
        for job in jobs:
            done.append(job)
            result.add(job, outcome_of(job), None)
        jobs = tune.next_jobs(IMAGES, result)
    return result, done


def numbers(recipe):
    """What counts of the fields: a momentum's distance from 1."""
    sgd = recipe.optimizer
    return sgd.lr, 1 - sgd.momentum, sgd.weight_decay, recipe.batch_size


def with_numbers(lr, distance, decay, batch_size):
    values = zip(FIELDS, (lr, 1 - distance, decay, batch_size), strict=True)
    return change(RECIPE, dict(values))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.tuples(
        st.floats(1e-4, 4), st.floats(0.01, 1), st.floats(1e-5, 0.1), st.integers(0, 6).map(lambda power: 2**power)
    ),
    goal=st.tuples(st.floats(-9, 2), st.floats(-5, 1), st.floats(-12, -2), st.floats(-1, 6)),
    slope=st.floats(-0.8, 0.8),
    by=st.sampled_from(["loss", "accuracy"]),
    order=st.permutations(FIELDS),
    diverges=st.floats(0.1, 8),
)
def test_it_ends_where_no_doubling_or_halving_helps_and_trains_no_point_twice(
    new_record, start, goal, slope, by, order, diverges
):
    def cost(recipe):
        if recipe.optimizer.lr > diverges:
            return math.inf
        away = [math.log(value) - best for value, best in zip(numbers(recipe), goal, strict=True)]
        return sum(each**2 for each in away) + slope * sum(a * b for a, b in itertools.pairwise(away))

    def outcome_of(job):
        found = cost(job.recipe)
        if math.isinf(found):
            return Diverged("the loss became nan")
        return new_record(recipe=job.recipe, tta_loss=found, tta_accuracy=-found)

    first = with_numbers(*start)
    result, jobs = search(
        Tune(recipe=first, fields=tuple(order), by=by, most_trainings=1000, most_cycles=99), outcome_of
    )
    assert result.search.ended == "a whole cycle through the fields brought nothing: it has ended"
    assert len({job.recipe for job in jobs}) == len({job.key for job in jobs}) == len(jobs)
    assert all(job.recipe.batch_size <= 100 for job in jobs)  # as many as there are images
    found = dataclasses.replace(result.recipe, name=RECIPE.name)
    assert found in {job.recipe for job in jobs}
    if result.n == 0:
        return  # the start diverges, and so do all points around it
    assert cost(found) == min(cost(job.recipe) for job in jobs) <= cost(first)
    for place, factor in itertools.product(range(4), (2, 0.5)):
        values = list(numbers(found))
        values[place] *= factor
        if values[1] <= 1 and 1 <= values[3] <= 100:
            near = with_numbers(*values[:3], int(values[3]))
            assert cost(near) >= cost(found) - 1e-6, FIELDS[place]


def planted(new_record, losses):
    """Outcomes by the rate and the seed; a word for a run that failed."""
    made = {"diverges": Diverged("the loss became nan"), "no memory": Failed("no memory for it")}

    def outcome_of(job):
        loss = losses[job.recipe.optimizer.lr][job.seed]
        return made.get(loss) or new_record(recipe=job.recipe, tta_loss=loss, tta_accuracy=1 - loss)

    return outcome_of


LOSSES = {0.5: (0.5, 0.7), 1.0: (0.4, 0.5), 2.0: (0.3, 0.5), 4.0: (0.1, "diverges"), 0.25: (0.9, "no memory")}
RATE = {"recipe": change(RECIPE, {"optimizer.lr": 0.5}), "fields": ("optimizer.lr",), "runs": 2}


def test_what_it_found_is_told_as_a_trace_a_difference_a_recipe_and_figures(new_record, tmp_path):
    result, _ = search(Tune(**RATE), planted(new_record, LOSSES))
    trace, ends = result.tables()
    assert [[*row[:3], row[5], row[6].split()[0]] for row in trace.rows] == [
        ["0", "start", "", "2", "0.6000"],
        ["1", "optimizer.lr", "1.0", "2", "0.4500"],
        ["2", "optimizer.lr", "2.0", "2", "0.4000"],
        ["3", "optimizer.lr", "4.0", "1", "0.4000"],
    ]
    assert trace.rows[3][3:5] == ("diverged", "-")
    assert ends.rows[0] == ("optimizer.lr", "0.5", "2.0", "") and ends.rows[1][3] == "-0.2000 ± 0.0000"
    assert result.remarks() == [
        "a whole cycle through the fields brought nothing: it has ended",
        "found: --optimizer.lr 2.0 (tuned.toml, for train --recipe)",
        "the best of 4 points looks a little better than it is: confirm it",
        "1 run diverged; a point with one counts as worst (optimizer.lr_4.0: the loss became nan)",
    ]
    result.write(tmp_path)
    assert read_toml(tmp_path / "tuned.toml") == change(RECIPE, {"optimizer.lr": 2.0, "name": "small-tuned"})
    kept = json.loads((tmp_path / "results.json").read_text())
    assert (kept["start"], kept["found"], kept["trainings"]) == ({"optimizer.lr": 0.5}, {"optimizer.lr": 2.0}, 8)
    assert kept["difference"]["accuracy"]["mean"] == pytest.approx(0.2) and kept["diverged"] == 1
    assert [step["is_best"] for step in kept["steps"]] == [True, True, True, False]
    points, best = result.figures()["trace"].lines
    assert points.x == [2, 4, 6, 8] and points.y[3] is None and best.y == pytest.approx([0.6, 0.45, 0.4, 0.4])
    assert result.figures()["values"].lines[0].y == [1, 2, 4, 4]


def test_a_gain_within_its_interval_is_said_to_be_that(new_record):
    losses = {0.5: (0.5, 0.7), 1.0: (0.6, 0.5), 2.0: (0.9, 0.9), 0.25: (0.9, 0.9)}
    result, _ = search(Tune(**RATE), planted(new_record, losses))
    assert "its gain in loss over the start is within the interval: it may be none" in result.remarks()


def test_a_start_that_diverges_or_has_no_memory_is_left_for_a_point_that_trains(new_record):
    for word in ("diverges", "no memory"):
        losses = {2.0: (word, 0.1), 4.0: (0.1, word), 1.0: (0.4, 0.5), 0.5: (0.9, 0.9)}
        recipe = change(RECIPE, {"optimizer.lr": 2.0})
        result, jobs = search(Tune(**RATE | {"recipe": recipe}), planted(new_record, losses))
        assert result.found.visit.point == (-1,) and result.n == 2 and len(jobs) == 8
        assert result.difference("loss") is None and result.tables()[1].rows[1][1:] == ("-", "0.4500 ± 0.6353", "-")


def test_from_a_start_far_above_what_trains_it_goes_down_until_a_point_does(new_record):
    def outcome(job):
        rate = job.recipe.optimizer.lr
        loss = abs(math.log2(rate / 0.01))
        return Diverged("too high") if rate > 0.1 else new_record(seed=job.seed, recipe=job.recipe, tta_loss=loss)

    result, jobs = search(Tune(recipe=change(RECIPE, {"optimizer.lr": 5.12}), fields=("optimizer.lr",)), outcome)
    assert result.recipe.optimizer.lr == 0.01 and len(jobs) == 1 + 1 + 10


def test_its_limits_end_it_and_what_is_out_of_bounds_is_not_trained(new_record):
    result, jobs = search(Tune(**RATE, most_trainings=5), planted(new_record, LOSSES))
    assert len(jobs) == 4 and result.found.visit.point == (1,) and result.search.wanted is None
    assert result.remarks()[0] == "--most-trainings 5 ended it: with more the same command goes on"
    result, jobs = search(Tune(**RATE, most_cycles=1), planted(new_record, LOSSES))
    assert len(jobs) == 8 and result.remarks()[0].startswith("--most-cycles 1 ended it: ")

    smaller = change(RECIPE, {"batch_size": 64})
    result, jobs = search(
        Tune(recipe=smaller, fields=("batch_size", "label_smoothing")),
        lambda job: new_record(recipe=job.recipe, tta_loss=1 - job.recipe.label_smoothing / 9, tta_accuracy=0.5),
    )
    assert {job.recipe.batch_size for job in jobs} == {32, 64}
    assert [job.recipe.label_smoothing for job in jobs if job.recipe.batch_size == 64] == [0.2, 0.4, 0.8]
    refused = [step.failure for step in result.search.steps if isinstance(step.failure, Refused)]
    assert [each.reason.split(";")[0] for each in refused][1] == "recipe: label_smoothing is 1.6"
    assert result.counts == {"failed": 0, "diverged": 0} and "3 points cannot be trained (" in result.remarks()[3]


def test_without_fields_it_tunes_those_of_the_post_that_the_recipe_has():
    def fields(**optimizer):
        return [grid.field for grid in Tune(recipe=dataclasses.replace(RECIPE, **optimizer)).grids]

    assert fields() == list(FIELDS[:3])
    assert fields(optimizer=AdamConfig()) == ["optimizer.lr"]
    assert fields(optimizer=AdamWConfig(weight_decay=0.01)) == ["optimizer.lr", "optimizer.weight_decay"]


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"fields": ("optimizer.momntum",)}, "fields has 'optimizer.momntum'; did you mean 'optimizer.momentum'"),
        ({"fields": ("schedule.name",)}, "fields has 'schedule.name'; did you mean 'schedule.warmup'"),
        ({"fields": ("drop_last",)}, "fields has 'drop_last'; allowed: fields of the recipe with numbers"),
        ({"fields": ("early_batches",)}, "fields has 'early_batches'; allowed: fields of the recipe with numbers"),
        ({"fields": ("epochs", "epochs")}, "fields has epochs twice; allowed: each field once"),
        ({"fields": ("augment.cutout",)}, r"fields has augment.cutout, which is 0 .* --augment.cutout X"),
        (
            {"recipe": change(RECIPE, {"network.hidden": [2] * 9}), "fields": ("network.hidden",)},
            "a list of 9 numbers; ",
        ),
        ({"most_trainings": 2, "runs": 3}, "most_trainings is 2; allowed: runs, 3, or more"),
        ({"factor": 1}, "factor is 1; allowed: above 1, up to 1000"),
    ],
)
def test_bad_options_are_refused(options, refusal):
    with pytest.raises(UserError, match=refusal):
        Tune(**{"recipe": RECIPE, **options})


TINY = Tune(recipe=change(RECIPE, BAD | {"optimizer.lr": 0.1}), runs=2, most_trainings=12)


def test_every_point_is_trained_once_with_every_seed_and_read_back_by_another_search(dataset, trained, tmp_path):
    result = TINY.run(dataset, tmp_path, holdout=32, device="cpu")
    assert len(trained) == len({(recipe, seed) for recipe, seed in trained}) == 12
    assert [seed for _, seed in trained] == [0, 1] * 6 and trained[0][0] == TINY.recipe
    other = dataclasses.replace(TINY, most_trainings=14)
    again = other.run(dataset, tmp_path, holdout=32, device="cpu")
    assert len(trained) == 14 and again.search.steps[:6] == result.search.steps
    by_momentum = dataclasses.replace(TINY, fields=("optimizer.momentum",), runs=1)
    by_momentum.run(dataset, tmp_path, holdout=32, device="cpu")
    assert all(recipe.optimizer.lr == 0.1 for recipe, _ in trained[14:]) and TINY.recipe not in dict(trained[14:])
    with pytest.raises(UserError, match=r"begun with other settings: recipe.optimizer.lr is 0.1 there and 0.2 now"):
        Tune(recipe=change(TINY.recipe, {"optimizer.lr": 0.2})).run(dataset, tmp_path, holdout=32, device="cpu")


def test_several_processes_go_the_way_of_one(dataset, tmp_path):
    few = dataclasses.replace(TINY, most_trainings=4)
    one = few.run(dataset, tmp_path / "one", holdout=32, device="cpu")
    said = []
    two = few.run(dataset, tmp_path / "two", holdout=32, device="cpu", parallel=2, on_progress=said.append)
    assert [step.visit for step in two.search.steps] == [step.visit for step in one.search.steps]
    assert [each.done for each in said] == [1, 2, 3, 4] and {each.total for each in said} == {4}
    with pytest.raises(UserError, match="3 processes are to share the runs of each point, and runs is 2; allowed: no"):
        few.run(dataset, tmp_path / "three", holdout=32, device="cpu", parallel=3)
    assert not (tmp_path / "three").exists()


def test_where_every_point_fails_the_first_reason_is_said(dataset, tmp_path, monkeypatch):
    for error in (NonFiniteLoss, OutOfMemory):

        def fail(*_, error=error, **__):
            raise error("not this one")

        monkeypatch.setattr(Trainer, "run", fail)
        with pytest.raises(error, match=r"a run of every point .*; start: not this one"):
            dataclasses.replace(TINY, runs=1).run(dataset, tmp_path / error.__name__, holdout=32, device="cpu")
        assert not (tmp_path / error.__name__ / "tuned.toml").exists()
