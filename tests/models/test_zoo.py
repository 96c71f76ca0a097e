"""LeNet, AlexNet, WideResNet and ResNet-18: sources' numbers and formulas, torchvision's files, channels, dropout."""

import copy
import dataclasses
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcifar
from fastcifar import AlexNet, AlexNetConfig, LeNet, LeNetConfig, ResNet18, ResNet18Config, WideResNet, WideResNetConfig
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.recipes import NETWORKS, Augment, Recipe, narrow
from fastcifar.training import Listener, load_weights
from tests.small import BARE

COUNTS = [
    (LeNet, LeNetConfig(), 200, 99_276),
    (AlexNet, AlexNetConfig(), 200, 57_823_240),
    (AlexNet, AlexNetConfig(), 10, 57_044_810),
    (ResNet18, ResNet18Config(stem="imagenet"), 10, 11_181_642),
    (WideResNet, WideResNetConfig(), 10, 10_961_370),
]
NARROW = {
    "alexnet": AlexNetConfig(widths=(2, 3, 4, 5, 6), hidden=(7, 8)),
    "wideresnet": WideResNetConfig(depth=10, widen=1),
    "resnet18": ResNet18Config(width=2),
}
ONE_HEAD = [kind for kind, config in NETWORKS.items() if not config.is_joint]


def fixture(name: str) -> dict[str, list[int]]:
    """Names and shapes in torchvision's file, of 1000 classes, written from its documentation."""
    lines = (Path(__file__).parent / f"torchvision_{name}.txt").read_text().splitlines()
    pairs = (line.split() for line in lines)
    return {name: [] if shape == "scalar" else [int(size) for size in shape.split("x")] for name, shape in pairs}


def made(kind: str, **how) -> fastcifar.Network:
    config = NARROW.get(kind) or narrow(NETWORKS[kind]())
    torch.manual_seed(0)
    builder = {"alexnet": AlexNet, "lenet": LeNet, "wideresnet": WideResNet, "resnet18": ResNet18}
    builder |= {"mlp": fastcifar.MLP, "davidnet": fastcifar.DavidNet, "speedrun": fastcifar.SpeedrunNet}
    return (builder | {"myrtle": fastcifar.MyrtleNet})[kind](config, **how)


@pytest.mark.parametrize(("network", "config", "classes", "count"), COUNTS)
def test_it_has_the_sources_number_of_parameters(network, config, classes, count):
    with torch.device("meta"):
        model = network(config, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_a_wide_resnet_has_the_parameters_of_its_formula():
    for depth, widen in ((10, 2), (16, 1), (22, 3)):
        with torch.device("meta"):
            model = WideResNet(WideResNetConfig(depth=depth, widen=widen), 7)
        blocks, inputs, count = (depth - 4) // 6, 16, 3 * 9 * 16
        for outputs in (16 * widen, 32 * widen, 64 * widen):
            for _ in range(blocks):
                count += 9 * outputs * (inputs + outputs) + 2 * (inputs + outputs)  # two convolutions, two norms
                count += inputs * outputs if inputs != outputs else 0
                inputs = outputs
        assert sum(parameter.numel() for parameter in model.parameters()) == count + 2 * inputs + 7 * (inputs + 1)
    with pytest.raises(UserError, match=r"depth is 18; allowed: 4 and a multiple of 6"):
        WideResNetConfig(depth=18)


@pytest.mark.parametrize(
    ("name", "network", "config"),
    [("resnet18", ResNet18, ResNet18Config(stem="imagenet")), ("alexnet", AlexNet, AlexNetConfig())],
)
def test_names_and_shapes_are_torchvisions(name, network, config):
    with torch.device("meta"):
        state = network(config, 1000).state_dict()
    expected = {key: shape for key, shape in fixture(name).items() if not key.endswith("num_batches_tracked")}
    assert {key: list(tensor.shape) for key, tensor in state.items()} == expected
    assert list(state) == list(expected)


def test_torchvisions_file_of_resnet18_loads_as_it_is(tmp_path):
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape).abs() for name, shape in fixture("resnet18").items()}
    tensors |= {name: torch.tensor(7) for name in tensors if name.endswith("num_batches_tracked")}
    assert len(tensors) == 122
    torch.save(tensors, tmp_path / "resnet18-f37072fd.pth")
    model = ResNet18(ResNet18Config(stem="imagenet"), 1000)
    load_weights(model, tmp_path / "resnet18-f37072fd.pth")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ONE_HEAD)
