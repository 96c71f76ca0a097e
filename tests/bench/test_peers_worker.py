"""A program in a process of its own, and what is put into it: a small program of the tests' own, written as other
people's are, stands in for them."""

import pytest
import torch

from bench.peers import PeerError, Worker
from bench.peers.harness import Enough, Harness
from bench.peers.serve import Ours
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import recipe_from_dict

CPU = torch.device("cpu")

STAND_IN = """
import os
import sys
from math import ceil
with open(sys.argv[0]) as f:
    code = f.read()

import torch
import torchvision.transforms as T
from torch import nn

@torch.compile
def twice(x):
    return 2 * x

class Loader:
    def __init__(self, path, train=True):
        data_path = os.path.join(path, "train.pt" if train else "test.pt")
        if not os.path.exists(data_path):
            raise FileNotFoundError(data_path)
        data = torch.load(data_path, map_location=torch.device("cuda"))
        images = (data["images"].half() / 255).permute(0, 3, 1, 2)
        self.images, self.labels = T.Normalize([0.5] * 3, [0.25] * 3)(images), data["labels"]
    def __len__(self):
        return len(self.images) // 2000
    def __iter__(self):
        return zip(self.images.split(2000), self.labels.split(2000))

class CifarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)
        for mod in self.modules():
            mod.half()
    def forward(self, x):
        return twice(self.head(x.mean((2, 3))))

def evaluate(model, loader, tta_level=0):
    views = loader.images if tta_level == 0 else loader.images.flip(-1)
    return (model(views).argmax(1) == loader.labels).float().mean().item()

def main(run, model):
    print("run", run)
    if run == 13:
        raise ArithmeticError("run 13")
    if run == 14:
        os._exit(3)
    train_loader, test_loader = Loader("cifar10"), Loader("cifar10", train=False)
    total_train_steps = ceil(2 * len(train_loader))
    whiten_bias_train_steps = ceil(3 * len(train_loader))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    starter, ender = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    time_seconds = 0.0
    step = 0
    for epoch in range(2):
        starter.record()
        for inputs, labels in train_loader:
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step >= total_train_steps:
                break
        ender.record()
        torch.cuda.synchronize()
        time_seconds += 1e-3 * starter.elapsed_time(ender)
        evaluate(model, test_loader)
    starter.record()
    accuracy = evaluate(model, test_loader, tta_level=2)
    ender.record()
    torch.cuda.synchronize()
    time_seconds += 1e-3 * starter.elapsed_time(ender)
    return accuracy

if __name__ == "__main__":
    raise SystemExit("run as a program")
"""
"""Of the shape of airbench94_muon.py, with every piece of text that is replaced there: a linear map of mean colors."""


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkouts")
    (folder / "cifar10-airbench").mkdir()
    (folder / "cifar10-airbench" / "airbench94_muon.py").write_text(STAND_IN)
    return folder


@pytest.fixture(scope="module")
def worker(checkouts):
    with Worker("airbench94_muon", checkouts / "cifar10-airbench", "synthetic", timeout=120) as worker:
        yield worker


def test_a_program_is_stopped_after_the_steps_asked_for(worker):
    result = worker.run(steps=2, seed=1)
    assert (result["peer"], result["steps"], result["images"]) == ("airbench94_muon", 2, 4000)
    assert len(result["step_seconds"]) == 2 and min(result["step_seconds"]) > 0
    assert result["seconds"] == pytest.approx(sum(result["step_seconds"]))
    assert result["own_seconds"] > result["seconds"], "theirs counts the untimed step too"
    assert [result[name] for name in ("accuracy", "plain_accuracy", "train_seconds", "time_seconds")] == [None] * 4


def test_a_whole_training_gives_its_accuracies_and_its_own_time(worker):
    result = worker.run(seed=2)
    assert result["steps"] == 10, "two epochs of the 10,000 synthetic images"
    assert result["step_seconds"] == []
    assert 0 < result["own_seconds"] <= result["seconds"]
    assert 0 < result["train_seconds"] < result["time_seconds"] == result["own_seconds"]
    assert result["seconds"] == pytest.approx(result["own_seconds"], rel=0.5, abs=0.05)
    assert 0 <= result["plain_accuracy"] <= 1 and 0 <= result["accuracy"] <= 1


def test_a_run_that_fails_leaves_the_worker_ready_for_the_next(worker):
    with pytest.raises(PeerError, match=r"^airbench94_muon: ArithmeticError: run 13$") as caught:
        worker.run(steps=1, seed=13)
    assert "in main" in caught.value.traceback
    with pytest.raises(PeerError, match="airbench94_muon: it ended after 10 steps; allowed: fewer than that"):
        worker.run(steps=10, seed=1)
    assert worker.run(steps=1, seed=1)["steps"] == 1


