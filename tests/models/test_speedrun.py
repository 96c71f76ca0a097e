"""The speed records' network: its shape, its choices one by one, and its whitening."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels import whiten
from fastcifar.models import PatchWhitening, build_model
from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.speedrun import Block, SpeedrunNet
from fastcifar.models.whitening import patch_second_moment
from fastcifar.recipes import Recipe, quick
from fastcifar.recipes.networks.speedrun import SpeedrunConfig

NARROW = SpeedrunConfig(widths=(6, 8, 10), ghost_batch=4)
ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def make(config, seed=0, classes=10):
    """Return a network of `config` in float64 with biases, scales and filters that all change its output."""
    torch.manual_seed(seed)
    model = SpeedrunNet(config, classes)
    torch.nn.init.normal_(model.whitening.weight, 0, 0.3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.2)
        elif "norms" in name and parameter.requires_grad:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.double()


def expected(model, config, x, buffers=None):
    """Compute the network in torch's own layers, its groups one after another; with `buffers`, those of the batch norms
    by their names, it normalizes as a network in the mode of `model` and without groups, and moves them in training."""
    weights = dict(model.named_parameters())
    group = config.ghost_batch or len(x)
    x = F.conv2d(x, weights["whitening.weight"], weights.get("whitening.bias"))
    x = ACTIVATIONS[config.whitening_activation](x)
    activation = ACTIVATIONS[config.activation]
    for block in range(3):
        first = None
        for number in range(config.depth):
            name = f"blocks.{block}"
            weight = weights[f"{name}.convs.{number}.weight"]
            if (kernel := weight.shape[-1]) == 2:  # what makes the sides even, where there is an odd one
                x = F.pad(x, (1 - x.shape[3] % 2, 0, 1 - x.shape[2] % 2, 0))
            x = F.conv2d(x, weight, padding=kernel // 2 * (kernel % 2))
            x = x if number else F.max_pool2d(x, 2)
            scale, bias = (weights[f"{name}.norms.{number}.{kind}"] for kind in ("weight", "bias"))
            running, training = (None, None), True
            if buffers is not None:
                running = [buffers[f"{name}.norms.{number}.running_{kind}"] for kind in ("mean", "var")]
                training = model.training
            norm = (*running, scale, bias, training, config.norm_momentum, config.norm_eps)
            x = torch.cat([F.batch_norm(part, *norm) for part in x.split(group)])
            adds = config.residual and number == config.depth - 1
            x = activation(x + first if adds and not config.residual_after else x)
            x = x + first if adds and config.residual_after else x
            first = x if number == 0 else first
    pools = {"max": F.adaptive_max_pool2d, "avg": F.adaptive_avg_pool2d}
    x = sum(pools[name](x, 1) for name in config.final_pool.split("+"))
    return x.flatten(1) @ weights["classifier.weight"].T * (config.logit_scale or 1 / config.widths[-1])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"depth": 1},
        {"depth": 3, "residual": True},
        {"depth": 3},
        {"residual": True},
        {"depth": 3, "inner_widths": (4, 0, 12)},
        {"depth": 4, "inner_widths": (4, 0, 12), "residual": True},
        {"kernels": ((3, 3, 3), (2, 3, 3), (2, 1, 3))},
        {"depth": 3, "kernels": ((2, 1, 3), (3, 3, 1), (3, 1, 1))},
        {"depth": 3, "residual": True, "residual_after": True},
        {"final_pool": "max+avg"},
        {"ghost_batch": 0},
        {"freeze_scale": False},
        {"activation": "silu"},
        {"activation": "relu"},
        {"whitening_activation": "silu"},
        {"whitening_size": 3},
        {"whitening_bias_epochs": 0.0},
        {"final_pool": "avg"},
        {"logit_scale": 1 / 9},
        {"norm_eps": 0.1},
    ],
    ids=str,
)
def test_it_and_its_gradients_are_those_of_torchs_layers(change):
    config = dataclasses.replace(NARROW, **change)
    model = make(config).train()
    images = torch.randn(8, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    ours, theirs = model(images), expected(model, config, images)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    upstream = torch.randn_like(ours)
    gradients = zip(
        *(torch.autograd.grad(out, list(trained.values()), upstream) for out in (ours, theirs)), strict=True
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("bias_trains", "change"),
    [
        (False, {}),
        (True, {}),
        (False, {"kernels": ((3, 3, 3), (2, 3, 3), (2, 3, 3))}),
        (False, {"residual": True, "residual_after": True}),
    ],
    ids=["frozen", "trained", "kernels", "residual"],
)
@pytest.mark.parametrize("height", range(16, 34))
def test_it_is_torchs_layers_whatever_rows_and_columns_its_pools_leave_out(height, bias_trains, change):
    """Output, gradients and running statistics in training, and the output in evaluation, of any sides."""
    config = SpeedrunConfig(widths=(2, 3, 4), ghost_batch=0, whitening_bias_epochs=float(bias_trains), **change)
    model = make(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for width in {height, 49 - height}:
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        upstream, results = torch.randn(2, 10, dtype=torch.float64), []
        for out in (model.train()(images), expected(model, config, images, buffers)):
            results.append([out, *torch.autograd.grad(out, trained, upstream)])
        results[0] += [*dict(model.named_buffers()).values(), model.eval()(images)]
        results[1] += [*buffers.values(), expected(model, config, images, buffers)]
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("pixels", [20, 24, 28, 32])
def test_a_convolution_before_a_pool_computes_what_the_pool_reads(pixels, kernel):
    config = dataclasses.replace(NARROW, whitening_bias_epochs=0.0, kernels=((kernel, 3, 3),) * 3)
    sides, model = [], SpeedrunNet(config)
    for block in model.blocks:
        block.convs[0].register_forward_hook(lambda module, inputs, out: sides.append(out.shape[2:]))
    for network in (model, model.eval()):
        sides.clear()
        network(torch.zeros(4, 3, pixels, pixels))
        side = pixels - 1
        for found in sides:
            assert found == (side // 2 * 2,) * 2
            side //= 2


class Flat(torch.nn.Module):
    """In place of the blocks: a feature that is everywhere the same."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = torch.nn.Parameter(torch.ones(2, 10, 3, 3))

    def forward(self, x):
        return self.feature


