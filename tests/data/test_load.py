"""Data sets by name, registered ones too."""

from pathlib import Path

import pytest
import torch

from fastcifar.catalogue import dataset
from fastcifar.data import Dataset, load_dataset
from fastcifar.errors import UserError
from tests import kinds

IMAGES = torch.randint(256, (12, 8, 8, 3), dtype=torch.uint8)
LABELS = torch.arange(12) % 3


@pytest.fixture(autouse=True)
def forget():
    with kinds.forgotten():
        yield


def arrays(name="arrays"):
    return Dataset.from_arrays(IMAGES, LABELS, IMAGES[:6], LABELS[:6], name=name)


@pytest.mark.parametrize("folder", [None, "here", Path("here")])
def test_a_registered_loader_gets_the_folder_if_it_takes_it(folder):
    asked = []

    @dataset("folders")
    def load(data_dir: Path | None) -> Dataset:
        asked.append(data_dir)
        return arrays()

    @dataset("memory")
    def make() -> Dataset:
        return arrays("another")

    for name in ("folders", "memory"):  # whatever the loader calls it
        assert load_dataset(name, folder).name == name
    assert asked == [folder and Path("here")]
    assert len(load_dataset("memory", holdout=3).test) == 3


@pytest.mark.parametrize("made", [None, (IMAGES, LABELS)])
def test_a_loader_that_gives_no_dataset_is_refused(made):
    dataset("wrong")(lambda: made)
    kind = type(made).__name__
    with pytest.raises(UserError, match=f"^the loader of 'wrong' gives a {kind}; allowed: a fastcifar.Dataset$"):
        load_dataset("wrong")
