"""The campaign's part `screen`: its design fits its recipe, and it goes on round after round, call after call."""

import dataclasses

import pytest

from bench.campaign import screen as part
from bench.campaign.campaign import Campaign, append_record
from bench.campaign.recipes import get_recipe
from bench.campaign.summary import summary
from bench.campaign.table import tables
from fastcifar.errors import NonFiniteLoss
from fastcifar.experiments import Job
from fastcifar.training import Trainer
from fastcifar.training.timeline import Timeline


@pytest.fixture
def campaign(tmp_path, one_thread):
    return Campaign(tmp_path, "cpu", tiny=True)


def call(campaign):
    """What one call finds, kept as a part's process keeps it."""
    found = []
    for record in part.screen(campaign):
        append_record(campaign.path("screen"), record)
        found.append(record)
    return found


def test_the_design_fits_the_recipe_of_now_in_an_even_number_of_rounds():
    screen = part._experiment(tiny=False)
    assert len(screen.design) == 12 and screen.runs == 40
    assert len(set(screen.recipes.values())) == 24
    for recipe in screen.recipes.values():
        Timeline(recipe, 45_000, 32)


def test_it_goes_on_where_its_time_was_up_and_says_what_whole_rounds_show(campaign, monkeypatch):
    left = iter([1.0, 1.0, -1.0])
    monkeypatch.setattr(Campaign, "seconds_left", property(lambda _: next(left, float("inf"))))
    monkeypatch.setattr("bench.campaign.screen.time.monotonic", lambda: 0.0)
    first = call(campaign)
    assert [record["what"] for record in first] == ["run"] * 3
    assert [table.title for table in tables(campaign.out)] == ["Changes, before a whole round of the design"]
    second = call(campaign)
    assert [record["what"] for record in second] == ["run", "effects", *["run"] * 4, "effects"]
    runs = [record for record in (*first, *second) if record["what"] == "run"]
    assert [record["key"] for record in runs] == [f"row-0{row}/seed-{n}" for n in (0, 1) for row in (1, 2, 3, 4)]
    assert call(campaign) == []
    (table,) = tables(campaign.out)
    assert "8 runs" in table.title and {row[0] for row in table.rows} == set(part.FACTORS[:3])
    assert any(line.startswith(f"  {part.FACTORS[0]}: log-loss ") for line in summary(campaign.out))

    monkeypatch.setattr(part, "FACTORS", part.FACTORS[1:])
    again = [record["what"] for record in call(campaign)]
    assert again.count("effects") == 2 and again.count("run") >= 6, "other runs than those that are kept"


def test_what_is_kept_is_asked_for_by_its_job(new_record):
    jobs, record = [Job("a", seed, get_recipe("speedrun94", True)) for seed in (0, 1)], new_record(seed=0)
    kept = part._Kept([{"key": jobs[0].key, **dataclasses.replace(record, recipe=jobs[0].recipe).to_json()}], jobs)
    assert [kept.has(job) for job in jobs] == [kept.get(job) is not None for job in jobs] == [True, False]


def test_runs_that_diverge_are_in_the_records_and_the_effects_are_of_the_others(campaign, monkeypatch):
    run = Trainer.run

    def diverging(trainer, seed, **how):
        if trainer.recipe.optimizer.lr == 0.17 and seed == 1:
            raise NonFiniteLoss("the loss became nan")
        return run(trainer, seed, **how)

    monkeypatch.setattr(Trainer, "run", diverging)
    found = call(campaign)
    assert [record["diverged"] for record in found if "diverged" in record] == ["the loss became nan"] * 2
    assert found[-1]["remarks"][0].startswith("2 runs diverged") and "6 runs" in found[-1]["table"]["title"]


def test_a_run_without_its_capture_ends_the_part(campaign):
    with pytest.raises(RuntimeError, match="speedrun94: its capture counts as failed"):
        call(dataclasses.replace(campaign, faults=frozenset(["nocapture:speedrun94"])))
