"""The speedrun network where its first convolution pools its result: as on a GPU, in Triton's interpreter."""

import copy
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastcifar.costs.products  # noqa: F401  (gives torch's counter the operators)
from bench.recorded_cases import record_cases
from fastcifar.models import convolution
from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.recipes.networks.speedrun import SpeedrunConfig

FIRST = {"conv_pool", "conv_pool_backward", "conv_pool_inference"}


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("kernels are not interpreted")
    monkeypatch.setenv("FASTCIFAR_KERNELS", "triton")


def make(**changes):
    """Return a network in half precision, and images."""
    torch.manual_seed(0)
    network = SpeedrunNet(SpeedrunConfig(**{"widths": (64, 64, 64), "whitening_bias_epochs": 0.0, **changes})).half()
    for module in network.modules():
        if isinstance(module, GhostBatchNorm):
            module.float()
    images = torch.randn(4, 3, 16, 16).half().contiguous(memory_format=torch.channels_last)
    return network, images


def results(network, images):
    """Return logits and statistics of a training step, the first filters' gradient, and logits of an evaluation."""
    network = copy.deepcopy(network)
    out = network.train()(images)
    out.float().square().sum().backward()
    norm = network.blocks[0].norms[0]
    found = [out.detach(), norm.running_mean, norm.running_var, network.blocks[0].convs[0].weight.grad]
    with torch.no_grad():
        return [*found, network.eval()(images)]


@pytest.mark.parametrize("changes", [{}, {"whitening_size": 1}, {"depth": 1}], ids=str)
def test_it_is_the_network_without_and_its_operations_are_as_many(monkeypatch, changes):
    network, images = make(**changes)
    names, flops, found = [], [], []
    for fuse in (True, False):
        if not fuse:
            monkeypatch.setattr(convolution, "pools_at_once", lambda x, weight: False)
        with FlopCounterMode(display=False) as counter:
            cases = record_cases(lambda: found.append(results(network, images)))
        names.append({case.operation for case in cases})
        flops.append(counter.get_total_flops())
    pools = changes.get("whitening_size") != 1  # 6 channels are no multiple of 8
    assert (names[0] & FIRST, names[1] & FIRST) == (FIRST if pools else set(), set())
    assert flops[0] == flops[1]
    for one, other in zip(*found, strict=True):
        assert (one.float() - other.float()).norm() <= 5e-3 * other.float().norm()


def taken(network, images):
    """Return the operators of the fused first layer in a training step."""
    return {case.operation for case in record_cases(lambda: network.train()(images).sum().backward())} & FIRST


def test_it_pools_nothing_where_that_would_lose_a_gradient_or_another_layer(monkeypatch):
    network, images = make()
    assert taken(network, images) == FIRST - {"conv_pool_inference"}
    assert taken(network.double(), images.double()) == set()
    assert taken(make(whitening_bias_epochs=1.0)[0], images) == set()
    network, images = make()
    network.whitening.weight.requires_grad_()
    assert taken(network, images) == set()
    assert network.whitening.weight.grad.any()

    class Scaled(Conv3x3):
        def forward(self, x):
            return super().forward(x) * 2

    network, images = make()
    network.blocks[0].convs[0] = Scaled(24, 64).half().to(memory_format=torch.channels_last)
    assert taken(network, images) == set()
    network, images = make()
    network.blocks[0].norms[0].pool = False
    assert taken(network.blocks[0], torch.randn(2, 24, 6, 6).half()) == set()
    network, images = make()
    network.blocks[0].convs[0].stride = (2, 2)
    assert taken(network.blocks[0], torch.randn(2, 24, 8, 8).half()) == set()
    network, images = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert not network.blocks[0].convs[0].pools(torch.zeros(2, 24, 8, 8).half())


def test_hooks_see_the_pooled_convolution():
    network, images = make()
    seen = []
    network.blocks[0].convs[0].register_forward_hook(lambda module, inputs, out: seen.append(out.shape[2:]))
    network.blocks[0].norms[0].register_forward_hook(lambda module, inputs, out: seen.append(out.shape[2:]))
    network(images)
    assert seen == [(7, 7)] * 2
