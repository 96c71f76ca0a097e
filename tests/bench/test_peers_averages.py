"""Hare and Tortoise and L2 Init beside their authors' programs, where there are checkouts."""

import dataclasses
import os
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.peers.adapt import load_module
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import EMAConfig
from fastcifar.training.timeline import Timeline
from tests import kinds
from tests.small import BARE

CHECKOUTS = os.getenv("FASTCIFAR_PEERS")
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="FASTCIFAR_PEERS names no folder of checkouts")
RATE, BATCH, STEPS, EPOCHS, EVERY = 2.0**-6, 8, 3, 6, 2


def recipe_of(kind, **changes):
    section = kinds.optimizer(kind, lr=RATE, momentum=0.0, weight_decay=0.0)
    return dataclasses.replace(BARE, batch_size=BATCH, epochs=EPOCHS, optimizer=section, **changes)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).double()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(4, (BATCH,), generator=generator)


def state_of(flat):
    """Master weights and buffers by name."""
    return {name: tensor for name, tensor in flat.model.state_dict().items() if tensor.is_floating_point()}


def assert_equal(ours, theirs):
    for name, tensor in state_of(ours).items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_l2_init_is_the_agents_loss(monkeypatch, kind):
    stand_ins = {
        "nets": ("MLP", "ConvNet", "DeepConvNet"),
        "utils": (),
        "utils.continual_backprop": (),
        "utils.continual_backprop.gnt": ("GnT", "AdamGnT"),
        "utils.continual_backprop.convGnT": ("ConvGnT",),
    }
    for name, classes in stand_ins.items():  # of other agents
        module = types.ModuleType(name)
        module.__dict__.update(dict.fromkeys(classes, object))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "l2_init_agents", types.ModuleType("l2_init_agents"))
    program = load_module(Path(str(CHECKOUTS)) / "L2_Init" / "agents" / "agents.py", (), "l2_init_agents")
    config = types.SimpleNamespace(name=kind, lr=RATE)
    agent = program.L2InitAgent(network, config, nn.CrossEntropyLoss(), "cpu", 0.05, sample_init_values=False)

    flat = FlatModel(network(), torch.float64)
    optimizer = build_optimizer(flat, recipe_of(kind, l2_init=0.05), STEPS * EPOCHS)
    for step in range(STEPS * EPOCHS):
        inputs, labels = batch(step)
        agent.step(inputs, labels)
        flat.backward(F.cross_entropy(flat.model(inputs), labels, reduction="sum"))
        optimizer.step()
    assert_equal(flat, agent.model)


def test_weights_return_to_the_average_as_in_the_trainer():
    """Their epochs are counted from 1 here, as ours are; and after a return the two networks share no memory, as theirs
    do, where a step in place moves the average too."""
    path = Path(str(CHECKOUTS)) / "Hare-Tortoise" / "src" / "trainers" / "base.py"
    text = path.read_text(encoding="utf-8")
    follow = text.partition("# EMA (self-distill and Hare and Tortoise)\n")[2].partition("# log")[0]
    back = text.partition("# (6) Hare Tortoise\n")[2].partition("# log evaluation")[0]
    follow, back = (compile(textwrap.dedent(part), str(path), "exec") for part in (follow, back))
    theirs = types.SimpleNamespace(model=network(), target_model=network())
    sgd = torch.optim.SGD(theirs.model.parameters(), lr=RATE)
    settings = types.SimpleNamespace(ema=0.75, hare_tortoise=types.SimpleNamespace(reset_every=EVERY))

    recipe = recipe_of("SGD", ema=EMAConfig(decay=0.75, every=1, return_every=EVERY))
    timeline = Timeline(recipe, BATCH * STEPS, 32)
    flat = FlatModel(network(), torch.float64)
    optimizer = build_optimizer(flat, recipe, timeline.total_steps)
    step = 0
    for epoch in timeline.epochs:
        for _ in range(STEPS):
            inputs, labels = batch(step)
            sgd.zero_grad()
            F.cross_entropy(theirs.model(inputs), labels).backward()
            sgd.step()
            exec(follow, {"self": theirs, "cfg": settings})
            flat.backward(F.cross_entropy(flat.model(inputs), labels, reduction="sum"))
            optimizer.step()
            step += 1
        assert_equal(flat, theirs.model)
        if timeline.returns(epoch):
            flat.return_to_average()
        exec(back, {"self": theirs, "cfg": settings, "epoch": epoch.number + 1})
        for tensor in (*theirs.model.parameters(), *theirs.model.buffers()):
            tensor.data = tensor.data.clone()
        if epoch is not timeline.epochs[-1]:
            assert_equal(flat, theirs.model)
    evaluated = FlatModel(network(), torch.float64)
    evaluated.load_average(flat)
    assert_equal(evaluated, theirs.target_model)
