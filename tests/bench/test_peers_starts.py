"""FIRE and DASH beside their authors' code, from checkouts in the folder that FASTCIFAR_PEERS names."""

import copy
import os
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bench.peers.adapt import load_module
from fastcifar import Dash, Trainer, WarmStart, train
from fastcifar.data.synthetic import make_synthetic
from fastcifar.models import build_model
from fastcifar.plasticity import dash, fire
from fastcifar.training import initialize
from tests.small import BARE

CHECKOUTS = os.getenv("FASTCIFAR_PEERS")
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="FASTCIFAR_PEERS names no folder of checkouts")


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    return nn.Sequential(*layers).double()


def test_fire_is_the_authors():
    theirs = load_module(Path(CHECKOUTS, "FIRE/vision/interventions/fire.py"), (), "their_fire")
    ours, other = network(), network()
    fire(ours, steps=10)
    theirs.fire(other, 10)
    for name, found in ours.state_dict().items():
        torch.testing.assert_close(found, other.state_dict()[name], rtol=0, atol=1e-12, msg=name)


def their_dash():
    absent = [f"import {name}\n" for name in ("wandb", "models", "torchvision.transforms as transforms")]
    froms = ("einops import rearrange", "utils.SAM import SAM", "utils.metric_utils import *")
    absent += [f"from {name}\n" for name in (*froms, "DataLoader import Data_transform")]
    path = Path(CHECKOUTS, "DASH-Direction-Aware-SHrinking/utils/train_utils.py")
    names = {"rearrange": lambda x, _: x.flatten(2)}
    return load_module(path, [(line, "") for line in absent], "their_dash", names)


def test_dash_is_the_authors():
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(50, 3, 8, 8, dtype=torch.float64), torch.arange(50) % 10)
    loader = DataLoader(data, batch_size=16, shuffle=False)
    ours, other = network(), network()
    args = types.SimpleNamespace(device="cpu", dash_alpha=0.3, dash_lambda=0.05)
    dash(ours, loader, floor=0.05, alpha=0.3)
    their_dash().dash(args, other, nn.CrossEntropyLoss(), copy.copy(loader))
    for name, found in ours.state_dict().items():
        torch.testing.assert_close(found, other.state_dict()[name], rtol=0, atol=1e-12, msg=name)


def test_a_training_in_their_batches_begins_as_theirs(tmp_path):
    data, chunk = make_synthetic(72, 20), 24  # three chunks of one size, as theirs
    source = train(BARE, data, seed=1, device="cpu").save(tmp_path / "run")
    trainer = Trainer(BARE, data, "cpu")
    trainer.reset(0, Dash(source, floor=0.05, batch=chunk))
    found = trainer.state.flat.state_dict()
    images = ((data.train.images.float() - torch.tensor(data.mean)) / torch.tensor(data.std)).permute(0, 3, 1, 2)
    chunks = [TensorDataset(images[at : at + chunk], data.train.labels[at : at + chunk]) for at in (0, 24, 48)]
    model = build_model(BARE, 10, data.mean, data.std)
    initialize(model, WarmStart(source))
    args = types.SimpleNamespace(device="cpu", dash_alpha=0.3, dash_lambda=0.05, sota=False)
    theirs = their_dash().perform_dash(args, model, chunks, nn.CrossEntropyLoss(), chunk)
    other = Trainer(BARE, data, "cpu")
    other.reset(0, Dash(source, floor=0.05))
    for name, wanted in theirs.state_dict().items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(other.state.flat.state_dict()["classifier.weight"], found["classifier.weight"], rtol=1e-3)
