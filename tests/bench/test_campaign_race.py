"""The campaign's option --ours."""

from bench.campaign import race
from bench.campaign.campaign import Campaign
from bench.campaign.recipes import get_recipe as variant
from fastcifar.recipes import get_recipe


def test_a_variant_races_in_place_of_the_recipe_that_it_is_one_of(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "scratch", lambda: tmp_path)
    campaign = Campaign(tmp_path, ours="speedrun94-next")
    assert race._ours(campaign, "cifar10-speedrun") == "speedrun94-next"
    assert get_recipe(race._recipe("speedrun94-next")) == variant("speedrun94-next", tiny=False)
    assert race._ours(campaign, "cifar10-fast") == "davidnet"
    assert race._ours(Campaign(tmp_path), "cifar10-speedrun") == "speedrun94"
