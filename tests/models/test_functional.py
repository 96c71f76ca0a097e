"""Whole networks as functions of their tensors: under torch.func, for no images, and second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vjp, vmap

import fastcifar
from fastcifar.kernels import cross_entropy
from tests.models.networks import NETWORKS, images, network

each_network = pytest.mark.parametrize("name", NETWORKS)
LABELS = torch.arange(8)


def parts(net):
    """Parameters and buffers by name, apart from those of `net`."""
    return (
        {name: tensor.detach().clone() for name, tensor in named}
        for named in (net.named_parameters(), net.named_buffers())
    )


def assert_close(found, wanted):
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= 1e-6 * tensor.norm(), name


@each_network
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_gradient_of_a_functional_call_is_that_of_backward(name, mode):
    net, x = network(name).double().train(mode == "train").requires_grad_(), images(8).double()
    parameters, buffers = parts(net)

    def loss(parameters, buffers):
        return cross_entropy(functional_call(net, (parameters, buffers), (x,)), LABELS)[0]

    found = grad(loss)(parameters, buffers)
    loss(dict(net.named_parameters()), dict(net.named_buffers())).backward()
    assert_close(found, {name: parameter.grad for name, parameter in net.named_parameters()})
    assert_close(buffers, dict(net.named_buffers()))  # running statistics have moved alike


@each_network
def test_gradients_of_each_image_are_those_of_the_image_alone(name):
    net, x = network(name).double().eval(), images(8).double()
    parameters, buffers = parts(net)

    def loss(parameters, image, label):
        logits = functional_call(net, (parameters, buffers), (image[None],))
        return cross_entropy(logits, label[None], 0.1, 0.5)[0]

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, LABELS)
    for place in (0, 7):
        alone = grad(loss)(parameters, x[place], LABELS[place])
        assert_close({name: each[place] for name, each in found.items()}, alone)


@each_network
def test_derivatives_forwards_are_those_backwards(name):
    net, x, tangent = network(name).double().eval(), images(2).double(), images(2).double().flip(0)
    logits, forwards = jvp(net, (x,), (tangent,))
    _, backwards = vjp(net, x)
    upstream = torch.randn_like(logits)
    torch.testing.assert_close((upstream * forwards).sum(), (backwards(upstream)[0] * tangent).sum())
    with forward_ad.dual_level():
        dual = net(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, forwards)


@each_network
def test_a_penalty_on_gradients_has_the_gradient_of_torchs_double_backward(name):
    """In evaluation mode: norms in training mode have no second derivative and say so."""
    net, x = network(name).double().eval(), images(3).double().requires_grad_()
    results = []
    for loss in (
        lambda out: cross_entropy(out, LABELS[:3])[0],
        lambda out: F.cross_entropy(out, LABELS[:3], reduction="sum"),
    ):
        (first,) = torch.autograd.grad(loss(net(x)), x, create_graph=True)
        weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
        results.append(torch.autograd.grad(first.square().sum(), weights, allow_unused=True))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected)


@each_network
@pytest.mark.parametrize("gradients", [False, True])
def test_no_images_have_no_logits(name, gradients):
    net = network(name).eval()
    with torch.set_grad_enabled(gradients):
        assert net(images(0)).shape == (0, 10)


class PlainBlocks(nn.Sequential):
    """Blocks without batch norm, with each of the layers that have a bias."""

    def __init__(self) -> None:
        super().__init__(
            fastcifar.PatchWhitening(bias=True),
            fastcifar.ConvResBlock(27, 4, norm=False, activation="gelu"),
            fastcifar.ConvBN(4, 4, pool=True, norm=False, pooling="avg", kernel_size=1),
            fastcifar.GlobalMaxPool(),
            fastcifar.Head(4, 10),
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.2)


@pytest.mark.parametrize("name", [*NETWORKS, "blocks without norm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "autocast"])
def test_logits_in_another_dtype_are_the_same_with_and_without_gradients(name, dtype):
    torch.manual_seed(0)
    net = (network(name) if name in NETWORKS else PlainBlocks()).eval()
    x = images(3)
    wanted = net(x)
    if dtype != "autocast":
        net, x = net.to(getattr(torch, dtype)), x.to(getattr(torch, dtype))
    found = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            found.append(net(x))
    assert found[0].dtype == found[1].dtype == (torch.bfloat16 if dtype == "autocast" else x.dtype)
    for logits in found:
        assert (logits.double() - wanted).norm() < 0.03 * wanted.norm()
