"""Training on the Triton kernels is training on their references."""

import dataclasses

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.kernels import launch_sizes
from fastcifar.recipes import Augment, ModelConfig, OptimConfig, Recipe, SpeedrunConfig, get_recipe
from fastcifar.training import Trainer

DAVIDNET = Recipe(
    epochs=1,
    batch_size=32,
    dtype="float32",
    augment=Augment(crop=4, flip="random", cutout=8),
    model=ModelConfig(widths=(8, 16, 32, 64), ghost_batch=16),
)
"""DavidNet at an eighth of its width."""
SPEEDRUN = dataclasses.replace(
    get_recipe("speedrun94"),
    **{"epochs": 1, "batch_size": 32, "dtype": "float32"},
    speedrun=SpeedrunConfig(widths=(8, 16, 16)),
    optim=OptimConfig("muon", lr=0.05, bias_lr=0.05, head_lr=0.05),
)


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Not here: compiled kernels need a GPU, interpreted ones none."""


@pytest.mark.parametrize("recipe", [DAVIDNET, SPEEDRUN], ids=lambda recipe: recipe.network)
def test_three_steps_on_the_triton_kernels_give_the_losses_of_the_references(monkeypatch, recipe):
    pytest.importorskip("triton")
    # An interpreted program takes milliseconds whatever its size: few large ones.
    norm = dataclasses.replace(launch_sizes._INTERPRETED.norm, rows=2048, channels=16)
    large = dataclasses.replace(
        launch_sizes._INTERPRETED, augment_block=1 << 15, flat_block=1 << 17, norm=norm, norm_gradient=norm
    )
    monkeypatch.setattr(launch_sizes, "_INTERPRETED", large)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for path in ("reference", "triton"):
        monkeypatch.setenv("FASTCIFAR_KERNELS", path)
        run = Trainer(recipe, make_synthetic(96, 32), device).run(0)
        results[path] = (run.rows[0].train_loss, run.rows[0].train_accuracy, run.tta_logits)
    torch.testing.assert_close(results["triton"][0], results["reference"][0], rtol=1e-5, atol=0)
    assert results["triton"][1] == results["reference"][1]
    torch.testing.assert_close(results["triton"][2], results["reference"][2], rtol=1e-3, atol=1e-4)
