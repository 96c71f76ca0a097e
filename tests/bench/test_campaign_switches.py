"""The campaign's part `switches`, and its options --on and --ours."""

import importlib

import pytest

from bench.campaign import race
from bench.campaign import switches as part
from bench.campaign.campaign import Campaign, append_record
from bench.campaign.recipes import get_recipe as variant
from bench.campaign.summary import summary
from fastcifar.recipes import get_recipe


def states():
    return {name: getattr(importlib.import_module(module), key) for name, (module, key) in part.SWITCHES.items()}


@pytest.mark.parametrize("on", [(), ("conv-pool",), ("conv-pool", "dependent-launches")])
def test_those_named_are_on_and_all_others_off_and_then_as_they_were(on):
    before = states()
    with part.switch_on(*on):
        assert states() == {name: name in on for name in part.SWITCHES}
    assert states() == before


def test_steps_are_captured_with_each_combination_and_what_is_known_is_not_measured_again(
    tmp_path, monkeypatch, one_thread
):
    seen = []

    def timed(campaign, recipe):
        on = states()
        seen.append((recipe, [name for name in on if on[name]]))
        if on["conv-pool"] and recipe == "davidnet":
            raise RuntimeError("no such kernel")
        return {"24": 0.5 if on["conv-pool"] else 1.0}

    monkeypatch.setattr(part, "_steps", timed)
    campaign = Campaign(tmp_path, "cpu", tiny=True)
    found = list(part.switches(campaign))
    for record in found:
        append_record(campaign.path("switches"), record)
    assert seen == [(recipe, on) for recipe in part.MAIN for on in part._COMBINATIONS]
    assert [record["what"] for record in found] == ["step"] * 5 + ["finding", "step", "finding"]
    assert "  speedrun94: on conv-pool, each stage 500000.0 us (-50.0%)" in summary(tmp_path)
    seen.clear()
    again = list(part.switches(campaign))
    assert [record["what"] for record in again] == ["finding"] * 2 and len(seen) == 2


def test_a_step_is_timed_in_every_stage(tmp_path, one_thread):
    seconds = part._steps(Campaign(tmp_path, "cpu", tiny=True), "davidnet")
    assert list(seconds) == ["32"] and seconds["32"] > 0


def test_a_variant_races_in_place_of_the_recipe_that_it_is_one_of(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "scratch", lambda: tmp_path)
    campaign = Campaign(tmp_path, ours="speedrun94-next")
    file = race._ours(campaign, "cifar10-speedrun")
    assert get_recipe(file) == variant("speedrun94-next", tiny=False)
    assert race._ours(campaign, "cifar10-fast") == "davidnet"
    assert race._ours(Campaign(tmp_path), "cifar10-speedrun") == "speedrun94"