class PlainConvolution(Conv3x3):
    def forward(self, x):
        return F.conv2d(x, self.weight, padding=1)


class PlainNorm(GhostBatchNorm):
    def forward(self, x, residual=None):
        return super().forward(x, residual)


class PlainBlock(Block):
    def forward(self, x):
        return super().forward(x)


def test_layers_with_a_forward_of_their_own_get_no_borders():
    torch.manual_seed(0)
    model, x = SpeedrunNet(NARROW).eval(), torch.randn(2, 3, 32, 32)
    expected = model(x)
    layers = [(model.blocks[0].convs[0], PlainConvolution), (model.blocks[0].norms[-1], PlainNorm)]
    for layer, kind in [*layers, (model.blocks[1], PlainBlock)]:
        layer.__class__ = kind
        torch.testing.assert_close(model(x), expected)
        layer.__class__ = kind.__mro__[1]
    conv = model.blocks[0].convs[0]
    conv.forward = lambda x: F.conv2d(x, conv.weight, padding=1)
    torch.testing.assert_close(model(x), expected)


def test_of_equal_maxima_in_the_final_pool_the_first_gets_the_gradient():
    model = SpeedrunNet(NARROW)
    model.blocks = torch.nn.Sequential(Flat())
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    gradient = model.blocks[0].feature.grad.flatten(2)
    assert gradient[:, :, 0].all()
    assert not gradient[:, :, 1:].any()


