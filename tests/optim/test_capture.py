"""On a GPU a captured step, replayed, does what the step does."""

import copy
import dataclasses
import types
import warnings

import pytest
import torch

from fastcifar.models.davidnet import DavidNet
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import EMAConfig, Recipe
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.training.capture import capture, record
from tests import kinds, small

STEPS = 7
NARROW = dataclasses.replace(small.NARROW, freeze_scale=False)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "fields"),
    [("sgd", {}), ("sgd", {"layers": ("layers.1:momentum=0.5",)}), ("muon", {}), ("lars", {"norm_smoothing": 0.5})],
)
def test_a_replayed_step_is_the_step(name, fields):
    recipe = Recipe(
        network=NARROW,
        batch_size=8,
        optimizer=kinds.optimizer(name, lr=0.1, norm_every=2, bias_lr=0.1, head_lr=0.1, **fields),
        ema=EMAConfig(decay=0.9, every=2),
    )

    def make_flat():
        torch.manual_seed(0)
        return FlatModel(DavidNet(NARROW).cuda())

    def train(captured):
        flat = make_flat()
        optimizer = build_optimizer(flat, recipe, STEPS)
        step = capture(optimizer.step, optimizer.step)[0] if captured else optimizer.step
        flat.load(make_flat().model)
        optimizer.reset()
        for number in range(STEPS):
            generator = torch.Generator("cuda").manual_seed(number)
            for group in flat.groups:
                group.grads.copy_(torch.randn(group.grads.shape, device="cuda", generator=generator))
            step()
        return flat

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a step that could not be captured
        replayed, plain = train(True), train(False)
    for mine, expected in zip(replayed.groups, plain.groups, strict=True):
        torch.testing.assert_close(mine.weights, expected.weights)
        torch.testing.assert_close(mine.ema, expected.ema)
    assert not torch.equal(replayed.groups[0].weights, make_flat().groups[0].weights)


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_muon_beside_the_backward_pass_takes_the_gradients_that_were_made(captured):
    """Their memory is free for the rest of the backward pass only once the other stream has copied them."""

    def train(overlap, captured):
        recipe = Recipe(
            network=SpeedrunConfig(widths=(16, 64, 64)),
            batch_size=32,
            optimizer=MuonConfig(lr=0.1, bias_lr=0.1, head_lr=0.1, overlap=overlap),
        )
        torch.manual_seed(0)
        start, images = SpeedrunNet(recipe.network).cuda(), torch.randn(32, 3, 32, 32, device="cuda")
        flat = FlatModel(copy.deepcopy(start))
        optimizer = build_optimizer(flat, recipe, STEPS)

        def step():
            flat.backward(flat.model(images).square().sum(), halfway=optimizer.step_above)
            optimizer.step()

        run = capture(step, step)[0] if captured else step
        flat.load(start)
        optimizer.reset()
        for _ in range(STEPS):
            run()
        return flat

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the training step runs without a CUDA graph")
        beside, alone = train(True, captured), train(False, False)
    for mine, expected in zip(beside.groups, alone.groups, strict=True):
        torch.testing.assert_close(mine.weights, expected.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_is_left_as_it_is_with_the_reason():
    total = torch.zeros(1, device="cuda")

    def step():
        total.add_(1 + total.item())  # a value that the host waits for

    with pytest.warns(UserWarning, match="runs without a CUDA graph") as said:
        replay, reason = capture(step, step)
    assert replay is step and reason and reason in str(said[0].message)
    replay()
    assert total.item() == 2**4 - 1


@pytest.mark.parametrize("error", [RuntimeError("it waits for the host"), ValueError("no such shape")], ids=repr)
def test_what_breaks_a_recording_off_is_told_and_not_that_it_cannot_end(monkeypatch, error):
    """As torch 2.11 has it: a recording that broke off raises once more where it ends."""
    recordings = []

    class Recording:
        def __init__(self, graph, pool=None, **_):
            recordings.append(self)

        def __enter__(self):
            return self

        def __exit__(self, kind, value, traceback):
            if kind:
                raise RuntimeError("operation failed due to a previous error during capture")

    stream = types.SimpleNamespace(device="cpu")
    for name, value in {"current_stream": lambda: stream, "CUDAGraph": object, "graph": Recording}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def run():
        raise error

    with pytest.raises(type(error), match=str(error)):
        record(run)
    assert len(recordings) == 2, "the second, which ends, mends what the first left"
