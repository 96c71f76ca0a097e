"""Training on the Triton kernels is training on their references."""

import dataclasses
import importlib

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import change, get_recipe
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.training import Trainer
from tests import small

DAVIDNET = change(small.DAVIDNET, {"epochs": 1, "augment.cutout": 8, "network.ghost_batch": 8})
SPEEDRUN = dataclasses.replace(
    get_recipe("speedrun94"),
    **{"epochs": 1, "batch_size": 16, "dtype": "float32"},
    network=SpeedrunConfig(widths=(4, 8, 8)),
    optimizer=MuonConfig(lr=0.05, bias_lr=0.05, head_lr=0.05),
)


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Not here: compiled kernels need a GPU, interpreted ones none."""


@pytest.mark.parametrize(
    "recipe",
    [DAVIDNET, SPEEDRUN, change(SPEEDRUN, {"augment.early": "crop"})],
    ids=["davidnet", "speedrun", "speedrun of early crops"],
)
def test_three_steps_on_the_triton_kernels_give_the_losses_of_the_references(monkeypatch, recipe):
    pytest.importorskip("triton")
    # An interpreted program takes milliseconds whatever its size: few large ones.
    for name, sizes in (
        ("augment_triton", {"block": 1 << 15}),
        ("flat_optimizer_triton", {"block": 1 << 17}),
        ("norm_act_pool.forward", {"channels": 16}),
        ("norm_act_pool.backward", {"channels": 16}),
    ):
        table = importlib.import_module(f"fastcifar.kernels.{name}").SIZES
        monkeypatch.setattr(table, "interpreted", dataclasses.replace(table.interpreted, **sizes))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for path in ("reference", "triton"):
        monkeypatch.setenv("FASTCIFAR_KERNELS", path)
        run = Trainer(recipe, make_synthetic(48, 16), device).run(0)
        results[path] = (run.rows[0].train_loss, run.rows[0].train_accuracy, run.tta_logits)
    torch.testing.assert_close(results["triton"][0], results["reference"][0], rtol=1e-5, atol=0)
    assert results["triton"][1] == results["reference"][1]
    torch.testing.assert_close(results["triton"][2], results["reference"][2], rtol=1e-3, atol=1e-4)