def test_it_has_the_sources_parameters():
    trained = sum(p.numel() for p in SpeedrunNet().parameters() if p.requires_grad)
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 256 * 10
    assert trained == filters + 24 + 2 * (64 + 256 + 256)
    residual = SpeedrunNet(SpeedrunConfig(widths=(128, 384, 512), depth=3, residual=True))
    filters = 9 * (24 * 128 + 2 * 128**2 + 128 * 384 + 2 * 384**2 + 384 * 512 + 2 * 512**2) + 512 * 10
    assert sum(p.numel() for p in residual.parameters() if p.requires_grad) == filters + 24 + 3 * (128 + 384 + 512)


@pytest.mark.parametrize("side", [16, 17, 24, 32, 48])
def test_images_of_16_pixels_and_more_will_do(side):
    model = SpeedrunNet(NARROW, classes=3)
    assert model.train()(torch.randn(4, 3, side, side)).shape == (4, 3)
    assert model.eval()(torch.randn(1, 3, side, side)).shape == (1, 3)


def test_the_first_filters_are_the_identity():
    model = SpeedrunNet(NARROW)
    x = torch.randn(2, 6, 5, 5)
    conv = model.blocks[1].convs[0]
    torch.testing.assert_close(conv(x)[:, :6], x)
    assert conv.weight[6:].abs().min() > 0
    of_two = SpeedrunNet(dataclasses.replace(NARROW, kernels=((2, 3, 3),) * 3)).blocks[1].convs[0]
    torch.testing.assert_close(of_two(x)[:, :6], x[:, :, 1:, 1:])
    narrower = model.blocks[0].convs[0]  # 24 inputs, 6 outputs
    x = torch.randn(2, 24, 5, 5)
    torch.testing.assert_close(narrower(x), x[:, :6])
    plain = SpeedrunNet(dataclasses.replace(NARROW, dirac=False)).blocks[1].convs[0]
    assert plain.weight.abs().min() > 0


def test_the_classifiers_weights_are_scaled_to_their_standard_deviation():
    torch.manual_seed(0)
    assert SpeedrunNet(NARROW).classifier.weight.std().item() == pytest.approx(1)
    assert SpeedrunNet(dataclasses.replace(NARROW, head_std=0.5)).classifier.weight.std().item() == pytest.approx(0.5)
    assert SpeedrunNet(dataclasses.replace(NARROW, head_std=0.0)).classifier.weight.abs().max() <= 10**-0.5


def test_whitening_is_filters_and_their_negatives_fitted_to_the_first_images():
    data = make_synthetic(300, 10)
    config = dataclasses.replace(NARROW, whitening_images=100)
    model = SpeedrunNet(config, 10, data.mean, data.std)
    model.fit_whitening(data.train.images)
    weight = model.whitening.weight
    assert weight.shape == (24, 3, 2, 2)
    assert torch.equal(weight[12:], -weight[:12])
    moment = patch_second_moment(data.train.images[:100], data.mean, data.std, 2)
    white = weight[:12].flatten(1).double()
    values = torch.linalg.eigvalsh(moment).flip(0)
    torch.testing.assert_close(white @ moment @ white.T, torch.diag(values / (values + 5e-4)), rtol=1e-4, atol=1e-4)


def test_the_whitening_looks_at_whole_patches_alone():
    model = SpeedrunNet(NARROW)
    assert model.whitening(torch.randn(2, 3, 32, 32)).shape == (2, 24, 31, 31)
    assert PatchWhitening()(torch.randn(2, 3, 32, 32)).shape == (2, 27, 32, 32)


def test_the_whitenings_bias_begins_at_zero_and_says_when_it_is_frozen():
    model = SpeedrunNet(dataclasses.replace(NARROW, whitening_bias_epochs=1.5))
    assert model.frozen_from == {"whitening.bias": 1.5}
    assert not model.whitening.bias.any()
    assert not model.whitening.weight.requires_grad
    without = SpeedrunNet(dataclasses.replace(NARROW, whitening_bias_epochs=0.0))
    assert (without.whitening.bias, without.frozen_from) == (None, {})