def test_a_program_that_dies_is_told_with_what_it_printed(checkouts):
    with Worker("airbench94_muon", checkouts / "cifar10-airbench", "synthetic") as worker:
        assert worker.facts["batch_size"] == 2000 and worker.facts["dataset"] == "synthetic"
        with pytest.raises(PeerError, match="airbench94_muon died with exit code 3") as caught:
            worker.run(seed=14)
        assert "run 14" in caught.value.traceback
        with pytest.raises(PeerError, match="airbench94_muon died"):
            worker.run(seed=1)


def test_a_worker_that_takes_too_long_is_ended(checkouts):
    with pytest.raises(PeerError, match=r"airbench94_muon took more than 0.01 s and was ended"):
        Worker("airbench94_muon", checkouts / "cifar10-airbench", "synthetic", timeout=0.01)


def test_ours_is_run_in_the_same_scheme():
    narrow = {"name": "narrow", "epochs": 2, "batch_size": 64, "network": {"widths": [4, 4, 8, 8]}}
    ours = Ours(recipe_from_dict(narrow), make_synthetic(320, 100), CPU)
    stopped = ours.run(steps=3, seed=0)
    assert len(stopped["step_seconds"]) == stopped["steps"] == 3 and stopped["accuracy"] is None
    assert stopped["train_seconds"] is None and stopped["time_seconds"] is None
    whole = ours.run(steps=None, seed=0)
    assert sum(whole["phases"].values()) > whole["phases"]["training: steps"] > 0
    assert whole["steps"] == 2 * (320 // 64)
    assert 0 < whole["train_seconds"] < whole["time_seconds"] == whole["own_seconds"]
    assert 0 <= whole["plain_accuracy"] <= 1 and 0 <= whole["accuracy"] <= 1
    with pytest.raises(ValueError, match="narrow ended before the steps that were asked for"):
        ours.run(steps=100, seed=0)


def test_a_harness_stops_the_program_and_times_its_steps(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    harness = Harness(make_synthetic(30, 10), CPU, batch_size=10)
    harness.begin(2, seed=0)
    harness.step_done()
    harness.step_done()
    with pytest.raises(Enough):
        harness.step_done()
    assert harness.step_seconds == [1.0, 1.0]
    harness.begin(1, seed=0)
    harness.step_begins()
    harness.step_done()
    harness.step_begins()
    with pytest.raises(Enough):
        harness.step_done()
    assert harness.step_seconds == [1.0], "its loader's second is left out"


def test_a_harness_tells_the_last_evaluation_from_the_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    harness = Harness(make_synthetic(30, 10), CPU, batch_size=10)
    start, end = harness.Event(), harness.Event()

    def pass_seconds(seconds):
        now[0] += seconds

    def train(evaluation_inside, evaluation_outside):
        start.record()
        pass_seconds(5.0)
        if evaluation_inside:
            with harness.evaluation():
                pass_seconds(2.0)
        end.record()
        start.elapsed_time(end)
        if evaluation_outside:
            with harness.evaluation():
                pass_seconds(3.0)
        return harness.own_seconds, harness.train_seconds, harness.time_seconds

    assert train(True, False) == (7.0, 5.0, 7.0)
    harness.begin(None, seed=0)
    assert train(False, True) == (5.0, 5.0, 8.0)
    harness.begin(None, seed=0)
    assert train(False, False) == (5.0, 5.0, None)


def test_a_harness_gives_a_stopped_run_no_more_images_than_it_takes():
    harness = Harness(make_synthetic(9000, 2000), CPU, batch_size=2000)
    assert len(harness.split(train=True)["images"]) == 9000
    harness.begin(2, seed=0)
    assert len(harness.split(train=True)["images"]) == 6000
    harness.begin(1, seed=0)
    assert len(harness.split(train=True)["labels"]) == 5000, "as many as whitening takes"


def test_the_whitening_bias_trains_in_whole_trainings_alone():
    harness = Harness(make_synthetic(10, 10), CPU, batch_size=10)
    assert harness.bias_steps(75) == 75
    harness.begin(3, seed=0)
    assert harness.bias_steps(75) < 0


def test_torch_compile_left_out_returns_what_it_is_given():
    compiled = Harness.compile
    model = torch.nn.Linear(2, 2)
    assert compiled(model, mode="max-autotune")._orig_mod is model
    assert "_orig_mod" not in dict(model.named_modules())

    @compiled(fullgraph=True)
    def double(x):
        return 2 * x

    assert double(3) == 6 and compiled(double) is double