def test_logits_are_the_heads_of_the_features_whatever_the_channels(kind, in_channels):
    side = NETWORKS[kind]().side_for(32)
    model = made(kind, classes=7, mean=(1,) * in_channels, side=side, in_channels=in_channels).eval()
    assert model.mean == (1,) * in_channels and model.std == (127.5,) * in_channels
    images = torch.randn(2, in_channels, side, side).contiguous(memory_format=torch.channels_last)
    features = model.features(images)
    head = model.get_submodule(model.head)
    assert features.shape == (2, head.in_features)
    assert torch.equal(head(features), model.unscaled(images)) and model(images).shape == (2, 7)
    with pytest.raises(UserError, match="mean is"):
        made(kind, mean=(1, 2), side=side, in_channels=in_channels)


def test_alexnet_computes_torchvisions_formula():
    model = made("alexnet").double().eval()
    w = model.state_dict()
    x = torch.randn(3, 3, 80, 80, dtype=torch.float64)

    def conv(x, number, **how):
        return F.relu(F.conv2d(x, w[f"features.{number}.weight"], w[f"features.{number}.bias"], **how))

    y = F.max_pool2d(conv(x, 0, stride=4, padding=2), 3, 2)
    y = conv(conv(F.max_pool2d(conv(y, 3, padding=2), 3, 2), 6, padding=1), 8, padding=1)
    y = F.adaptive_avg_pool2d(F.max_pool2d(conv(y, 10, padding=1), 3, 2), 6).flatten(1)
    for number in (1, 4):
        y = F.relu(y @ w[f"classifier.{number}.weight"].T + w[f"classifier.{number}.bias"])
    torch.testing.assert_close(model.features(x), y)
    torch.testing.assert_close(model(x), y @ w["classifier.6.weight"].T + w["classifier.6.bias"])


def test_lenet_computes_the_courses_formula():
    model = LeNet(LeNetConfig(), side=28).double()
    w = model.state_dict()
    x = torch.randn(3, 3, 28, 28, dtype=torch.float64)
    y = F.avg_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=2).sigmoid(), 2)
    y = F.avg_pool2d(F.conv2d(y, w["conv2.weight"], w["conv2.bias"]).sigmoid(), 2).flatten(1)
    for name in ("fc1", "fc2"):
        y = (y @ w[f"{name}.weight"].T + w[f"{name}.bias"]).sigmoid()
    torch.testing.assert_close(model(x), y @ w["classifier.weight"].T + w["classifier.bias"])


