"""The campaign's part `throughput`, and which parts need the data set."""

import dataclasses

import pytest

from bench.campaign.campaign import Campaign, CaptureFailed, append_record
from bench.campaign.schedule import wants_images
from bench.campaign.throughput import throughput


@pytest.fixture
def campaign(tmp_path, one_thread):
    return Campaign(tmp_path, "cpu", tiny=True)


def test_batch_sizes_are_measured_once_and_a_later_call_goes_on(campaign):
    def call(**changes):
        found = []
        for record in throughput(dataclasses.replace(campaign, **changes), "davidnet"):
            append_record(campaign.path("throughput"), record)
            found.append(record.get("batch_size", record["what"]))
        return found

    assert call(ends=0.0) == [32]
    assert call() == [64, "end"]
    assert call() == []
    with pytest.raises(CaptureFailed):
        list(throughput(dataclasses.replace(campaign, faults=frozenset(["nocapture:speedrun94"])), "speedrun94"))


@pytest.mark.parametrize(
    ("only", "needs"),
    [
        ("throughput,steps,kernels,ceilings", False),
        ("steps,trainings:davidnet", True),
        ("screen", True),
        ("race", True),
    ],
)
def test_images_are_needed_by_what_trains_on_them_alone(only, needs):
    assert wants_images("campaign", only.split(","), ["airbench94_muon"]) == needs
