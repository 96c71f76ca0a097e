"""Gradients in the master dtype beside a narrower network, for losses that are scaled: a small one keeps its bits."""

import numpy
import pytest
import torch

from fastcifar.models.davidnet import DavidNet
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import EMAConfig, Recipe
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from tests import kinds

SCALE, STEPS = 2.0**12, 2
NARROW = DavidNetConfig(widths=(4, 4, 6, 6), residual=(), ghost_batch=4, freeze_scale=False)


@pytest.fixture(params=["reference", "triton"])
def path(request, monkeypatch):
    """Plain torch, then the kernels in Triton's interpreter."""
    if request.param == "triton":
        triton = pytest.importorskip("triton", reason="Triton is not installed")
        if triton.__version__ < "3.7" and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
            pytest.skip("the interpreter of this Triton needs an older numpy")
    monkeypatch.setenv("FASTCIFAR_KERNELS", request.param)


def recipe_of(name):
    optimizer = kinds.optimizer(name, lr=0.05, bias_lr=0.05, head_lr=0.05, bias_lr_factor=2)
    return Recipe(network=NARROW, batch_size=8, optimizer=optimizer, ema=EMAConfig(decay=0.9, every=2))


def make_flat(dtype, wide):
    torch.manual_seed(0)
    return FlatModel(DavidNet(NARROW), dtype, wide_gradients=wide)


def scaled_loss(flat, step, scale):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step)).to(flat.dtype)
    logits = flat.model.train()(images.contiguous(memory_format=torch.channels_last))
    return (logits.float().square().mean() * scale).to(flat.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_backward_pass_fills_them_with_what_the_narrow_ones_get(dtype):
    wide, narrow = make_flat(dtype, True), make_flat(dtype, False)
    for flat in (wide, narrow):
        flat.backward(scaled_loss(flat, 0, SCALE))
    for mine, theirs in zip(wide.groups, narrow.groups, strict=True):
        assert mine.grads.dtype == torch.float32 and mine.compute.dtype == theirs.compute.dtype
        assert mine.grads.any() and torch.equal(mine.grads, theirs.grads.float())
        assert all(p.grad is None for p in mine.parameters)
        for p, view in zip(mine.parameters, mine.gradients, strict=True):
            assert view.shape == p.shape and view.stride() == p.stride()


@pytest.mark.parametrize("name", ["sgd", "muon", "lars", "Adam"])
def test_optimizers_take_them_as_they_are(name, path):
    """Gradients as small as a scaled loss is for, which half precision would round away, as in a float32 network."""
    half, full = make_flat(torch.float16, True), make_flat(torch.float32, False)
    for mine, theirs in zip(half.groups, full.groups, strict=True):
        theirs.load(mine.weights)
    optimizers = [build_optimizer(flat, recipe_of(name), STEPS) for flat in (half, full)]
    before = torch.cat([group.weights.clone() for group in full.groups])
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for mine, theirs in zip(half.groups, full.groups, strict=True):
            for one, other in zip(mine.gradients, theirs.gradients, strict=True):
                other.copy_(torch.randn(one.shape, generator=generator) * 1e-9)
                one.copy_(other).mul_(SCALE).mul_(1 / SCALE)
        for optimizer in optimizers:
            optimizer.step()
    changes = []
    for mine, theirs in zip(half.groups, full.groups, strict=True):
        assert torch.equal(mine.velocity, theirs.velocity) and (theirs.velocity.any() or name == "Adam")
        assert torch.equal(mine.compute, mine.weights.to(mine.compute.dtype))
    for flat in (half, full):
        changes.append(torch.cat([group.weights for group in flat.groups]) - before)
    # Muon's iteration is in half precision; elsewhere only the order of sums may differ.
    assert (changes[0] - changes[1]).norm() <= (0.05 if name == "muon" else 1e-6) * changes[1].norm()
    assert changes[1].any()
