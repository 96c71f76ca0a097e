"""A module of one's own in the engine: what it computes in is what `module.to(dtype)` would have it."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.errors import UserError
from fastcifar.models import OwnNetwork, build_model, memory_format
from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.mlp import MLP
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import EMAConfig, Recipe, Schedule
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from tests import kinds

CLASSES, BATCH, STEPS = 5, 8, 4
MEAN, STD = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
RECIPE = Recipe(
    network=ResNet18Config(),  # whose batches have any size
    batch_size=BATCH,
    optimizer=SGDConfig(lr=0.02, weight_decay=0.01, bias_lr_factor=1.0),
    schedule=Schedule((0, 1), (1, 1)),
    ema=EMAConfig(decay=0.5, every=1),
)
CHANNELS_LAST = torch.channels_last


class Plain(nn.Module):
    """Every kind of tensor that a module may have, and a forward that wants its input contiguous."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.Conv2d(6, 6, 1)
        self.norm, self.group = nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.first_block = nn.LayerNorm(8)  # an attribute that our networks have too
        self.gain, self.temperature = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.full((6, 1, 1), 0.1))
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.register_buffer("nothing", None)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6 * 8 * 8, classes)

    def forward(self, x):
        if self.training:
            self.seen.add_(len(x))
        x = self.group(F.relu(self.norm(self.point(self.conv(x))) * self.gain + self.shift))
        x = self.first_block(x)
        return self.head(self.drop(x.view(len(x), -1))) * self.temperature


class Tied(nn.Module):
    """One matrix and one bias in two places, a frozen layer, no buffers."""

    def __init__(self, classes):
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 3, stride=8).requires_grad_(False)
        self.one, self.two, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, classes)
        self.two.weight, self.two.bias = self.one.weight, self.one.bias

    def forward(self, x):
        return self.head(self.two(self.one(self.frozen(x).flatten(1)).tanh()))


def sequential(classes):
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(4, momentum=None), nn.GELU()),
        *(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, classes)),
    )


def channels_last(classes):
    return sequential(classes).to(memory_format=CHANNELS_LAST)


class Several(nn.Module):
    def forward(self, x):
        return x, x


class Skipping(nn.Module):
    """A layer that no output depends on."""

    def __init__(self, classes):
        super().__init__()
        self.unused, self.used = nn.Linear(3, 3), nn.Linear(3, classes)

    def forward(self, x):
        return self.used(x.mean((2, 3)))


def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


NETWORKS = [Plain, Tied, sequential, channels_last, Skipping, lazy]


def make(own, seed=0):
    torch.manual_seed(seed)
    return build_model(RECIPE, CLASSES, MEAN, STD, own)


def loss_of(network, step, dtype):
    torch.manual_seed(step)  # of the dropout too
    images = torch.randn(BATCH, 3, 32, 32).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    return F.cross_entropy(network(images).float(), torch.arange(BATCH) % CLASSES, reduction="sum")


@pytest.mark.parametrize("own", NETWORKS)
def test_in_float32_it_trains_as_with_torchs_optimizer(own):
    network, plain = make(own), make(own)
    flat = FlatModel(network.module)
    optimizer = build_optimizer(flat, RECIPE, STEPS, own=lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01))
    reference = torch.optim.SGD(plain.module.parameters(), 0.1, 0.9, weight_decay=0.01)
    for step in range(STEPS):
        flat.backward(loss_of(network.train(), step, torch.float32))
        optimizer.step()
        reference.zero_grad()
        (loss_of(plain.train(), step, torch.float32) / BATCH).backward()
        reference.step()
    state = flat.state_dict()
    assert state.keys() == plain.module.state_dict().keys()
    for name, expected in plain.module.state_dict().items():
        assert state[name].dtype == expected.dtype, name
        if "unused" not in name:  # torch leaves what has no gradient without its decay
            torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["sgd", "muon", "lars", "Adam"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", NETWORKS)
def test_in_half_precision_it_computes_as_if_it_were_cast_and_learns(own, dtype, name):
    optimizer = kinds.optimizer(name, lr=0.01, bias_lr=0.01, head_lr=0.01, bias_lr_factor=1.0)
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer)
    network, cast = make(own), make(own).module.to(dtype)
    flat = FlatModel(network.module, dtype)
    for module in cast.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()
    for (name, mine), (_, theirs) in zip(
        [*flat.model.named_parameters(), *flat.model.named_buffers()],
        [*cast.named_parameters(), *cast.named_buffers()],
        strict=True,
    ):
        assert mine.dtype == theirs.dtype and mine.stride() == theirs.stride() and torch.equal(mine, theirs), name
    assert all(group.weights.dtype == torch.float32 for group in flat.groups)
    assert {p.dtype for g in flat.groups for p in g.parameters if g.compute is not g.weights} == {dtype}
    optimizer = build_optimizer(flat, recipe, STEPS)
    before = flat.state_dict()
    for step in range(STEPS):
        flat.backward(loss_of(network.train(), step, dtype))
        optimizer.step()
    after = flat.state_dict()
    trained = {name for name, p in flat.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert all(after[name].isfinite().all() for name in after)
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("frozen"))
    assert not any(torch.equal(after[name], before[name]) for name in trained if "unused" not in name)


