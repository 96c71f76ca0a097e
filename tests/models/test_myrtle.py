"""The networks of the first posts of "How to train your ResNet": shapes and counts are written down from those of
davidcpage/cifar10-fast (experiments.ipynb, dawn_utils.py)."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.models.blocks import ConvBN
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.myrtle import HalfBatchNorm, MyrtleNet
from fastcifar.optim import FlatModel
from fastcifar.recipes import get_recipe
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.myrtle import MyrtleConfig

RESIDUAL = [
    *[(64, 3, 3), *[(64, 64, 3)] * 4],
    *[(128, 64, 3), (128, 128, 3), (128, 64, 1), *[(128, 128, 3)] * 2],
    *[(256, 128, 3), (256, 256, 3), (256, 128, 1), *[(256, 256, 3)] * 2],
    *[*[(256, 256, 3)] * 2, (256, 256, 1), *[(256, 256, 3)] * 2],
]
"""Filters out, channels in and kernel of each convolution, in their order."""
THEIRS = {
    "myrtle-baseline": (5_205_962, 17, RESIDUAL),
    "myrtle-single-norm": (5_205_834, 16, RESIDUAL),
    "myrtle-regularised": (5_205_834, 16, RESIDUAL),
    "myrtle-shortest-path": (115_786, 8, [(64, 3, 3), (128, 64, 1), (256, 128, 1), (256, 256, 1)]),
    "myrtle-no-repeat": (114_762, 4, [(64, 3, 3), (128, 64, 1), (256, 128, 1), (256, 256, 1)]),
    "myrtle-3x3": (966_730, 4, [(64, 3, 3), (128, 64, 3), (256, 128, 3), (256, 256, 3)]),
    "myrtle-max-pool": (966_730, 4, [(64, 3, 3), (128, 64, 3), (256, 128, 3), (256, 256, 3)]),
    "myrtle-global-max-pool": (1_557_066, 4, [(64, 3, 3), (128, 64, 3), (256, 128, 3), (512, 256, 3)]),
    "myrtle-scales": (1_557_056, 4, [(64, 3, 3), (128, 64, 3), (256, 128, 3), (512, 256, 3)]),
    "myrtle-residual": (
        *(6_573_120, 8),
        [(64, 3, 3), (128, 64, 3), *[(128, 128, 3)] * 2, (256, 128, 3), (512, 256, 3), *[(512, 512, 3)] * 2],
    ),
}
"""Of a rung's network all parameters, batch norms, and convolutions."""
VARIANTS = {
    "myrtle-extra-1": 1_704_768,
    "myrtle-residual-1": 1_852_480,
    "myrtle-extra-2": 2_147_392,
    "myrtle-residual-2": 2_737_728,
    "myrtle-extra-3": 3_917_376,
    "myrtle-residual-3": 6_277_696,
    "myrtle-extra-1-2": 2_295_104,
    "myrtle-residual-1-2": 3_033_152,
    "myrtle-extra-1-3": 4_065_088,
    "myrtle-extra-2-3": 4_507_712,
    "myrtle-residual-2-3": 7_458_368,
    "myrtle-extra-1-2-3": 4_655_424,
    "myrtle-residual-1-2-3": 7_753_792,
}


def network(rung):
    with torch.device("meta"):
        return build_model(get_recipe(rung), 10, (0.0,) * 3, (1.0,) * 3, sides=())


@pytest.mark.parametrize("rung", THEIRS)
def test_a_rungs_network_has_the_parameters_norms_and_convolutions_of_theirs(rung):
    model = network(rung)
    convs = [(*p.shape[:2], p.shape[2]) for p in model.parameters() if p.dim() == 4]
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert (sum(p.numel() for p in model.parameters()), norms, convs) == THEIRS[rung]
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("rung", VARIANTS)
def test_the_variants_have_as_many_parameters_as_theirs(rung):
    assert sum(p.numel() for p in network(rung).parameters()) == VARIANTS[rung]


def small(**fields):
    torch.manual_seed(0)
    return MyrtleNet(MyrtleConfig(widths=(4, 4, 8, 8), **fields))


IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def plain_norm(norm, x):
    return F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, True))


