"""The hidden units that each network names: one layer makes them, one other alone reads them."""

import contextlib
import dataclasses

import pytest
import torch

import fastcifar
from fastcifar.models.network import Network
from fastcifar.models.units import Units
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from tests.small import ALEXNET, NARROW

DAVIDNET, RESNET = dataclasses.replace(NARROW, ghost_batch=0), fastcifar.ResNet18Config(width=3)
WHOLE = SpeedrunConfig(widths=(4, 4, 8), whitening_bias_epochs=1)
MAKE = {
    "DavidNet": lambda: fastcifar.DavidNet(DAVIDNET),
    "DavidNet, another": lambda: fastcifar.DavidNet(
        dataclasses.replace(
            DAVIDNET, residual=(2,), extra=(2, 3), whitening=False, pool="avg", pool_after="activation", norm=False
        )
    ),
    "DavidNet, layer norm": lambda: fastcifar.DavidNet(dataclasses.replace(DAVIDNET, norm_kind="layer")),
    "MLP": lambda: fastcifar.MLP(fastcifar.MLPConfig(hidden=(8, 5))),
    "MLP, layer norm": lambda: fastcifar.MLP(fastcifar.MLPConfig(hidden=(8, 5), norm="layer")),
    "ResNet18": lambda: fastcifar.ResNet18(RESNET),
    "ResNet18, leaky": lambda: fastcifar.ResNet18(dataclasses.replace(RESNET, activation="leaky_relu", slope=0.3)),
    "ResNet18, layer norm": lambda: fastcifar.ResNet18(dataclasses.replace(RESNET, norm="layer")),
    "AlexNet": lambda: fastcifar.AlexNet(ALEXNET),
    "LeNet": lambda: fastcifar.LeNet(
        fastcifar.LeNetConfig(channels=(4, 6), hidden=(8, 9), activation="leaky_relu", slope=0.3)
    ),
    "MyrtleNet": lambda: fastcifar.MyrtleNet(fastcifar.MyrtleConfig(widths=(4, 4, 8, 8))),
    "SpeedrunNet": lambda: fastcifar.SpeedrunNet(WHOLE),
    "SpeedrunNet, residual": lambda: fastcifar.SpeedrunNet(dataclasses.replace(WHOLE, depth=4, residual=True)),
    "WideResNet": lambda: fastcifar.WideResNet(fastcifar.WideResNetConfig(depth=10, widen=1)),
}
HOW_MANY = {
    "DavidNet": 4,  # stem, one in each residual branch, the second layer
    "DavidNet, another": 6,
    "DavidNet, layer norm": 4,
    "MLP": 2,
    "MLP, layer norm": 2,
    "ResNet18": 8,
    "ResNet18, leaky": 8,
    "ResNet18, layer norm": 8,
    "AlexNet": 7,
    "LeNet": 4,
    "MyrtleNet": 8,
    "SpeedrunNet": 6,
    "SpeedrunNet, residual": 6,
    "WideResNet": 3,
}


def tensors_of(network: Network, units) -> list[torch.Tensor]:
    """What the maker and the norm have, an entry or a row for each unit."""
    modules = [network.get_submodule(name) for name in (units.maker, units.norm) if name]
    return [each for module in modules for each in (*module.parameters(), *module.buffers())]


def output_of(network: Network, name: str, x: torch.Tensor) -> torch.Tensor:
    seen = []
    hook = network.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    network(x)
    hook.remove()
    (output,) = seen
    return output


@contextlib.contextmanager
def replaced(network: Network, units: Units, place: int):
    """Put 3 in the place of the activations of a unit."""
    index = torch.tensor([place])
    module = network.get_submodule(units.seen)
    hook = module.register_forward_hook(lambda _, __, output: output.index_fill(1, index, 3.0))
    yield
    hook.remove()


@pytest.mark.parametrize("name", MAKE)
@torch.no_grad()
def test_a_unit_that_is_not_read_changes_nothing_and_one_that_is_read_does(name):
    torch.manual_seed(0)
    network = MAKE[name]().eval()
    side = 64 if name == "AlexNet" else 32
    x = torch.randn(3, 3, side, side).contiguous(memory_format=torch.channels_last)
    every = network.units()
    assert len(every) == HOW_MANY[name] == len({units.maker for units in every})
    for units in every:
        maker, reader = network.get_submodule(units.maker), network.get_submodule(units.reader)
        state, count = {key: tensor.clone() for key, tensor in network.state_dict().items()}, len(maker.weight)
        place = int(torch.randint(count, ()))
        seen = output_of(network, units.seen, x)
        assert units.values(seen).shape == seen.shape and seen.shape[1] == count

        shared = "layer norm" in name and units.norm  # whose mean and variance a unit moves
        columns = reader.weight.view(len(reader.weight), count, -1)
        columns[:, place].normal_()
        before = network(x)
        for tensor in tensors_of(network, units):
            tensor[place].mul_(0.1).add_(1.0)
        assert not torch.equal(network(x), before), "it is read"
        columns[:, place] = 0
        without = network(x)
        if shared:
            with replaced(network, units, place):
                found = network(x)
        else:
            for tensor in tensors_of(network, units):
                tensor[place].uniform_(0.1, 2)
            found = network(x)
        torch.testing.assert_close(found, without, rtol=1e-5, atol=1e-6)
        network.load_state_dict(state)


def test_others_have_none_that_are_known():
    narrow = fastcifar.MyrtleNet(fastcifar.MyrtleConfig(widths=(4, 4, 8, 8), blocks="shortcut"))
    assert len(narrow.units()) == 0
    assert len(fastcifar.MLP(fastcifar.MLPConfig(hidden=())).units()) == 0
