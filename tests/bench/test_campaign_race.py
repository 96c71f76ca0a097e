"""The campaign's races and cold starts."""

import dataclasses
import tempfile
import time

import pytest

from bench.campaign import race as part
from bench.campaign.campaign import Campaign, append_record
from bench.campaign.race import cold, race
from bench.campaign.recipes import get_recipe as variant
from bench.peers import PeerError
from fastcifar.errors import UserError
from fastcifar.recipes import get_recipe


def test_a_variant_races_in_place_of_the_recipe_that_it_is_one_of(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "scratch", lambda: tmp_path)
    campaign = Campaign(tmp_path, ours="speedrun94-next")
    assert part._ours(campaign, "cifar10-speedrun") == "speedrun94-next"
    assert get_recipe(part._recipe("speedrun94-next")) == variant("speedrun94-next", tiny=False)
    assert part._ours(campaign, "cifar10-fast") == "davidnet"
    assert part._ours(Campaign(tmp_path), "cifar10-speedrun") == "speedrun94"


class InTurn:
    """A worker without a process."""

    fails: str | None = None
    started = 0.0

    def __init__(self, peer, *_):
        self.peer, self.facts = peer, {"batch_size": 1}

    def run(self, steps, seed=0, timeout=None):
        if self.fails and self.fails in self.peer:
            raise PeerError("it does not compile", "Traceback: it does not compile")
        return {"captured": True, "not_captured": None, "time_seconds": 1.0, "train_seconds": 1.0}

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def tiny(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("bench.peers.race.Worker", InTurn)
    return Campaign(tmp_path, device_name="cpu", tiny=True)


def raced(campaign, seconds):
    """The rounds of a race whose turn is `seconds` long, a warm-up's number in brackets."""

    def wait_for_turn():
        return dataclasses.replace(campaign, ends=time.monotonic() + seconds)

    rounds = []
    for record in race(dataclasses.replace(campaign, wait_for_turn=wait_for_turn), "tiny"):
        append_record(campaign.path("race"), record)
        rounds.append([record["round"]] if record["warm_up"] else record["round"])
    return rounds


def test_a_round_is_always_measured_and_a_later_call_goes_on_from_the_next(tiny):
    assert raced(tiny, seconds=-1) == [[0], [0], 1, 1]
    assert raced(tiny, seconds=60) == [[1], [1], 2, 2]
    assert raced(tiny, seconds=60) == []


def test_a_rival_that_fails_is_told(tiny, monkeypatch, capsys):
    monkeypatch.setattr(InTurn, "fails", "tiny")
    with pytest.raises(UserError, match="theirs: it does not compile"):
        list(race(tiny, "tiny"))
    assert capsys.readouterr().out == "Traceback: it does not compile\n"


def test_cold_starts_are_kept_or_told_and_not_sought_again(tiny, monkeypatch):
    monkeypatch.setattr(InTurn, "fails", "tiny")
    assert [record["what"] for record in cold(tiny)] == ["finding"]
    monkeypatch.setattr(InTurn, "fails", None)
    (record,) = cold(tiny)
    assert record["process_seconds"] > 0
    append_record(tiny.path("cold"), record)
    assert list(cold(tiny)) == []
