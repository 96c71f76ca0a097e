"""Every optimizer trains with its defaults: what `--optimizer KIND` gives, and nothing else."""

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import OPTIMIZERS, Recipe, change
from fastcifar.training import Trainer

STEPS = 40
BY_HEART = change(
    Recipe(),
    {
        **{"epochs": STEPS, "batch_size": 32, "dtype": "float32", "label_smoothing": 0.0},
        **{"network.widths": (4, 8, 8, 8), "augment.crop": 0, "augment.flip": "none"},
    },
)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizers_defaults_learn_a_batch_by_heart(kind):
    trainer = Trainer(change(BY_HEART, {"optimizer": kind}), make_synthetic(train_size=32, test_size=32), "cpu")
    rows = trainer.run(seed=0, eval_every=0).rows
    assert len(rows) == STEPS and rows[-1].train_loss < 0.97 * rows[0].train_loss
