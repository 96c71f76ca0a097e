"""Which layers use which tensors of parameters, found by running networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastcifar
from fastcifar.costs.sharing import ITSELF, of_tensors, part_of, trace
from fastcifar.models import build_model
from fastcifar.models.interpolation import InterpolationNet
from fastcifar.models.network import CENTERED
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.networks.davidnet import DavidNetInterpolationConfig
from tests.models.networks import NETWORKS, network
from tests.small import NARROW

SMALL = (2, 3, 8, 8)


class Sum(nn.Module):
    """The sum of what networks say, called in turn."""

    def __init__(self, *networks, times=1):
        super().__init__()
        self.networks, self.times = nn.ModuleList(networks), times

    def forward(self, x):
        return sum(each(x) for each in self.networks for _ in range(self.times))


def users(graph):
    return {tuple(tensor.names): [layer.name for layer in tensor.layers] for tensor in graph.tensors}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_of_a_plain_network_has_tensors_of_its_own(name):
    module = network(name)
    graph = trace(module)
    assert not graph.shared
    assert graph.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert [tensor.names for tensor in graph.tensors] == [[name] for name, _ in module.named_parameters()]
    for (name,), layers in users(graph).items():
        owner = name.rpartition(".")[0]
        freezes = owner and getattr(module.get_submodule(owner), "freeze_scale", False)
        if owner == "whitening":
            assert len(layers) == 1  # where its filters are composed with others, that is
        else:
            assert layers == ([] if freezes and name.endswith("weight") else [owner]), name
    head = module.get_submodule(module.head)
    last = next(layer for layer in graph.layers if layer.name == module.head)
    assert last.output == (10,) and last.parameters == sum(p.numel() for p in head.parameters())


def test_members_that_are_one_network_share_all_of_it():
    one = fastcifar.DavidNet(NARROW)
    graph = trace(Sum(one, one, one), SMALL)
    count = sum(parameter.numel() for parameter in one.parameters())
    assert graph.shared == graph.tensors and graph.parameters == count
    used = sum(p.numel() for n, p in one.named_parameters() if not n.endswith("norm.weight"))
    names = [f"networks.{place}" for place in range(3)]
    assert graph.parts() == {name: (0, used, [n for n in names if n != name]) for name in names}
    assert users(graph)[tuple(f"{name}.classifier.weight" for name in names)] == [
        f"{name}.classifier" for name in names
    ]
    assert all(layer.calls == 1 for layer in graph.layers)


def test_a_network_that_is_called_several_times_says_so():
    graph = trace(Sum(fastcifar.DavidNet(NARROW), times=3), SMALL)
    assert {layer.calls for layer in graph.layers} == {3}
    assert {tensor for tensor in graph.tensors if tensor.layers} == set(graph.shared)


def test_members_of_their_own_share_nothing():
    graph = trace(Sum(fastcifar.DavidNet(NARROW), fastcifar.DavidNet(NARROW)), SMALL)
    assert not graph.shared and len(graph.parts()) == 2
    assert all(common == 0 and not others for _, common, others in graph.parts().values())


@pytest.mark.parametrize("joint", ["mean", "shared"])
def test_an_ensemble_trained_at_once(joint):
    recipe = change(Recipe(network=NARROW, batch_size=32), {"ensemble.members": 2, "ensemble.joint": joint})
    graph = trace(build_model(recipe, 10, CENTERED, CENTERED), SMALL)
    assert bool(graph.shared) == (joint == "shared")
    assert graph.parts().keys() == {"networks.0", "networks.1"}


@given(st.data())
@settings(max_examples=30)
def test_random_ties_are_found_and_no_other(data):
    """Linear layers of which each takes the weight of some earlier one or its own."""
    count = data.draw(st.integers(1, 6))
    module = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(count)))
    owners = [data.draw(st.integers(0, place)) for place in range(count)]
    for place, owner in enumerate(owners):
        module[place].weight = module[owner].weight
    groups = {}
    for place in range(count):
        groups.setdefault(id(module[place].weight), []).append(str(place))
    graph = trace(module, (2, 3))
    assert [[layer.name for layer in tensor.layers] for tensor in graph.tensors] == list(groups.values())
    assert [tensor.names for tensor in graph.tensors] == [[f"{n}.weight" for n in group] for group in groups.values()]
    assert graph.parameters == 9 * len(groups)
    assert [tensor.is_shared for tensor in graph.tensors] == [len(group) > 1 for group in groups.values()]


def test_views_of_one_memory_are_one_tensor_only_where_they_overlap():
    class Views(nn.Module):
        def __init__(self, start):
            super().__init__()
            memory = torch.randn(12)
            self.first, self.second = nn.Parameter(memory[:6]), nn.Parameter(memory[start : start + 6])

        def forward(self, x):
            return x * self.first + x * self.second

    assert len(trace(Views(6), (2, 6)).tensors) == 2
    (tensor,) = trace(Views(5), (2, 6)).tensors
    assert tensor.names == ["first", "second"] and [layer.name for layer in tensor.layers] == [ITSELF]


def test_an_interpolations_blocks_are_used_twice_whatever_its_loss_and_form():
    def traced(loss, form):
        config = DavidNetInterpolationConfig(widths=(4, 8, 12, 16), ghost_batch=4, loss=loss, form=form)
        graph = trace(InterpolationNet(config), SMALL)
        return graph, users(graph), graph.parts(), [(layer.name, layer.output, layer.calls) for layer in graph.layers]

    graph, *found = traced("wide", "summed")
    for loss, form in (("ensemble", "joined"), ("coin", "zeroed")):
        assert traced(loss, form)[1:] == tuple(found)
    assert len(graph.shared) == 28 and all(tensor.layers for tensor in graph.tensors if "conv" in tensor.names[0])
    for tensor in graph.shared:
        (name,) = tensor.names
        _, number, layer = name.removesuffix(".weight").split(".", 2)
        assert [each.name for each in tensor.layers] == [f"subnetworks.{number}.{layer}", f"wide.{layer}"]
    parts = graph.parts()
    assert sorted(parts["wide"][2]) == [f"subnetworks.{number}" for number in range(4)]
    assert all(parts[f"subnetworks.{number}"][2] == ["wide"] for number in range(4))


def test_running_a_network_leaves_it_as_it_was():
    module = fastcifar.DavidNet(NARROW).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trace(module, SMALL)
    assert module.training and all(each.training for each in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(RuntimeError):
        trace(module, (2, 4, 32, 32))  # channels that it does not take
    assert not nn.modules.module._global_forward_pre_hooks and not nn.modules.module._global_forward_hooks


def test_equal_values_in_a_file_count_as_one_unless_they_are_all_equal():
    weight = torch.randn(3, 2)
    tensors = {"a.weight": weight, "a.bias": torch.zeros(3), "b.weight": weight.clone(), "b.bias": torch.zeros(3)}
    tensors["c.weight"] = weight.double()
    graph = of_tensors(tensors)
    assert [layer.name for layer in graph.layers] == ["a", "b", "c"]
    assert [tensor.names for tensor in graph.shared] == [["a.weight", "b.weight"]]
    assert graph.parameters == 6 + 3 + 3 + 6 and graph.word == "equal"


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("wide.stem.conv", "wide"),
        ("subnetworks.3.fc", "subnetworks.3"),
        ("layers.0.block.conv", "layers.0"),
        ("fc", "fc"),
    ],
)
def test_a_layer_lies_in_a_part(layer, part):
    assert part_of(layer) == part
