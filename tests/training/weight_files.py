"""A small network, files of its weights, and how they are loaded."""

import warnings

import pytest
import torch
from torch import nn

from fastcifar.errors import Notice, UserError
from fastcifar.training import load_weights


class Net(nn.Sequential):
    """Weights, biases and running statistics, with torch's counts of batches."""

    def __init__(self, seed=0):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        torch.manual_seed(seed)
        for tensor in self.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(seed))


def older(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def loaded(path, net=None):
    """Return the tensors of a network into which the weights in `path` were loaded, and the notices."""
    net = net or Net(seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_weights(net, path)
    assert all(warning.category is Notice for warning in caught)
    return net.state_dict(), [str(warning.message) for warning in caught]


def refused(path, net=None):
    """Return the line with which a file is refused, which leaves the network as it is."""
    net = net or Net(seed=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(net, path)
    assert same(net.state_dict(), before) and str(caught.value).isprintable()
    return str(caught.value)
