"""Optimizers that are used alone, torch.optim.SGD as the control of ours, and training without a loss."""

from functools import partial

import torch
from torch import nn

from fastcifar.optim import LARS, SGD, Lookahead
from fastcifar.optim.muon import Muon

SHAPES = ((4, 6), (3, 2, 3, 3))


def lookahead(params, inner=torch.optim.SGD, every=2, **settings):
    return Lookahead(inner(params, **settings), every=every)


MAKERS = {
    "torch": partial(torch.optim.SGD, momentum=0.9),
    "SGD": SGD,
    "LARS": LARS,
    "Muon": Muon,
    "NorMuon": partial(Muon, row_momentum=0.9),
    "Lookahead": partial(lookahead, momentum=0.9),
    "Lookahead of Adam": partial(lookahead, inner=torch.optim.Adam),
}
"""Each takes parameters or param groups and settings."""


def weights(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def fill(parameters, step):
    """Set gradients that depend on `step` alone, in whatever layout a parameter has."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = torch.empty_like(parameter).copy_(noise)


def train(optimizer, steps=range(4)):
    for step in steps:
        fill([parameter for group in optimizer.param_groups for parameter in group["params"]], step)
        optimizer.step()


def parameters_of(optimizer):
    return [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def flat(state):
    """A `state_dict` as a list of places and values, tensors as copies."""
    if isinstance(state, dict):
        return [(f"{key}.{place}", value) for key, inner in state.items() for place, value in flat(inner)]
    if isinstance(state, list):
        return [(f"{key}.{place}", value) for key, inner in enumerate(state) for place, value in flat(inner)]
    return [("", state.tolist() if isinstance(state, torch.Tensor) else state)]


def after(optimizer, steps=range(4)):
    train(optimizer, steps)
    return parameters_of(optimizer)
