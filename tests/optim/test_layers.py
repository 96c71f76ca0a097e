"""Rates and momenta by layer: SGD with them is Page's formula for each parameter, and without them the pass over whole
groups that it was."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import FlatModel, FlatSGD, build_optimizer
from fastcifar.optim.sgd import by_parameter
from fastcifar.recipes import EMAConfig, Recipe, Schedule, change
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.text import read_changes, recipe_from_dict, to_toml, tomllib
from fastcifar.training.refusals import refuse_untrainable
from tests.small import NARROW

BATCH, STEPS = 4, 5
RECIPE = Recipe(
    batch_size=BATCH,
    network=SpeedrunConfig(widths=(4, 8, 8), whitening_bias_epochs=1),
    schedule=Schedule((0, 1), (1, 0)),
    ema=EMAConfig(decay=0.9, every=2),
)
LAYERS = ("blocks.1:lr=0.5,momentum=0.7", "blocks.1.convs.1:momentum=0", "classifier:lr=3", "whitening:momentum=0.2")


def with_layers(*layers, **fields):
    return dataclasses.replace(RECIPE, optimizer=SGDConfig(lr=0.5, weight_decay=0.01, layers=layers, **fields))


def make_flat(dtype=torch.float64):
    torch.manual_seed(0)
    return FlatModel(SpeedrunNet(RECIPE.network), dtype)


def fill_gradients(flat, step):
    generator = torch.Generator().manual_seed(step)
    for group in flat.groups:
        for gradient in group.gradients:
            gradient.copy_(torch.randn(gradient.shape, generator=generator))


def test_each_parameter_is_trained_by_pages_formula_with_its_own_rate_and_momentum():
    flat, still = make_flat(), make_flat().model
    optimizer = build_optimizer(flat, with_layers(*LAYERS, momentum=0.9, bias_lr_factor=8), STEPS)
    weights = {name: p.data.clone() for name, p in still.named_parameters() if p.requires_grad}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    average = {name: w.clone() for name, w in weights.items()}
    for step in range(STEPS):
        fill_gradients(flat, step)
        gradients = {name: p.grad.clone() for name, p in flat.model.named_parameters() if p.requires_grad}
        optimizer.step()
        for name, w in weights.items():
            factor, momentum = 1.0, 0.9
            if name.startswith("blocks.1.convs.1."):
                momentum = 0.0
            elif name.startswith("blocks.1."):
                factor, momentum = 0.5, 0.7
            elif name == "classifier.weight":
                factor = 3.0
            elif name == "whitening.bias":
                momentum = 0.2
            bias = 8 if name.endswith("bias") else 1
            rate = 0.5 * (1 - (step + 1) / STEPS) * factor * bias
            change_now = rate * (gradients[name] / BATCH + 0.01 / bias * w)
            velocity[name] = momentum * velocity[name] - change_now
            w += momentum * velocity[name] - change_now
            if step % 2 == 0:
                average[name] += (1 - 0.9**2) * (w - average[name])
    averages = {}
    for group in flat.groups:
        averages |= zip(group.parameters, group.views(group.ema), strict=True)
    for name, w in weights.items():  # up to the rates on the device, which are float32
        parameter = flat.model.get_parameter(name)
        torch.testing.assert_close(parameter.data, w, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(averages[parameter], average[name], rtol=1e-6, atol=1e-6)
    for group in flat.groups:  # in the gaps too
        assert torch.equal(group.weights, group.compute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [(), ("blocks:lr=1", "classifier:momentum=0.9")], ids=["none", "the same"])
def test_without_layers_a_group_is_one_pass_with_the_same_bits(layers, dtype, monkeypatch):
    flat, whole = make_flat(dtype), make_flat(dtype)
    optimizer, calls = build_optimizer(flat, with_layers(*layers), STEPS), []
    plain = FlatSGD(whole, with_layers(), STEPS)

    def sgd(group, rates, run, **given):
        calls.append(group)
        FlatSGD.sgd(optimizer, group, rates, run, **given)

    monkeypatch.setattr(optimizer, "sgd", sgd)
    for step in range(3):
        for each in (flat, whole):
            fill_gradients(each, step)
        optimizer.step()
        for group, rates in zip(whole.groups, plain.rates, strict=True):
            factor = 64.0 if group.name == "biases" else 1.0
            plain.sgd(group, rates, lr_factor=factor, momentum=0.9, weight_decay=0.01 / factor, form="page")
        plain.finish_step()
    assert calls == flat.groups * 3
    for mine, expected in zip(flat.groups, whole.groups, strict=True):
        for buffer in ("weights", "velocity", "ema", "compute"):
            assert torch.equal(getattr(mine, buffer), getattr(expected, buffer))


def test_neighbors_with_the_same_settings_are_one_pass():
    flat = make_flat()
    optimizer = build_optimizer(flat, with_layers("blocks.0:lr=0.5", "blocks.1:lr=0.5", "blocks.2:lr=2"), STEPS)
    weights = next(group for group in flat.groups if group.name == "weights")
    ends = [span.stop for span in weights.spans]
    assert optimizer._runs[weights] == [
        (slice(0, ends[3]), 0.5, 0.9),
        (slice(ends[3], ends[5]), 2.0, 0.9),
        (slice(ends[5], ends[6]), 1.0, 0.9),
    ]


MODEL = DavidNet(NARROW)
TRAINED = {name: p for name, p in MODEL.named_parameters() if p.requires_grad}
NAMES = sorted({".".join(name.split(".")[:end]) for name in TRAINED for end in range(1, 6)})
number = st.floats(1e-4, 1e4).map(repr) | st.sampled_from(["1", "1e-3", "0.5", ".5"])
momentum = st.floats(0, 1, exclude_max=True).map(repr)
own = st.fixed_dictionaries({}, optional={"lr": number, "momentum": momentum}).filter(bool)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(NAMES), own, max_size=5), st.randoms(use_true_random=False))
def test_the_longest_name_counts_and_words_are_read_back_in_any_order(layers, random):
    words = []
    for name, values in layers.items():
        pairs = [f"{key}={value}" for key, value in values.items()]
        random.shuffle(pairs)
        words.append(f"{name}:{','.join(pairs)}")
    recipe = change(Recipe(), {"optimizer.layers": words})
    assert recipe_from_dict(tomllib.loads(to_toml(recipe))) == recipe
    found = by_parameter(recipe.optimizer, MODEL)
    assert found.keys() == set(TRAINED.values())
    for name, parameter in TRAINED.items():
        parts = name.split(".")
        above = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        values = next((layers[each] for each in above if each in layers), {})
        assert found[parameter] == (float(values.get("lr", 1)), float(values.get("momentum", 0.9)))


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab.:=,01e-9 lrmomentum") | st.characters(codec="utf-8"), max_size=30))
def test_any_word_is_taken_or_refused_in_one_line(text):
    for word in (text, f"stem:{text}", f"stem:lr={text}", f"{text}:momentum=0.5"):
        try:
            ((name, (factor, momentum)),) = SGDConfig(layers=(word,)).by_layer().items()
        except UserError as error:
            assert "optimizer.layers" in str(error) and "; allowed: " in str(error) and "\n" not in str(error)
        else:
            assert word.startswith(f"{name}:") and name and 0 < factor <= 1e4 and 0 <= momentum < 1


FORM = "allowed: words NAME:lr=FACTOR, NAME:momentum=NUMBER or NAME:lr=FACTOR,momentum=NUMBER"
REFUSED = {
    "stem": f"optimizer.layers has 'stem'; {FORM}",
    "stem:": f"optimizer.layers has 'stem:'; {FORM}",
    ":lr=1": f"optimizer.layers has ':lr=1'; {FORM}",
    "stem:lr=1,lr=2": f"optimizer.layers has 'stem:lr=1,lr=2'; {FORM}",
    "stem:lr=1,": f"optimizer.layers has 'stem:lr=1,'; {FORM}",
    "stem:rate=1": f"optimizer.layers has 'stem:rate=1'; {FORM}",
    "stem:lr": "lr in 'stem:lr' of optimizer.layers is ''; allowed: a number",
    "stem:lr=x": "lr in 'stem:lr=x' of optimizer.layers is 'x'; allowed: a number",
    "stem:lr=nan": "lr in 'stem:lr=nan' of optimizer.layers is nan; allowed: a finite number",
    "stem:lr=0": "lr in 'stem:lr=0' of optimizer.layers is 0.0; allowed: above 0, up to 10000",
    "stem:momentum=1": "momentum in 'stem:momentum=1' of optimizer.layers is 1.0; allowed: 0 up to, not including, 1",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_word_that_says_nothing_is_refused_wherever_it_is_given(word):
    with pytest.raises(UserError) as refusal:
        SGDConfig(layers=("classifier:lr=2", word))
    assert str(refusal.value) == REFUSED[word]
    with pytest.raises(UserError) as refusal:
        change(Recipe(), read_changes([f'optimizer.layers=["{word}"]']))
    assert str(refusal.value).endswith(REFUSED[word])


def test_a_name_twice_is_refused():
    with pytest.raises(UserError, match=r"^optimizer\.layers has 'stem' twice; allowed: one word for a name$"):
        SGDConfig(layers=("stem:lr=2", "layers.0:lr=1", "stem:momentum=0.5"))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("stme", "; did you mean 'stem'?"),
        ("layers.0.blok", "; did you mean 'layers.0.block'?"),
        ("layer", "; did you mean 'layers'?"),
        ("stem.norm.weight", "; did you mean 'stem.conv.weight'?"),  # which does not train
        ("xyz", ""),
    ],
)
def test_a_name_of_nothing_that_trains_is_refused_before_a_training(name, near):
    recipe = change(Recipe(network=NARROW), {"optimizer.layers": [f"{name}:lr=2"]})
    said = f"optimizer.layers has '{name}', and no trained parameter of the network is named so{near}"
    for refuse in (
        lambda: build_optimizer(FlatModel(DavidNet(NARROW)), recipe, STEPS),
        lambda: refuse_untrainable(recipe, make_synthetic(512, 8), {}),
    ):
        with pytest.raises(UserError) as refusal:
            refuse()
        assert str(refusal.value) == f"{said}; allowed: stem, layers, classifier, and names below these"


def test_a_rate_does_not_change_what_is_said_of_the_weights():
    optimizer = build_optimizer(make_flat(), with_layers("blocks.0:lr=7"), STEPS)
    assert math.isclose(optimizer.learning_rate(0), 0.5 * (1 - 1 / STEPS))
