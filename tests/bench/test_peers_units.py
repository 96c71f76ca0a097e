"""Continual backprop and ReDo beside the programs of Dohare et al. (shibhansh/loss-of-plasticity), where there is a
checkout."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.peers.adapt import load_module
from fastcifar.plasticity.units import dormant, least_useful, magnitudes, replacements, utilities

CHECKOUTS = os.getenv("FASTCIFAR_PEERS")
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="FASTCIFAR_PEERS names no folder of checkouts")
RATE, MATURITY, DECAY, STEPS = 0.07, 6, 0.9, 60


@pytest.fixture
def theirs(monkeypatch):
    """A function that loads one of their files, the parts of it that are not compared stood in for."""
    bound = load_module(Path(CHECKOUTS, "loss-of-plasticity/lop/algos/res_gnt.py"), {}, "res_gnt").get_layer_bound
    for name, given in (
        ("lop", {}),
        ("lop.utils", {}),
        ("lop.utils.AdamGnT", {"AdamGnT": object}),
        ("lop.utils.miscellaneous", {"get_layer_bound": bound}),
    ):
        module = types.ModuleType(name)
        vars(module).update(given)
        monkeypatch.setitem(sys.modules, name, module)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield lambda name: load_module(Path(CHECKOUTS, "loss-of-plasticity/lop/algos", f"{name}.py"), {}, name)
    torch.set_default_dtype(before)
    for name in ("res_gnt", "convGnT", "gntRedo"):
        sys.modules.pop(name, None)


def ours(layers, step, averages, born, values, due):
    """A step of continual backprop by the formulas; return the units of each layer that it replaces."""
    found = []
    for number, (average, last) in enumerate(zip(averages, born, strict=True)):
        average.lerp_(magnitudes(values[number]), 1 - DECAY)
        ages = step - last
        useful = utilities(average, ages, DECAY, layers[number + 1].weight)
        chosen = least_useful(useful, ages, MATURITY, due[number][step - 1])
        average.masked_fill_(chosen, 0)
        last.masked_fill_(chosen, step)
        found.append((useful, set(chosen.nonzero().flatten().tolist())))
    return found


@torch.no_grad()
def test_the_convolutional_network_has_our_utilities_and_choices(theirs):
    """Fixed weights and, behind the flattened layer, equal pixels: their utility is an average of products by step and
    pixel, and ours the product of the averages."""
    torch.manual_seed(0)
    net = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 2)]
    gnt = theirs("convGnT").ConvGnT(
        net, "relu", None, DECAY, RATE, num_last_filter_outputs=4, maturity_threshold=MATURITY
    )
    sizes = (6, 5, 7)
    averages, born = [torch.zeros(size) for size in sizes], [torch.zeros(size, dtype=torch.int64) for size in sizes]
    due, count = [list(replacements(size, RATE, MATURITY, STEPS)) for size in sizes], 0
    for step in range(1, STEPS + 1):
        values = [torch.randn(4, 6, 3, 3).relu(), torch.randn(4, 5, 1, 1).relu().expand(4, 5, 2, 2)]
        values.append(torch.randn(4, 7).relu())
        chosen, _, numbers = gnt.test_features([values[0], values[1].flatten(1), values[2]])
        found = ours(net[::2], step, averages, born, values, due)
        for number, (useful, units) in enumerate(found):
            assert units == set(chosen[number].tolist()) and len(units) == numbers[number]
            torch.testing.assert_close(useful, gnt.bias_corrected_util[number], rtol=1e-12, atol=1e-12)
            gnt.ages[number][chosen[number]] = 0  # what follows in their gen_new_features
            count += len(units)
    assert count > 20


@torch.no_grad()
def test_the_residual_network_chooses_as_we_do(theirs):
    """Their sums of magnitudes do not decay: the same order as ours where the activations stay as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(5, 2)),
    )
    gnt = theirs("res_gnt").ResGnT(net, "relu", DECAY, RATE, "contribution", MATURITY)
    sizes = (6, 5)
    averages, born = [torch.zeros(size) for size in sizes], [torch.zeros(size, dtype=torch.int64) for size in sizes]
    due, count = [list(replacements(size, RATE, MATURITY, STEPS)) for size in sizes], 0
    values = [torch.randn(4, 6, 3, 3).relu(), torch.randn(4, 5, 2, 2).relu()]
    for step in range(1, STEPS + 1):
        chosen, _ = gnt.test_features(values)
        for number, (_, units) in enumerate(ours(gnt.weight_layers, step, averages, born, values, due)):
            assert units == set(chosen[number].tolist())
            gnt.ages[number][chosen[number]] = 0
            count += len(units)
    assert count > 20


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.9])
def test_dormant_units_are_theirs(theirs, threshold):
    torch.manual_seed(0)
    net = [nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2)]
    redo = theirs("gntRedo").GnTredo(net, "relu", threshold, reset_period=1)
    values = torch.randn(50, 2, 9).relu() * torch.linspace(0, 1, 9)
    chosen, _ = redo.units_to_replace(values.abs())
    for number in range(2):
        found = dormant(magnitudes(values[:, number]), threshold)
        assert found.nonzero().flatten().tolist() == chosen[number].tolist() and found[0]
