"""Other people's programs, each read from its checkout, adapted and set beside a recipe of equal work."""

import copy
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.peers import Worker, adapt
from bench.peers.adapt import compose, half_newton_schulz, in_half, load_module, normalize, read_code, to_tensor
from bench.peers.cifar10_fast import compare_first_losses, ghost_order, load_peer, notebook_cell
from bench.peers.clocks import read_clocks
from bench.peers.harness import Harness
from bench.peers.programs import EQUAL, PROGRAMS
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.recipes import get_recipe

CHECKOUTS = os.getenv("FASTCIFAR_PEERS")


def test_images_are_normalized_in_their_own_type_and_layout():
    images = torch.rand(4, 3, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    out = normalize((0.5, 0.25, 0.0), (0.5, 2.0, 1.0))(images)
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out[:, 1].float(), (images[:, 1].float() - 0.25) / 2, rtol=1e-2, atol=1e-2)
    image = torch.randint(256, (8, 8, 3), dtype=torch.uint8)
    out = compose([to_tensor(), normalize((0.5,) * 3, (0.5,) * 3)])(image)
    torch.testing.assert_close(out, image.permute(2, 0, 1) / 127.5 - 1)


@pytest.fixture
def in_bfloat16(monkeypatch):
    monkeypatch.setattr(adapt, "cpu_type", lambda: torch.bfloat16)


@pytest.mark.parametrize(("bfloat16", "dtype"), [(1.0, torch.bfloat16), (3.0, torch.float32)])
def test_a_program_computes_in_the_type_that_torch_is_faster_in(bfloat16, dtype, monkeypatch):
    def measure():
        assert os.environ["FASTCIFAR_KERNELS"] == "reference"
        return {torch.float32: 2.0, torch.bfloat16: bfloat16}

    monkeypatch.setattr(adapt, "measure_convolutions", measure)
    monkeypatch.setattr(adapt, "cpu_type", adapt.cpu_type.__wrapped__)  # which keeps nothing
    assert adapt.cpu_type() == dtype
    network = in_half(nn.Linear(2, 2).half())
    assert isinstance(network, adapt.InHalf) == (dtype == torch.bfloat16)
    assert network(torch.ones(1, 2).to(dtype)).dtype == network.weight.dtype == torch.float32


@pytest.mark.usefixtures("in_bfloat16")
def test_weights_of_float32_compute_in_bfloat16_and_a_copy_has_its_own():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).half()
    network = in_half(network)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied[3].weight.zero_()
    images, kinds = torch.randn(6, 3, 4, 4).bfloat16(), []
    network[0].register_forward_hook(lambda layer, inputs, out: kinds.append(out.dtype))
    logits = network(images)
    assert logits.dtype == torch.float32 and kinds == [torch.bfloat16]
    assert torch.equal(logits, logits.bfloat16().float()), "computed in bfloat16"
    assert torch.equal(copied(images), copied[3].bias.bfloat16().float().expand(6, 5))
    logits.sum().backward()
    assert {(p.dtype, p.grad.dtype) for p in network.parameters()} == {(torch.float32, torch.float32)}
    with torch.no_grad():  # an update that bfloat16 would round away counts
        before = network(images)
        for _ in range(64):
            network[3].weight.add_(network[3].weight, alpha=2**-11)
        assert not torch.equal(network(images), before)


@pytest.mark.usefixtures("in_bfloat16")
def test_their_newton_schulz_iterations_are_in_bfloat16():
    module = types.ModuleType("theirs")
    module._ns_all = lambda gradients, *rest: ([each.dtype for each in gradients], *rest)
    half_newton_schulz(module)
    assert module._ns_all([torch.ones(2), torch.ones(3)], "shapes", 0.5) == ([torch.bfloat16] * 2, "shapes", 0.5)


def test_a_shim_that_matches_nothing_is_refused(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("a = 1\n")
    assert read_code(path, [("a = 1", "b = 2"), ("b = 2", "c = 3")]) == "c = 3\n"
    with pytest.raises(UserError, match=r"program.py is not the version these shims are for: it lacks 'd = 4'"):
        read_code(path, [("a = 1", "b = 2"), ("d = 4", "")])


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


def test_a_cell_of_a_notebook_is_found_by_its_text(tmp_path):
    path = tmp_path / "some.ipynb"
    cells = [{"cell_type": kind, "source": ["a = 1\n", text]} for kind, text in (("markdown", "b"), ("code", "b = 2"))]
    path.write_text(json.dumps({"cells": cells}))
    assert notebook_cell(path, "b") == "a = 1\nb = 2"
    with pytest.raises(UserError, match=r"some.ipynb is not the version these shims are for: it lacks 'c = 3'"):
        notebook_cell(path, "c = 3")


@pytest.mark.skipif(not CHECKOUTS, reason="FASTCIFAR_PEERS names no folder of checkouts")
def test_the_ladders_first_network_has_their_losses():
    losses = compare_first_losses(Path(CHECKOUTS or ".") / "cifar10-fast", None, steps=2, images="synthetic")
    assert all(ours == pytest.approx(theirs, rel=1e-5) for theirs, ours in losses)


NETWORKS = {
    "airbench94_muon": ("airbench94_muon", lambda module: module.CifarNet()),
    "airbench95": ("airbench95", lambda module: module.make_net()),
    "airbench96": ("airbench96", lambda module: module.make_net()),
    "airbench96_faster": ("airbench96_faster", lambda module: module.make_net(module.hyp["net"])),
    "cifar10-speedrun": ("cifar10_speedrun", lambda module: module.CifarNet()),
    "fulcrum-e1": ("fulcrum_e1", lambda module: module.Model()),
    "fulcrum-e5": ("fulcrum_e5", lambda module: module.Model()),
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
    program.load(Path(CHECKOUTS) / program.checkout, Harness(dataset, torch.device("cpu"), program.batch_size))
    ours = build_model(get_recipe(str(EQUAL / f"{program.equal}.toml")), 10, dataset.mean, dataset.std)
    assert shapes(make(sys.modules[module])) == shapes(ours)
