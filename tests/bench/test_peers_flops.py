"""Peers' operations are counted on their own networks."""

import pytest

from bench.peers.flops import Training, count_peer
from fastcifar.errors import UserError

NETWORK = """
import torch
from torch import nn

class CifarNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.whiten = nn.Conv2d(3, 4, 2)
        self.whiten.weight.requires_grad = False
        self.head = nn.Linear(4, 10, bias=False)

    def forward(self, x, whiten_bias_grad=True):
        b = self.whiten.bias
        x = nn.functional.conv2d(x, self.whiten.weight, b if whiten_bias_grad else b.detach())
        return self.head(x.amax((2, 3)))
"""


def test_a_training_is_its_steps_its_optimizer_and_its_views(tmp_path):
    (tmp_path / "program.py").write_text(NETWORK)
    training = Training("program.py", batch_size=5000, epochs=1.5, bias_epochs=0.5, filters=((4, 12),), passes=2)
    whitening, head = 31 * 31 * 4 * 12, 40
    steps, bias_steps = 15, 5
    with_bias, without = whitening + 3 * head, whitening + 2 * head  # the head's input gradient is the bias's alone
    macs = 5000 * (bias_steps * with_bias + (steps - bias_steps) * without)
    macs += steps * 3 * (2 * 4**2 * 12 + 4**3)
    assert count_peer(training, tmp_path) == (2 * macs, 2 * 2 * 10_000 * (whitening + head))


@pytest.mark.parametrize("resamples", [False, True])
def test_epochs_on_smaller_images_have_fewer_operations(tmp_path, resamples):
    network = NETWORK
    if resamples:
        resampled = "x = nn.functional.interpolate(x, size=(res, res), mode='bilinear')"
        network = NETWORK.replace("whiten_bias_grad=True):", f"whiten_bias_grad=True, res=32):\n        {resampled}")
    (tmp_path / "program.py").write_text(network)
    training = Training("program.py", 5000, 2.5, 0, (), 1, sizes=(16, 24), resamples=resamples)
    macs = sum(steps * 5000 * ((side - 1) ** 2 * 4 * 12 + 2 * 40) for side, steps in ((16, 10), (24, 15)))
    assert count_peer(training, tmp_path) == (2 * macs, 2 * 10_000 * (31**2 * 4 * 12 + 40))


def test_a_missing_checkout_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is not the checkout these shims are for: program.py is missing"):
        count_peer(Training("program.py", 10, 1, 0, (), 1), tmp_path)
