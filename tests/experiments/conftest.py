import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.training import Trainer


@pytest.fixture(scope="module")
def dataset():
    return make_synthetic(train_size=160, test_size=32)


@pytest.fixture(scope="module")
def data():
    """The images of the experiments on warm starts."""
    return make_synthetic(192, 60)


@pytest.fixture
def trained(monkeypatch):
    """The recipes and seeds of all runs that are really trained."""
    runs, run = [], Trainer.run

    def counted(trainer, seed, *args, **kwargs):
        runs.append((trainer.recipe, seed))
        return run(trainer, seed, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", counted)
    return runs