def test_once_the_bias_is_frozen_no_gradient_enters_the_whitening():
    model = SpeedrunNet(NARROW).train()
    seen = []
    model.blocks[0].convs[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].requires_grad))
    x = torch.randn(4, 3, 16, 16)
    model(x).sum().backward()
    assert model.whitening.bias.grad is not None
    model.whitening.bias.requires_grad_(False)
    model(x).sum().backward()
    assert seen == [True, False]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_a_gradient_whitening_and_activation_are_one_operator_of_the_same_bits(monkeypatch, activation):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    model = SpeedrunNet(dataclasses.replace(NARROW, whitening_activation=activation))
    torch.nn.init.normal_(model.whitening.bias)
    x = torch.randn(4, 3, 16, 16)
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return whiten(*arguments)

    monkeypatch.setattr("fastcifar.models.whitening.whiten", counted)
    expected = model(x)
    assert not calls
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    model.whitening.bias.requires_grad_(False)
    assert torch.equal(model(x), expected)
    assert [arguments[3:] for arguments in calls] == [(activation, True)] * 2


def test_whitening_and_activation_get_a_border_with_and_without_a_gradient():
    whitening, x = SpeedrunNet(NARROW).whitening.double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    expected = F.pad(F.gelu(F.conv2d(x, whitening.weight)), (1, 0, 1, 0))
    torch.testing.assert_close(whitening.activated(x, "gelu", border=True), expected)
    with torch.no_grad():
        torch.testing.assert_close(whitening.activated(x, "gelu", border=True), expected)


def test_the_recipe_builds_it_and_quick_makes_it_narrower():
    recipe = Recipe(network=NARROW, batch_size=12)
    model = build_model(recipe, 4, (1, 2, 3), (4, 5, 6))
    assert (type(model), model.config, model.mean) == (SpeedrunNet, NARROW, (1, 2, 3))
    assert model.get_submodule(model.head).out_features == 4
    smaller = quick(Recipe(network=SpeedrunConfig(depth=3, inner_widths=(0, 2, 64))))[0].network
    assert (smaller.widths, smaller.inner_widths) == ((16, 64, 64), (0, 1, 16))


def test_a_batch_that_its_ghost_batches_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"^batch_size is 10; allowed: a multiple of network\.ghost_batch, 4$"):
        Recipe(network=NARROW, batch_size=10)
    assert Recipe(network=SpeedrunConfig(), batch_size=7).ghost_batch == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (64, 0, 64)}, "network.widths is (64, 0, 64); allowed: 1 to 65,536 channels each"),
        ({"depth": 0}, "network.depth is 0; allowed: 1 to 1,000 convolutions"),
        ({"depth": 1, "residual": True}, "network.residual is True; allowed: false where network.depth is 1"),
        ({"inner_widths": (0, 8, 0)}, "network.inner_widths is (0, 8, 0); allowed: 0 where network.depth is below 3"),
        (
            {"kernels": ((3, 3, 3), (1, 3, 3), (3, 3, 3))},
            "network.kernels is ((3, 3, 3), (1, 3, 3), (3, 3, 3)); allowed: three blocks, each of 2 or 3 pixels, then "
            "twice 1 or 3",
        ),
        ({"residual_after": True}, "network.residual_after is True; allowed: false where residual is"),
        ({"whitening_size": 6}, "network.whitening_size is 6; allowed: 1 to 5 pixels"),
        ({"whitening_bias_epochs": -1.0}, "network.whitening_bias_epochs is -1.0; allowed: 0 or more epochs"),
        ({"norm_eps": 0.0}, "network.norm_eps is 0.0; allowed: above 0"),
    ],
)
def test_a_field_out_of_range_is_refused(change, message):
    with pytest.raises(UserError) as refusal:
        SpeedrunConfig(**change)
    assert str(refusal.value) == message
