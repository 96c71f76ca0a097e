"""Fuzz target: .safetensors files of weights."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import save

from fastcifar.errors import Notice, UserError
from fastcifar.training import load_weights
from tests.training.weight_files import Net


def seeds() -> dict[str, bytes]:
    state = dict(Net().state_dict())
    return {
        "float32": save(state),
        "float64": save({name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point()}),
        "a prefix": save({f"module.{name}": tensor for name, tensor in state.items()}, {"format": "pt"}),
    }


def check(data: bytes, folder: Path) -> bool:
    """Load a file into a network. What is accepted has the network's names and shapes, and finite values: which ones
    cannot be known, as the format has no checksum."""
    return load(data, folder) is not None


def load(data: bytes, folder: Path) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a network into which a file was loaded, None where it is refused."""
    (folder / "weights").write_bytes(data)
    net = Net(seed=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", Notice)
        try:
            load_weights(net, folder / "weights")
        except UserError as error:
            assert str(error).isprintable() and "; allowed: " in str(error), str(error)
            assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
            return None
    state = net.state_dict()
    assert all(tensor.isfinite().all() and tensor.shape == before[name].shape for name, tensor in state.items())
    return state