def test_the_first_network_is_preactivation_blocks_whose_shortcut_begins_after_the_relu():
    model = small().train()
    x = plain_norm(model.stem[1], F.conv2d(IMAGES, model.stem[0].weight, padding=1))
    for number, layer in enumerate(model.layers):
        for place, block in enumerate(layer):
            stride = 2 if number and not place else 1
            x = plain_norm(block.norm1, x)
            shortcut = x if block.shortcut is None else F.conv2d(x, block.shortcut.weight, stride=stride)
            assert (block.shortcut is None) == (stride == 1)
            x = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
            x = shortcut + F.conv2d(plain_norm(block.norm2, x), block.conv2.weight, padding=1)
    features = torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)
    torch.testing.assert_close(model(IMAGES), model.classifier(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("downsampling", ["1x1", "3x3", "max-pool"])
def test_the_backbone_is_a_convolution_norm_and_relu_a_layer(downsampling):
    model = small(blocks="convolution", downsampling=downsampling, final_pool="max").train()
    x = plain_norm(model.stem[1], F.conv2d(IMAGES, model.stem[0].weight, padding=1))
    for layer in model.layers[1:]:
        how = {"1x1": {"stride": 2}, "3x3": {"stride": 2, "padding": 1}, "max-pool": {"padding": 1}}[downsampling]
        x = plain_norm(layer[1], F.conv2d(x, layer[0].weight, **how))
        x = F.max_pool2d(x, 2) if downsampling == "max-pool" else x
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(model(IMAGES), model.classifier(x.amax((2, 3))), rtol=1e-4, atol=1e-4)


def test_the_shortest_path_is_the_first_network_without_its_long_branches():
    model, whole = small(blocks="shortcut", stem_norm=False), small(stem_norm=False)
    model.load_state_dict(
        {
            **{name: value for name, value in whole.state_dict().items() if name in model.state_dict()},
            **{
                f"layers.{layer}.{place}.{name}": value
                for layer in range(4)
                for place, source in (
                    [(0, "0.norm1"), (1, "1.norm1")]
                    if layer == 0
                    else [(0, "0.norm1"), (1, "0.shortcut"), (2, "1.norm1")]
                )
                for name, value in whole.layers[layer].get_submodule(source).state_dict().items()
            },
        }
    )
    for block in itertools.chain(*whole.layers):
        block.conv2.weight.data.zero_()
    torch.testing.assert_close(model.train()(IMAGES), whole.train()(IMAGES))


def test_scales_begin_uniform_between_0_and_1_or_at_1():
    scales = torch.cat([m.weight for m in small().modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert 0 <= scales.min() < 0.2 and 0.8 < scales.max() <= 1 and 0.4 < scales.mean() < 0.6
    ones = [m.weight for m in small(norm_scale="one").modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((scale == 1).all() for scale in ones)


def test_half_norms_compute_the_same_and_keep_all_of_it_in_the_compute_type():
    single, half = small(), small(norm_precision="half")
    assert sum(isinstance(m, HalfBatchNorm) for m in half.modules()) == 17
    half.load_state_dict(single.state_dict())
    torch.testing.assert_close(half.train()(IMAGES), single.train()(IMAGES), rtol=1e-4, atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(half.buffers(), single.buffers(), strict=True))
    torch.testing.assert_close(half.eval()(IMAGES), single.eval()(IMAGES), rtol=1e-4, atol=1e-4)
    for model, kept in ((single, torch.float32), (half, torch.bfloat16)):
        flat = FlatModel(model.train(), torch.bfloat16)
        norm = model.stem[1]
        assert {t.dtype for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)} == {kept}
        flat.backward(model(IMAGES.bfloat16()).float().square().sum())
        assert all(group.grads.isfinite().all() and group.grads.any() for group in flat.groups)
        assert norm.running_mean.any()
        assert flat.state_dict()["stem.1.running_var"].dtype == torch.float32


def test_other_downsampling_is_refused_where_blocks_have_none():
    with pytest.raises(UserError, match=r"^network.downsampling is '3x3'; allowed: 1x1 with network.blocks residual$"):
        MyrtleConfig(downsampling="3x3")


@pytest.mark.parametrize(("after", "order"), [("convolution", "pna"), ("norm", "npa"), ("activation", "nap")])
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_a_block_pools_after_its_convolution_its_norm_or_its_activation(after, order, pooling):
    torch.manual_seed(0)
    block = ConvBN(3, 5, pool=True, pooling=pooling, pool_after=after, celu_alpha=0.5).train()
    block.norm.bias.data.normal_()
    steps = {
        "p": lambda x: (F.max_pool2d if pooling == "max" else F.avg_pool2d)(x, 2),
        "n": lambda x: F.batch_norm(x, None, None, None, block.norm.bias, True),
        "a": lambda x: F.celu(x, 0.5),
    }
    expected = F.conv2d(IMAGES, block.conv.weight, padding=1)
    for step in order:
        expected = steps[step](expected)
    torch.testing.assert_close(block(IMAGES), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(IMAGES, expected), 2 * expected, rtol=1e-4, atol=1e-4)


def test_an_extra_convolution_follows_the_residual_branch():
    torch.manual_seed(0)
    model = DavidNet(DavidNetConfig(widths=(4, 4, 8, 8), ghost_batch=0, residual=(1,), extra=(1, 2))).train()
    assert [layer.extra is not None for layer in model.layers] == [True, True, False]
    layer = model.layers[0]
    x = layer.block(IMAGES[:, :1].repeat(1, 4, 1, 1))
    expected = layer.extra(x + layer.residual[1](layer.residual[0](x)))
    torch.testing.assert_close(layer(IMAGES[:, :1].repeat(1, 4, 1, 1)), expected)
