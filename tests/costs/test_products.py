"""The counter against numbers worked out by hand and against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.costs.products import ELSEWHERE, Product, count_module, count_products
from fastcifar.models import build_model
from fastcifar.recipes import NETWORKS, Recipe

CENTERED = (127.5, 127.5, 127.5)


class Small(nn.Module):
    """A frozen convolution, a trained one, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 3, bias=False).requires_grad_(False)
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.conv(self.frozen(x)).relu().mean((2, 3)))


def test_a_small_network_is_counted_as_by_hand():
    count = count_module(Small(), (5, 3, 8, 8))
    frozen, conv, head = count.layers
    assert [layer.name for layer in count.layers] == ["frozen", "conv", "head"]
    assert (frozen.input_shape, frozen.output_shape, frozen.parameters) == ((3, 8, 8), (4, 6, 6), 108)
    assert (frozen.forward, frozen.input_gradient, frozen.weight_gradient) == (5 * 36 * 4 * 27, 0, 0)
    macs = 5 * 9 * 8 * 36
    assert (conv.forward, conv.input_gradient, conv.weight_gradient) == (macs, 0, macs)
    assert (head.input_shape, head.output_shape, head.parameters) == ((8,), (10,), 90)
    assert (head.forward, head.input_gradient, head.weight_gradient) == (400, 400, 400)
    assert count.macs == sum(layer.total for layer in count.layers)
    assert (count.parameters, count.trained_parameters) == (108 + 296 + 90, 296 + 90)


def test_a_trained_bias_below_makes_an_input_gradient_and_no_weight_gradient():
    network = Small()
    network.frozen.bias = nn.Parameter(torch.zeros(4))
    frozen, conv, _ = count_module(network, (5, 3, 8, 8)).layers
    assert (frozen.input_gradient, frozen.weight_gradient) == (0, 0)
    assert conv.input_gradient == conv.forward


def test_an_evaluation_has_a_forward_pass_alone():
    count = count_module(Small(), (5, 3, 8, 8), training=False)
    assert count.macs == sum(layer.forward for layer in count.layers) == 5 * (36 * 4 * 27 + 9 * 8 * 36 + 80)
    assert count.activation_bytes == 0


def test_bytes_of_a_linear_layer_and_its_activation():
    network = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU())
    count = count_module(network, (2, 6))
    x, w, y = 2 * 6, 6 * 4, 2 * 4
    assert count.products == [Product(2 * 6 * 4, 4 * (x + w + y)), Product(2 * 6 * 4, 4 * (x + w + y))]
    assert count.activation_bytes == 4 * (x + y)  # what the product and the ReLU keep
    # relu: y read, y written. sum: y read, 1 written. Its gradient: one value (repeated), seen twice, y written.
    assert 4 * (4 * y) <= count.moved_bytes <= 4 * (8 * y)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_counted_as_by_torch(network):
    recipe = Recipe(network=NETWORKS[network]())
    side = recipe.network.side_for(32)
    with torch.device("meta"):
        model = build_model(recipe, 10, CENTERED, CENTERED, sides=(side,))
        count = count_module(model, (64, 3, side, side))
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(64, 3, side, side)).sum().backward()
    assert 2 * count.macs == counter.get_total_flops()
    assert ELSEWHERE not in {layer.name for layer in count.layers}
    assert sum(layer.total for layer in count.layers) == count.macs


def test_gradients_of_a_custom_function_are_counted_elsewhere():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return x @ weight

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return None, x.T @ grad + x.T @ grad

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 4))

        def forward(self, x):
            return Twice.apply(x, self.weight)

    count = count_module(Custom(), (2, 6))
    assert [layer.name for layer in count.layers] == ["", ELSEWHERE]
    assert [layer.total for layer in count.layers] == [48, 96]
    assert count.macs == 144


def test_counting_changes_neither_values_nor_gradients_nor_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_module(network, (2, 3, 8, 8))
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network[0]._forward_hooks and not network[0]._forward_pre_hooks


def test_a_module_with_another_calling_convention_is_counted_through_call():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, inputs):
            return {"logits": self.linear(inputs["x"])}

    count = count_module(Pair(), (2, 6), call=lambda module, x: module({"x": x})["logits"])
    assert [(layer.name, layer.forward) for layer in count.layers] == [("linear", 48)]


def test_a_weight_used_without_its_module_is_named_after_its_parameter():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return F.conv2d(x, self.inner.weight)

    (layer,) = count_module(Direct(), (2, 3, 8, 8)).layers
    assert (layer.name, layer.forward) == ("inner", 2 * 36 * 4 * 27)


def test_transposed_convolutions_and_batched_products_are_counted():
    count = count_module(nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False), (5, 3, 8, 8))
    assert count.layers[0].forward == count.layers[0].weight_gradient == 5 * 64 * 3 * 4 * 4
    x, y = torch.empty(7, 2, 3, device="meta"), torch.empty(7, 3, 5, device="meta")
    assert count_products(lambda: x @ y).macs == 7 * 2 * 3 * 5
    z = torch.empty(7, 2, 5, device="meta")
    assert count_products(lambda: torch.baddbmm(z, x, y)).macs == 7 * 2 * 3 * 5
    matrix, vector = torch.empty(7, 3, device="meta"), torch.empty(3, device="meta")
    assert count_products(lambda: matrix @ vector).macs == 7 * 3


def test_views_move_nothing_and_changes_in_place_are_written():
    x, y = (torch.empty(100, device="meta") for _ in range(2))
    assert count_products(lambda: x.view(10, 10).t()[1:]).moved_bytes == 0
    assert count_products(lambda: torch.empty(100, device="meta")).moved_bytes == 0
    assert count_products(lambda: x.add_(y)).moved_bytes == 3 * 400
    assert count_products(lambda: x.copy_(y)).moved_bytes == 2 * 400
    assert count_products(lambda: x.zero_()).moved_bytes == 400
    assert count_products(lambda: x + y).moved_bytes == 3 * 400


def test_the_least_time_is_bound_by_whichever_is_slower():
    count = count_products(lambda: torch.empty(10, 20, device="meta") @ torch.empty(20, 30, device="meta"))
    size = 4 * (200 + 600 + 300)
    assert count.seconds(1.0, 1e30) == pytest.approx(2 * 6000)
    assert count.seconds(1e30, 1.0) == pytest.approx(size)


def test_a_network_too_large_for_any_memory_is_counted():
    network = nn.Sequential(nn.Conv2d(3, 512, 3, device="meta"), nn.Conv2d(512, 512, 3, device="meta"))
    count = count_module(network, (100_000, 3, 224, 224))
    assert count.layers[1].forward == 100_000 * 220**2 * 512**2 * 9
    assert count.activation_bytes > 1e12
