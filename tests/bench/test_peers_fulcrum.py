"""Fulcrum's recipes are driven as their rule has it: a small program of the tests' own, with their hooks, stands in."""

import sys

import pytest
import torch

from bench.peers.fulcrum import load_e1, load_e5
from bench.peers.harness import PLAIN, WITH_TTA, Enough, Harness
from fastcifar.data.synthetic import make_synthetic
from fastcifar.training.stopwatch import HostEvent

STAND_IN = """
import os
import time

import torch
import torchvision.transforms as T
from torch import nn

hyp = {
    "train_epochs": 2.5,
    "decay_epochs": 2,
    "whiten_bias_epochs": 0.25,
    "batch_size": 16,
    "lr_floor": 0.05,
    "aug": {"flip": True},
}
CIFAR_MEAN = torch.tensor((0.5, 0.5, 0.5), dtype=torch.half)
CIFAR_STD = torch.tensor((0.25, 0.25, 0.25), dtype=torch.half)
calls = []

class CifarLoader:
    def __init__(self, path, train=True, batch_size=500, aug=None):
        data_path = os.path.join(path, "train.pt" if train else "test.pt")
        if not os.path.exists(data_path):
            raise FileNotFoundError(data_path)
        data = torch.load(data_path, map_location=torch.device("cuda"), weights_only=True)
        images = (data["images"].half() / 255).permute(0, 3, 1, 2)
        self.images, self.labels = T.Normalize(CIFAR_MEAN, CIFAR_STD)(images), data["labels"]
        self.batch_size, self.epoch = batch_size, 0
        self._indices = torch.empty(len(self.images), dtype=torch.long, device="cuda")
    def __len__(self):
        return len(self.images) // self.batch_size
    def __iter__(self):
        self.epoch += 1
        return iter(zip(self.images.split(self.batch_size), self.labels.split(self.batch_size)))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)
        for mod in self.modules():
            mod.half()
    def forward(self, x):
        return self.head(x.mean((2, 3)))

@torch.compile(fullgraph=True)
def forward_step(model, inputs, labels):
    return nn.functional.cross_entropy(model(inputs), labels)

def make_optimizers(model, total_train_steps):
    return [torch.optim.SGD([parameter], lr=0.01) for parameter in model.parameters()]

def reset_all(model, loader, optimizer1, optimizer2):
    calls.append(("reset", loader.epoch))
    model.head.reset_parameters()

def run_steps(model, loader, optimizer1, optimizer2, decay_steps, bias_steps, max_steps, ctx=None, lr_floor=0.0):
    calls.append(("run_steps", decay_steps, bias_steps, max_steps))
    ema_start, step = decay_steps - 1, 0
    while step < max_steps:
        for inputs, labels in loader:
            forward_step(model, inputs, labels).backward()
            for optimizer in (optimizer1, optimizer2):
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            if ctx is not None:
                if step == ema_start:
                    ctx.validate(model, step=step)
            if step >= max_steps:
                break

def run_steps_stepdata(model, step_data, fs, total_steps, decay_steps):
    calls.append(("run_steps_stepdata", fs.wbts))
    ema_start = decay_steps - 1
    for s in range(total_steps):
        x, y = step_data[s]
        step = s + 1
        if step == ema_start:
            pass

class Graphs:
    def prepare(self):
        calls.append("prepare")

_CACHE = {}

def setup():
    if _CACHE:
        calls.append(("setup again", _CACHE["train_loader"].epoch))
        _CACHE["train_loader"].epoch += 3
        return _CACHE["model"], _CACHE
    calls.append("setup")
    time.sleep(0.2)
    model = Model()
    loader = CifarLoader("data", batch_size=hyp["batch_size"])
    optimizers = make_optimizers(model, 8)
    step_data = list(loader) * 3
    run_steps(model, loader, *optimizers, 8, 1, 3)
    _CACHE.update(model=model, train_loader=loader, optimizers=optimizers, fullstep=Graphs(), epoch_data=step_data,
                  total_train_steps=10, decay_steps=8, whiten_bias_train_steps=1)
    return model, _CACHE

def train(model, extra, ctx):
    calls.append("train")
    if NAME == "e1":
        extra["fullstep"].prepare()
        ctx.validate(model, step=extra["total_train_steps"])
    else:
        run_steps(model, extra["train_loader"], *extra["optimizers"], extra["decay_steps"],
                  extra["whiten_bias_train_steps"], extra["total_train_steps"], ctx=ctx, lr_floor=hyp["lr_floor"])
"""
"""Of the shape of both recipes, with every piece of text that is replaced in them: a linear map of mean colors."""