@pytest.mark.parametrize(("name", "f"), [("relu", F.relu), ("leaky_relu", lambda x: F.leaky_relu(x, 0.2))])
def test_a_wide_resnet_computes_its_formula(name, f):
    config = WideResNetConfig(depth=10, widen=1, activation=name, slope=0.2)
    model = WideResNet(config).double().train()
    w = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def norm(name, x):
        return f(F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True))

    y = F.conv2d(x, w["conv1.weight"], padding=1)
    for number, stride in enumerate((1, 2, 2)):
        at = f"groups.{number}.0"
        z = norm(f"{at}.bn1", y)
        out = F.conv2d(z, w[f"{at}.conv1.weight"], stride=stride, padding=1)
        out = F.conv2d(norm(f"{at}.bn2", out), w[f"{at}.conv2.weight"], padding=1)
        key = f"{at}.shortcut.weight"  # widen 1: none in the first group
        y = out + (F.conv2d(z, w[key], stride=stride) if key in w else y)
    torch.testing.assert_close(model(x), norm("bn", y).mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"])


@pytest.mark.parametrize("name", ["leaky_relu", "gelu", "silu"])
def test_resnet18s_activation_is_the_one_that_is_asked_for(name):
    model = ResNet18(ResNet18Config(width=2, activation=name, slope=0.3)).double().eval()
    f = (lambda x: F.leaky_relu(x, 0.3)) if name == "leaky_relu" else getattr(F, name)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    y = f(model.conv1(x) / (1 + 1e-5) ** 0.5)
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            z = f(block.conv1(y) / (1 + 1e-5) ** 0.5)
            shortcut = y if block.downsample is None else block.downsample[0](y) / (1 + 1e-5) ** 0.5
            y = f(block.conv2(z) / (1 + 1e-5) ** 0.5 + shortcut)
    torch.testing.assert_close(model(x), model.fc(y.mean((2, 3))))


def test_sides_are_refused_or_brought_to_the_usual_one():
    recipe = Recipe(network=NARROW["alexnet"], augment=Augment(crop=0))
    assert build_model(recipe, 5, (120,) * 3, (60,) * 3, sides=(63,))(torch.randn(2, 3, 63, 63)).shape == (2, 5)
    with pytest.raises(UserError, match=r"^network is alexnet, and images have 62 pixels a side; allowed: 63 or more"):
        recipe.refuse_side(62)
    with pytest.raises(UserError, match=r"^network is lenet, and images have 11 pixels a side; allowed: 12 or more"):
        LeNetConfig().refuse_side(11)
    assert LeNet(side=12)(torch.randn(1, 3, 12, 12)).shape == (1, 10)
    assert [AlexNetConfig().side_for(side) for side in (32, 62, 63, 224)] == [70, 70, 63, 224]
    assert [LeNetConfig().side_for(side) for side in (8, 32)] == [8, 32]


DROPPING = dataclasses.replace(BARE, epochs=2, network=WideResNetConfig(depth=10, widen=1, dropout=0.5))
DATA = make_synthetic(48, 16)


def weights(**how) -> list[torch.Tensor]:
    return list(fastcifar.train(DROPPING, DATA, device="cpu", eval_every=0, **how).model.state_dict().values())


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_dropout_is_the_seeds_to_the_bit_and_leaves_the_process_alone():
    wanted = weights(seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert same(weights(seed=1), wanted) and torch.equal(torch.get_rng_state(), before)
    assert not same(weights(seed=1, **{"network.dropout": 0.0}), wanted)
    assert not same(weights(seed=1, **{"network.dropout": 0.25}), wanted)


def test_a_training_with_dropout_resumes_to_the_same_bits():
    trainer, kept = fastcifar.Trainer(DROPPING, DATA, "cpu"), []

    def keep(row: fastcifar.EpochRow) -> None:
        if row.epoch == 1:
            kept.append(copy.deepcopy(trainer.state.state_dict()))

    wanted = trainer.run(1, listeners=[Listener(on_epoch=keep)]).model.state_dict()
    found = fastcifar.Trainer(DROPPING, DATA, "cpu").run(resume=kept[0]).model.state_dict()
    assert same(list(found.values()), list(wanted.values()))


def test_dropout_is_off_in_evaluation_and_thins_out_in_training():
    model = made("alexnet")
    x = torch.randn(64, 3, 63, 63)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5, 0.5]


def test_copies_of_alexnet_answer_for_themselves():
    model = made("alexnet").eval()
    other, x = copy.deepcopy(model), torch.randn(2, 3, 63, 63)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other.features(x).any() and model.features(x).any()
    assert isinstance(model.get_submodule("features.0"), nn.Conv2d)


def test_an_alexnet_is_freed_without_the_collector():
    gc.disable()
    try:
        model = made("alexnet")
        model(torch.zeros(1, 3, 70, 70)), model.features(torch.zeros(1, 3, 70, 70))
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()


def test_alexnets_convolutions_are_a_sequence_as_torchvisions():
    model, images = made("alexnet").eval(), torch.randn(2, 3, 70, 70)
    pooled = F.max_pool2d(model.features[0](images).relu(), 3, stride=2)
    assert torch.equal(model.features[:3](images), pooled)
    names = list(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(twin.state_dict()) == names
        with torch.no_grad():
            twin.features[0].weight.zero_()  # the twin's own
        assert torch.equal(model.features(images), model.before_head(images)) and model.features[0].weight.any()
        assert not torch.equal(twin.features[:1](images), model.features[:1](images))


def test_lenet_refuses_images_that_are_too_small_for_it():
    with pytest.raises(UserError, match="images have 8 pixels a side; allowed: 12 or more for lenet"):
        LeNet(side=8)


@pytest.mark.parametrize("kind", ["davidnet", "speedrun"])
@pytest.mark.parametrize("channels", [1, 4])
def test_whitening_is_fitted_to_images_of_any_channels(kind, channels):
    images = torch.randint(256, (9, 12, 12, channels), dtype=torch.uint8)
    model = made(kind, mean=tuple(range(100, 100 + channels)), std=(50.0,) * channels, in_channels=channels)
    model.fit_whitening(images)
    pixels = (images.double() - torch.arange(100, 100 + channels)) / 50
    size = model.whitening.kernel_size[0]
    patches = F.unfold(pixels.permute(0, 3, 1, 2), size).transpose(0, 1).flatten(1)
    filters = model.whitening.weight.detach().double().flatten(1)[: channels * size**2]
    spread = (filters @ patches) @ (filters @ patches).T / (patches.shape[1] - 1)
    values = torch.linalg.eigvalsh(patches @ patches.T / (patches.shape[1] - 1)).flip(0)
    eps = model.whitening.eps
    torch.testing.assert_close(spread, torch.diag(values / (values + eps)), rtol=1e-3, atol=1e-3)
