"""Other people's programs beside ours: a small program of the tests' own, written as theirs are, stands in for them."""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from bench.peers import PeerError, Worker, race
from bench.peers.__main__ import choose, main
from bench.peers.cifar10_fast import ghost_order, load_peer
from bench.peers.clocks import read_clocks
from bench.peers.harness import Enough, Harness
from bench.peers.ours import Ours
from bench.peers.programs import EQUAL, OURS, PROGRAMS
from bench.peers.race import Race
from bench.peers.source import Compose, Normalize, ToTensor, load_module, read_source
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.recipes import get_recipe, recipe_from_dict

CHECKOUTS = os.getenv("FASTCIFAR_PEERS")
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
        self.head = nn.Linear(3, 10).half()
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
    return evaluate(model, test_loader, tta_level=2)

if __name__ == "__main__":
    raise SystemExit("run as a program")
"""
"""Of the shape of airbench94_muon.py, with every piece of text that is replaced there: a linear map of mean colours."""


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
    assert result["accuracy"] is None and result["plain_accuracy"] is None


def test_a_whole_training_gives_its_accuracies_and_its_own_time(worker):
    result = worker.run(seed=2)
    assert result["steps"] == 10, "two epochs of the 10,000 synthetic images"
    assert result["step_seconds"] == []
    assert 0 < result["own_seconds"] <= result["seconds"]
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


class InTurn:
    """A worker without a process: a step of theirs takes 8 s, of ours 1 s; it notes every run of the class."""

    turns: ClassVar[list] = []
    started = 0.0

    def __init__(self, peer, checkout, data, device, cache, timeout):
        if peer == "cifar10-speedrun":
            raise PeerError("cifar10-speedrun: no such text", "Traceback: no such text")
        self.peer, self.ours = peer, peer.startswith(OURS)
        self.facts = {"batch_size": 500 if self.ours else 2000, "dtype": "bfloat16"}

    def run(self, steps=None, seed=0, timeout=None):
        if self.peer == "hlb-CIFAR10" and seed == 2:
            raise PeerError("hlb-CIFAR10: it failed in round 2", "Traceback: it failed")
        self.turns.append(("ours" if self.ours else self.peer, steps, seed))
        seconds = [1.0 if self.ours else 8.0] * (steps or 0)
        return {**result_of(seconds, 8.0, 2.0, 0.94), "steps": steps or 75, "seconds": sum(seconds)}

    def close(self):
        self.turns.append((self.peer, "closed"))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.setattr(race, "Worker", InTurn)
    monkeypatch.setattr(InTurn, "turns", [])
    return InTurn.turns


def run_main(tmp_path, capsys, *options):
    """Exit code, table by the first word of its lines, saved records and what was told, of a call without pauses."""
    save = tmp_path / "results.jsonl"
    code = main(["--checkouts", str(tmp_path), "--gap", "0", "--save", str(save), *options])
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines()}
    return code, rows, [json.loads(line) for line in save.read_text().splitlines()], err


def test_a_program_and_ours_run_in_turn_after_one_unmeasured_run_of_each(turns, tmp_path, capsys):
    peer = "airbench94_muon"
    code, rows, records, _ = run_main(tmp_path, capsys, "--only", peer, "--steps", "3", "--rounds", "2")
    assert code == 0
    assert turns[:6] == [(name, steps, seed) for seed, steps in ((0, 1), (1, 3), (2, 3)) for name in (peer, "ours")]
    assert [turn[1] for turn in turns[6:]] == ["closed", "closed"]
    (record,) = records
    assert (record["table"], record["n"], record["factors"]) == ("peers", 2, [2.0, 2.0]), "for an image of each"
    assert [run["round"] for run in record["runs"]["theirs"]] == [1, 2]
    assert record["command"] == f"python -m bench.peers --checkouts DIR --only {peer} --device cpu --steps 3 --rounds 2"
    assert record["row"]["theirs"] == "250 images/s (batch 2000, bfloat16)"
    assert "2.00 to 2.00" in rows[peer] and "500 images/s (batch 500, bfloat16)" in rows[peer]


def test_one_that_fails_is_told_and_the_others_go_on(turns, tmp_path, capsys):
    peers = "cifar10-speedrun,hlb-CIFAR10,airbench94_muon"
    code, rows, records, err = run_main(tmp_path, capsys, "--only", peers, "--steps", "1", "--rounds", "3")
    assert code == 1
    assert [(record["table"], record["n"]) for record in records] == [(None, 0), ("peers", 1), ("peers", 3)]
    assert records[0]["failures"] == [
        {"side": "theirs", "error": "cifar10-speedrun: no such text", "traceback": "Traceback: no such text"}
    ]
    assert len(records[0]["runs"]["ours"]) == 3 and records[0]["runs"]["theirs"] == []
    assert "cifar10-speedrun: no such text" in rows["cifar10-speedrun"]
    assert "hlb-CIFAR10, theirs: hlb-CIFAR10: it failed in round 2" in err


def test_whole_trainings_are_those_of_our_recipe_with_the_same_aim(turns, tmp_path):
    outcomes = {
        peer: race.race(peer, tmp_path, device="cuda", rounds=1, gap=0)
        for peer in ("airbench94_muon", "cifar10-fast", "warm_start")
    }
    assert [outcome.recipe for outcome in outcomes.values()] == ["speedrun94", "davidnet", "warm_start"]
    assert outcomes["airbench94_muon"].factors() == [1.0]
    assert outcomes["cifar10-fast"].factors() == [4.0], "it leaves the evaluation out, and so does train_seconds"
    assert outcomes["warm_start"].measured == "training step" and ("warm_start", 200, 1) in turns
    assert outcomes["cifar10-fast"].row()["theirs"] == "8.00 s, 94.00% (bfloat16)"


def test_a_cold_start_is_the_first_run_of_a_fresh_process(turns, tmp_path, capsys):
    peers = "cifar10-speedrun,airbench94_muon"
    code, rows, records, _ = run_main(tmp_path, capsys, "--cold", "--only", peers)
    assert code == 1, "cifar10-speedrun failed"
    assert [turn[1] for turn in turns] == [None, "closed"] * 3
    speedrun, airbench = records
    assert speedrun["n"] == 0 and airbench["n"] == 1
    assert all(airbench["runs"][side][0]["process_seconds"] > 0 for side in race.SIDES)
    assert airbench["command"].endswith("--only airbench94_muon --device cpu --cold")
    assert "cold start" in rows["airbench94_muon"]


def result_of(seconds_a_step, own_seconds=None, train_seconds=None, accuracy=None):
    return {
        "step_seconds": seconds_a_step,
        "own_seconds": own_seconds,
        "train_seconds": train_seconds,
        "accuracy": accuracy,
    }


def test_the_factor_is_the_median_of_the_rounds_ratios():
    outcome = Race("airbench94_muon", "equal", "training step")
    outcome.facts = {"theirs": {"batch_size": 2000, "dtype": "x"}, "ours": {"batch_size": 500, "dtype": "y"}}
    outcome.runs = {
        "theirs": [result_of([4.0, 4.0, 9.0]), result_of([6.0])],
        "ours": [result_of([0.5]), result_of([0.5, 0.5])],
    }
    assert outcome.factors() == pytest.approx([2.0, 3.0])
    row = outcome.row()
    assert (row["our factor"], row["n"], row["spread"]) == ("2.50", "2", "2.00 to 3.00")
    assert race.table([]) == ""


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


def test_images_are_normalised_in_their_own_type_and_layout():
    images = torch.rand(4, 3, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    out = Normalize((0.5, 0.25, 0.0), (0.5, 2.0, 1.0))(images)
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out[:, 1].float(), (images[:, 1].float() - 0.25) / 2, rtol=1e-2, atol=1e-2)
    image = torch.randint(256, (8, 8, 3), dtype=torch.uint8)
    out = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])(image)
    torch.testing.assert_close(out, image.permute(2, 0, 1) / 127.5 - 1)


def test_a_shim_that_matches_nothing_is_refused(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("a = 1\n")
    assert read_source(path, [("a = 1", "b = 2"), ("b = 2", "c = 3")]) == "c = 3\n"
    with pytest.raises(UserError, match=r"program.py is not the version these shims are for: it lacks 'd = 4'"):
        read_source(path, [("a = 1", "b = 2"), ("d = 4", "")])


def test_a_program_is_loaded_as_a_module_that_others_can_import(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("import sys\nanswer = given + 1\nknown = sys.modules[__name__].answer\n")
    module = load_module(path, (), "a_peers_program", {"given": 41})
    assert module.answer == module.known == 42 and sys.modules.pop("a_peers_program") is module


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not the checkout these shims are for: core.py is missing"):
        load_peer(tmp_path)


def test_an_unknown_version_of_a_peer_is_refused(tmp_path):
    (tmp_path / "core.py").write_text("answer = 42\n")
    with pytest.raises(UserError, match=r"core.py is not the version these shims are for"):
        load_peer(tmp_path)


def test_our_consecutive_ghost_groups_hold_the_images_of_their_strided_ones():
    order = ghost_order(batch=12, ghost_batch=4)
    theirs = torch.arange(12) % 3  # their group of each image, of three groups
    assert theirs[order].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_peers_are_chosen_by_name_and_by_what_is_there(checkouts, tmp_path):
    assert choose(checkouts, None, "cpu", False)[:2] == ["airbench94_muon", "airbench95"]
    assert choose(checkouts, None, "cuda", True) == ["airbench94_muon"], "the others do not compile for minutes"
    assert choose(tmp_path, "warm_start, hlb-CIFAR10", "cpu", False) == ["warm_start", "hlb-CIFAR10"]
    with pytest.raises(UserError, match=r"peer is 'hlb'; allowed: airbench94_muon, .*, or fastcifar:RECIPE"):
        choose(tmp_path, "hlb", "cpu", False)
    with pytest.raises(UserError, match=r"holds none of the checkouts; allowed: a folder with any of cifar10-airbench"):
        choose(tmp_path, None, "cpu", False)
    (tmp_path / "cifar10-fast").mkdir()
    assert choose(tmp_path, None, "cpu", False) == ["cifar10-fast", "cifar10-fast-bfloat16"]
    assert choose(tmp_path, None, "cuda", False) == ["cifar10-fast"], "on CUDA the other is the same program"


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_peer_has_a_recipe_of_the_same_batch(name):
    program = PROGRAMS[name]
    assert get_recipe(str(EQUAL / f"{program.equal}.toml")).batch_size == program.batch_size


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="/proc/cpuinfo is Linux's")
def test_clocks_are_read_for_the_cpus_in_use():
    clocks = read_clocks("cpu")
    assert set(clocks) <= {"cpu_mhz"}
    assert all(value > 0 for value in clocks.get("cpu_mhz", ()))
    assert len(clocks.get("cpu_mhz", ())) in (0, len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not CHECKOUTS, reason="FASTCIFAR_PEERS names no folder of checkouts")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_peer_takes_a_training_step(name):
    checkout = Path(CHECKOUTS or ".") / PROGRAMS[name].checkout
    with Worker(name, checkout, "synthetic", timeout=600) as worker:
        result = worker.run(steps=1, timeout=600)
    assert result["steps"] == 1 and result["step_seconds"][0] > 0 and result["own_seconds"] > 0


NETWORKS = {
    "airbench94_muon": ("airbench94_muon", lambda module: module.CifarNet()),
    "airbench95": ("airbench95", lambda module: module.make_net()),
    "airbench96": ("airbench96", lambda module: module.make_net()),
    "airbench96_faster": ("airbench96_faster", lambda module: module.make_net(module.hyp["net"])),
    "cifar10-speedrun": ("cifar10_speedrun", lambda module: module.CifarNet()),
    "hlb-CIFAR10": ("hlb_cifar10", lambda module: module.make_net()),
    "warm_start": ("resnet", lambda module: module.ResNet18()),
}
"""Where each peer's network is made. (cifar10-fast's step is compared with ours by its losses.)"""


@pytest.mark.skipif(not CHECKOUTS, reason="FASTCIFAR_PEERS names no folder of checkouts")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_recipe_of_equal_work_has_the_weights_of_theirs(name, monkeypatch):
    def shapes(model):
        return sorted(tuple(weight.shape) for weight in model.parameters() if weight.requires_grad and weight.dim() > 1)

    program, (module, make) = PROGRAMS[name], NETWORKS[name]
    dataset = make_synthetic(200, 50)
    monkeypatch.setattr(sys, "argv", sys.argv)  # theirs set it
    program.load(Path(CHECKOUTS) / program.checkout, Harness(dataset, CPU, program.batch_size))
    ours = build_model(get_recipe(str(EQUAL / f"{program.equal}.toml")), 10, dataset.mean, dataset.std)
    assert shapes(make(sys.modules[module])) == shapes(ours)


def test_ours_is_run_in_the_same_scheme():
    narrow = {"name": "narrow", "epochs": 2, "batch_size": 64, "model": {"widths": [4, 4, 8, 8]}}
    ours = Ours(recipe_from_dict(narrow), make_synthetic(320, 100), CPU)
    stopped = ours.run(steps=3, seed=0)
    assert len(stopped["step_seconds"]) == stopped["steps"] == 3 and stopped["accuracy"] is None
    whole = ours.run(steps=None, seed=0)
    assert whole["steps"] == 2 * (320 // 64) and 0 < whole["train_seconds"] <= whole["own_seconds"]
    assert 0 <= whole["plain_accuracy"] <= 1 and 0 <= whole["accuracy"] <= 1
    with pytest.raises(ValueError, match="narrow ended before the steps that were asked for"):
        ours.run(steps=100, seed=0)