LOAD = {"e1": load_e1, "e5": load_e5}


class AsOnCuda(Harness):
    """A harness that says it is on CUDA, with the host's clock and data."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.device = torch.device("cuda")

    def synchronize(self):
        pass

    def _mark(self, wait=False):
        event = HostEvent()
        event.record()
        return event


@pytest.fixture
def start(tmp_path, monkeypatch):
    """The training of the stand-in by its name, its harness, and the calls of its functions so far."""

    def load(name, harness_class):
        path = tmp_path / "runners" / "recipes" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        # On CUDA nothing of theirs is replaced that moves data there.
        text = STAND_IN.replace(', device="cuda")', ")") if harness_class is AsOnCuda else STAND_IN
        path.write_text(f"NAME = {name!r}\n{text}")
        harness = harness_class(make_synthetic(64, 40), torch.device("cpu"), 16)
        monkeypatch.setattr(torch, "compile", Harness.compile)
        monkeypatch.setitem(sys.modules, f"fulcrum_{name}", None)
        train = LOAD[name](tmp_path, harness)
        return train, harness, sys.modules[f"fulcrum_{name}"].calls

    return load


def assert_measured(harness):
    """Of a whole training: its accuracies, and the evaluation beside what their rule counts."""
    assert set(harness.accuracies) == {PLAIN, WITH_TTA}
    assert all(0 <= accuracy <= 1 for accuracy in harness.accuracies.values())
    assert harness.train_seconds == harness.own_seconds > 0 and harness.evaluation_seconds > 0
    assert harness.time_seconds == harness.own_seconds + harness.evaluation_seconds


@pytest.mark.parametrize("name", LOAD)
def test_on_a_cpu_a_training_is_their_plain_loop(start, name):
    train, harness, calls = start(name, Harness)
    assert calls == []
    harness.begin(None, seed=1)
    train(1)
    assert [call for call in calls if call != "train"] == [("reset", 0), ("run_steps", 8, 1, 10)]
    assert harness.steps_done == 10
    assert_measured(harness)
    harness.begin(2, seed=1)
    with pytest.raises(Enough):
        train(1)
    assert calls[-1][2] == -1, "the whitening's bias does not train"
    assert len(harness.step_seconds) == 2 and harness.accuracies == {}


def test_on_cuda_e5_is_built_once_and_prepared_for_each_training(start):
    train, harness, calls = start("e5", AsOnCuda)
    assert calls == ["setup", ("run_steps", 8, 1, 3)] and harness.steps_done == 0, "its warm-up is no training"
    del calls[:]
    for seed in (1, 2):
        harness.begin(None, seed)
        train(seed)
        assert harness.steps_done == 10
        assert_measured(harness)
    assert calls == [("reset", 0), "train", ("run_steps", 8, 1, 10)] * 2


def test_on_cuda_e1_is_built_once_and_prepares_its_batches_for_each_training(start):
    train, harness, calls = start("e1", AsOnCuda)
    assert calls[0] == "setup"
    del calls[:]
    for seed in (1, 2):
        harness.begin(None, seed)
        train(seed)
        assert harness.steps_done == 10
        assert harness.own_seconds < 0.2, "without what is built once"
        assert_measured(harness)
    assert calls == [("setup again", 0), "train", "prepare"] * 2
    del calls[:]
    harness.begin(2, seed=1)
    with pytest.raises(Enough):
        train(1)
    assert calls == [("setup again", 0), "prepare", ("run_steps_stepdata", -1)]
    assert len(harness.step_seconds) == 2
