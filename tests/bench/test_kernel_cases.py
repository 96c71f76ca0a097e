"""The cases of the benchmarks move what the kernels' own accounts say."""

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
    assert kernel_cases.whiten(512, CPU, torch.float16).bytes_moved == pytest.approx(26.7e6, rel=0.01)
    assert kernel_cases.flat_sgd(WEIGHTS, CPU, torch.float16).bytes_moved == pytest.approx(184e6, rel=0.01)
    assert kernel_cases.flat_muon(FILTERS, CPU, torch.float16).bytes_moved == pytest.approx(67e6, rel=0.01)