def test_the_average_is_of_weights_and_batch_norms_alone():
    flats = [FlatModel(make(Plain, seed).module, torch.bfloat16) for seed in range(2)]
    flat, evaluated = flats
    assert flat.statistics.numel() == 2 * 32 and flat.statistics.dtype == torch.float32
    network = OwnNetwork(flat.model)
    optimizer = build_optimizer(flat, RECIPE, STEPS)
    means = flat.model.norm.running_mean.clone()
    for step in range(STEPS):
        flat.backward(loss_of(network.train(), step, torch.bfloat16))
        optimizer.step()
        means += 0.5 * (flat.model.norm.running_mean - means)
    evaluated.load_average(flat)
    torch.testing.assert_close(evaluated.model.norm.running_mean, means)
    assert evaluated.model.seen == STEPS * BATCH and evaluated.model.norm.num_batches_tracked == STEPS
    for mine, theirs in zip(evaluated.groups, flat.groups, strict=True):
        assert torch.equal(mine.compute, theirs.ema.to(mine.compute.dtype))
    flat.load(make(Plain).module)
    assert flat.model.seen == 0 and flat.model.norm.num_batches_tracked == 0


def test_images_come_in_the_memory_format_of_the_filters():
    seen = []

    def watching(own):
        def build(classes):
            module = own(classes)
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
            return module

        return build

    for own in (Plain, channels_last, lazy):
        network = make(watching(own))
        seen.clear()
        network.eval()(torch.zeros(2, 3, 32, 32).contiguous(memory_format=CHANNELS_LAST))
        assert seen == [own is not channels_last]
        assert (memory_format(network) == memory_format(network.module) == CHANNELS_LAST) == (own is channels_last)
    assert memory_format(DavidNet(DavidNetConfig(widths=(4, 8, 8, 8)))) == CHANNELS_LAST
    assert memory_format(MLP()) == CHANNELS_LAST  # which has no filters
    assert memory_format(nn.Conv2d(3, 4, 1)) == torch.contiguous_format  # which lies both ways


def test_the_adapter_is_a_network_that_keeps_its_modules_names():
    network = make(Plain)
    assert isinstance(network, OwnNetwork) and (network.mean, network.std) == (MEAN, STD)
    assert network.module.state_dict().keys() == Plain(CLASSES).state_dict().keys()
    assert network.logit_scale == 1 and network.frozen_from == {} and network.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(x, scaled=False), network.module(x)) and network(x).shape == (2, CLASSES)
    network.fit_whitening(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    ours = make(lambda classes: SpeedrunNet(classes=classes))
    assert isinstance(ours, SpeedrunNet) and ours.module is ours and ours.frozen_from and ours.mean == MEAN
    assert isinstance(make(DavidNet), DavidNet) and make(DavidNet).classifier.out_features == CLASSES


def test_trying_it_leaves_the_random_state_and_its_statistics():
    noisy = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.Linear(3072, CLASSES))
    noisy.register_forward_hook(lambda module, inputs, output: output + torch.rand(1))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_model(RECIPE, CLASSES, MEAN, STD, lambda classes: noisy)
    assert torch.equal(torch.rand(1), expected)
    assert noisy[1].num_batches_tracked == 0 and all(module.training for module in noisy.modules())


def test_blocks_of_ours_train_in_a_module_of_ones_own():
    def own(classes):
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3), GhostBatchNorm(4, 4, activation="gelu"), nn.Flatten(), nn.Linear(3600, classes))
        )

    network = make(own)
    flat = FlatModel(network.module, torch.bfloat16)
    assert network.module[1].bias.dtype == torch.float32 and network.module[0].bias.dtype == torch.bfloat16
    optimizer = build_optimizer(flat, RECIPE, STEPS)
    before = flat.state_dict()
    flat.backward(loss_of(network.train(), 0, torch.bfloat16))
    optimizer.step()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in flat.state_dict().items())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            5,
            "the model is an object of type int; allowed: a class or function of the number of classes that ",
        ),
        (nn.Linear(2, 2), "the model is an object of type Linear; allowed: a class or function of the number of "),
        (lambda classes: [classes], "the model gives an object of type list; allowed: a torch.nn.Module"),
        (lambda classes: nn.Linear, "the model gives the class Linear; allowed: a torch.nn.Module"),
        (lambda classes: sequential(9), "the model gives [2, 9] for images [2, 3, 32, 32]; allowed: logits [2, 5]"),
        (lambda classes: nn.Flatten(0), "the model gives [6144] for images [2, 3, 32, 32]; allowed: logits [2, 5]"),
        (
            lambda classes: Several(),
            "the model gives an object of type tuple for images [2, 3, 32, 32]; allowed: logits [2, 5]",
        ),
        (
            lambda classes: sequential(classes).requires_grad_(False),
            "the model gives an object of type Sequential without a parameter that trains; allowed: one or more",
        ),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(own, message):
    with pytest.raises(UserError) as refusal:
        make(own)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_one_module_for_two_networks_is_refused():
    module = sequential(CLASSES)
    make(lambda classes: module)
    with pytest.raises(UserError, match=r"^the model gives one module a second time; allowed: a new one, such as a c"):
        make(lambda classes: module)
    make(lambda classes: copy.deepcopy(module))


def test_it_is_tried_on_images_of_the_datasets_size():
    def own(classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, classes))

    assert build_model(RECIPE, CLASSES, MEAN, STD, own, sides=(24,))(torch.zeros(1, 3, 24, 24)).shape == (1, CLASSES)
