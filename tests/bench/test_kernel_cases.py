"""The cases of the benchmarks move what the kernels' own accounts say, and a wrong kernel is seen."""

import dataclasses

import pytest
import torch

from bench import kernel_cases
from bench.kernel_cases import FILTERS, NETWORKS, WEIGHTS

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("network", "place", "megabytes"),
    [
        ("davidnet", "stem", 201 + 336),
        ("davidnet", "layer1", 252 + 285),
        ("davidnet", "layer1-residual", 235 - 101 + 336 / 2),  # less the one without a residual
        ("davidnet", "layer3", 63 + 71),
        ("speedrun", "block1", 448 + 505),
        ("speedrun", "block2-second", 151 + 251),
    ],
)
def test_norm_act_pool_moves_what_its_roofline_says(network, place, megabytes):
    known = NETWORKS[network]
    case = kernel_cases.norm_act_pool(known.layers[place], known.batch, known.groups, "celu", CPU, torch.float16)
    assert case.bytes_moved == pytest.approx(megabytes * 1e6, rel=0.01)


def test_the_others_move_what_their_rooflines_say():
    assert kernel_cases.augment(512, 512, CPU, torch.float16).bytes_moved == pytest.approx(4.7e6, rel=0.01)
    assert kernel_cases.flat_sgd(WEIGHTS, CPU, torch.float16).bytes_moved == pytest.approx(184e6, rel=0.01)
    assert kernel_cases.flat_muon(FILTERS, CPU, torch.float16).bytes_moved == pytest.approx(67e6, rel=0.01)


def test_a_wrong_kernel_is_seen():
    case = kernel_cases.cross_entropy(64, CPU, torch.float32)
    assert max(case.relative_errors()) < 1e-5

    def kernel(logits, labels, smoothing):
        loss, correct = case.kernel(logits, labels, smoothing)
        return loss * 1.01, correct

    loss, correct, gradient = dataclasses.replace(case, kernel=kernel).relative_errors()
    assert loss == pytest.approx(0.01, rel=0.01)
    assert gradient == pytest.approx(0.01, rel=0.01)
    assert correct == 0


@pytest.mark.parametrize(
    "case",
    [
        kernel_cases.flat_sgd(1000, CPU, torch.float32),
        kernel_cases.flat_muon([(4, 8), (4, 16)], CPU, torch.float32),
    ],
    ids=lambda case: case.operation,
)
def test_what_is_changed_in_place_is_compared(case):
    assert max(case.relative_errors()) < 1e-5
    idle = dataclasses.replace(case, kernel=lambda *tensors, **settings: None)
    assert all(error > 1e-3 for error in idle.relative_errors())
