"""Cold start, warm start and shrink-perturb, exact to the bit at their ends for every network."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastcifar import ColdStart, ShrinkPerturb, WarmStart
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.models.mlp import MLP as MLPNet
from fastcifar.recipes import EMAConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Trainer, initialize, train
from tests.small import DAVIDNET

RECIPE = dataclasses.replace(
    DAVIDNET, epochs=1, optimizer=SGDConfig(lr=0.1, bias_lr_factor=1.0), ema=EMAConfig(decay=0.5, every=1)
)
RESNET = dataclasses.replace(RECIPE, network=ResNet18Config(width=2, stem="imagenet"))
MLP = dataclasses.replace(RECIPE, network=MLPConfig(hidden=(6,)))
SPEEDRUN = dataclasses.replace(RECIPE, network=SpeedrunConfig(widths=(4, 4, 8)))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


@pytest.fixture(scope="module", params=(RECIPE, RESNET, MLP, SPEEDRUN), ids=lambda recipe: recipe.network.kind)
def recipe(request):
    return request.param


@pytest.fixture(scope="module")
def source(recipe, data, tmp_path_factory):
    """Return the folder of a run of `recipe` with seed 1."""
    return train(recipe, data, seed=1).save(tmp_path_factory.mktemp(recipe.network.kind) / "run")


def make_model(recipe, seed, start=None, classes=10):
    torch.manual_seed(seed)
    model = build_model(recipe, classes, (127.5,) * 3, (60.0,) * 3)
    if start:
        initialize(model, start)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_warm_start_has_the_weights_of_its_source(recipe, source):
    weights = load_file(source / "model.safetensors")
    for start in (
        WarmStart(source),
        WarmStart(str(source / "model.safetensors")),
        ShrinkPerturb(source, shrink=1, perturb=0),
    ):
        assert same(make_model(recipe, 2, start), weights)
    assert not same(make_model(recipe, 2), weights)


def test_shrink_0_perturb_1_is_the_cold_start(recipe, source):
    cold = make_model(recipe, 2)
    assert same(make_model(recipe, 2, ColdStart()), cold)
    assert same(make_model(recipe, 2, ShrinkPerturb(source, shrink=0, perturb=1)), cold)


def test_a_training_from_either_end_is_the_cold_or_the_warm_one_to_the_bit(recipe, source, data):
    trainer = Trainer(recipe, data)
    cold, warm = trainer.run(5), trainer.run(5, init=WarmStart(source))
    assert not same(cold.state, warm.state)
    assert same(trainer.run(5, init=ShrinkPerturb(source, shrink=0, perturb=1)).state, cold.state)
    assert same(trainer.run(5, init=ShrinkPerturb(source, shrink=1, perturb=0)).state, warm.state)
    assert same(train(recipe, data, seed=5, init=WarmStart(source)).state, warm.state)


def test_each_kind_of_tensor_is_mixed_by_its_own_rule(recipe, source):
    weights, fresh = load_file(source / "model.safetensors"), make_model(recipe, 2)
    mixed = make_model(recipe, 2, ShrinkPerturb(source, shrink=0.4, perturb=0.1))
    for name, tensor in mixed.items():
        scale = "norm" in name and name.endswith(".weight")
        if name == "whitening.weight" or (recipe in (RECIPE, SPEEDRUN) and scale):  # frozen
            expected = weights[name]
        elif "running" in name:
            expected = 0.8 * weights[name] + 0.2 * fresh[name]
        else:
            expected = 0.4 * weights[name] + 0.1 * fresh[name]
        torch.testing.assert_close(tensor, expected, msg=name)


def test_trained_scales_are_mixed_as_other_weights(tmp_path):
    recipe = dataclasses.replace(RECIPE, network=dataclasses.replace(RECIPE.network, freeze_scale=False))
    weights = make_model(recipe, 1)
    save_file(weights, tmp_path / "source.safetensors")
    mixed = make_model(recipe, 2, ShrinkPerturb(tmp_path / "source.safetensors", shrink=0.5, perturb=0.25))
    assert (mixed["stem.norm.weight"] == 0.75).all()


def test_the_sources_whitening_is_kept_unless_nothing_else_is(tmp_path, data):
    folder = train(RECIPE, data, seed=1).save(tmp_path / "run")
    kept = load_file(folder / "model.safetensors")["whitening.weight"]
    others = make_synthetic(64, 20, seed=1)
    trainer = Trainer(RECIPE, others)
    for start, expected in (
        (WarmStart(folder), kept),
        (ShrinkPerturb(folder), kept),
        (ShrinkPerturb(folder, shrink=0, perturb=1), train(RECIPE, others).state["whitening.weight"]),
    ):
        assert torch.equal(trainer.run(0, init=start).state["whitening.weight"], expected)
    assert not torch.equal(kept, expected)


def test_averages_start_afresh_from_the_warm_weights(recipe, source, data):
    """A rate of nearly nothing: the average that is evaluated can then only be the source."""
    slow = dataclasses.replace(recipe, optimizer=SGDConfig(lr=1e-30, bias_lr_factor=1.0), ema=EMAConfig(0.99, every=1))
    run, weights = train(slow, data, init=WarmStart(source)), load_file(source / "model.safetensors")
    assert all(torch.equal(run.state[name], weights[name]) for name in weights if "running" not in name)


def test_the_record_names_mode_factors_and_the_hash_of_the_source(recipe, source, data):
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    record = train(recipe, data, init=ShrinkPerturb(source)).record
    assert record.to_json()["init"] == {
        "mode": "shrink-perturb",
        "source": str(source),
        "sha256": digest,
        "shrink": 0.4,
        "perturb": 0.1,
        "reset_head": False,
    }
    assert WarmStart(source, reset_head=True).describe() == {
        **record.init,
        "mode": "warm",
        "shrink": 1.0,
        "perturb": 0.0,
        "reset_head": True,
    }
    assert ColdStart().describe() == {"mode": "cold"}


def test_a_reset_head_is_fresh_and_may_differ_in_shape(recipe, source):
    weights = load_file(source / "model.safetensors")
    for start in (WarmStart(source, reset_head=True), ShrinkPerturb(source, reset_head=True)):
        for classes in (10, 3):
            fresh, mixed = make_model(recipe, 2, classes=classes), make_model(recipe, 2, start, classes)
            changed = {name for name in fresh if not torch.equal(fresh[name], mixed[name])}
            assert not any(name.startswith(("classifier", "fc")) for name in changed)
            assert {name for name in weights if weights[name].dim() == 4 or name == "hidden.0.weight"} <= changed
    with pytest.raises(UserError, match=r"do not fit the network: (classifier|fc)\.\w+ is \[10.*\] for \[3"):
        make_model(recipe, 2, WarmStart(source), classes=3)


def test_weights_that_do_not_fit_are_refused_with_the_names_that_differ(tmp_path):
    recipe = MLP
    weights = make_model(recipe, 1)
    weights["extra"] = torch.zeros(2)
    weights["hidden.0.weight"] = torch.zeros(7, 3072)
    del weights["hidden.0.bias"]
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError) as refusal:
        make_model(recipe, 2, WarmStart(tmp_path / "other.safetensors"))
    assert str(refusal.value) == (
        f"the weights in {tmp_path}/other.safetensors do not fit the network: extra is [2] for none here, "
        "hidden.0.bias is absent for [6], hidden.0.weight is [7, 3072] for [6, 3072]; "
        "allowed: the same names and shapes, the classifier's apart with --reset-head (reset_head=True)"
    )
    save_file(make_model(RESNET, 1), tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match=r"bn1.bias is \[2\] for none here, .* and \d+ more; allowed") as refusal:
        make_model(recipe, 2, WarmStart(tmp_path / "resnet.safetensors"))
    assert "\n" not in str(refusal.value)


def test_a_file_of_torchvisions_tensors_fits_resnet18(tmp_path):
    recipe = RESNET
    weights = make_model(recipe, 1)
    counters = {f"{name.removesuffix('running_var')}num_batches_tracked": torch.tensor(3) for name in weights}
    save_file({**weights, **{name: count for name, count in counters.items() if "bn" in name}}, tmp_path / "tv.st")
    assert same(make_model(recipe, 2, WarmStart(tmp_path / "tv.st")), weights)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"shrink": -0.1}, "shrink is -0.1; allowed: 0 to 1"),
        ({"shrink": 1.1}, "shrink is 1.1; allowed: 0 to 1"),
        ({"shrink": float("nan")}, "shrink is nan; allowed: a finite number"),
        ({"perturb": -1}, "perturb is -1; allowed: 0 or more"),
        ({"perturb": float("inf")}, "perturb is inf; allowed: a finite number"),
        ({"shrink": 0, "perturb": 0}, "shrink and perturb are both 0, which leaves no weights; allowed: one of them"),
    ],
)
def test_factors_out_of_range_are_refused(factors, message, source):
    with pytest.raises(UserError, match=message):
        ShrinkPerturb(source, **factors)


def test_a_source_that_is_not_there_or_is_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist; allowed: the folder of a saved run, or a file"):
        WarmStart(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run: model.safetensors is missing; allowed: the folder of a saved"):
        ShrinkPerturb(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(
        UserError, match=r"cannot read the weights in .*; allowed: a whole .safetensors file"
    ) as refusal:
        make_model(RECIPE, 2, WarmStart(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_file_that_changes_after_it_was_described_is_refused(tmp_path, data):
    save_file(make_model(MLP, 1), tmp_path / "model.safetensors")
    start = WarmStart(tmp_path)
    described = start.describe()
    save_file(make_model(MLP, 2), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="changed while it was read; allowed"):
        initialize(Trainer(MLP, data).new_network(0), start, described["sha256"])


@pytest.mark.parametrize("start", [WarmStart, ShrinkPerturb])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("kind", ["weight", "running_var"])
def test_weights_that_are_not_finite_are_refused(value, kind, start, tmp_path):
    weights = {name: tensor.double() for name, tensor in make_model(RECIPE, 1).items()}
    name = next(name for name in weights if name.endswith(kind))
    weights[name].view(-1)[1:3] = value
    save_file(weights, tmp_path / "model.safetensors")
    what = "values that are too large" if value == 1e300 else "NaN or infinite values"
    message = f"hold {what}, 2 of {weights[name].numel()} in {name}(?: for float32; allowed: |; allowed: finite ones)"
    with pytest.raises(UserError, match=message):
        make_model(RECIPE, 2, start(tmp_path))


def test_a_classifier_that_is_reset_may_have_been_anything(tmp_path):
    weights = make_model(MLP, 1)
    head = [name for name in weights if name.startswith(f"{MLPNet.head}.")]
    for name in head:
        weights[name].fill_(float("nan"))
    save_file(weights, tmp_path / "model.safetensors")
    made = make_model(MLP, 2, WarmStart(tmp_path, reset_head=True))
    assert head and all(tensor.isfinite().all() for tensor in made.values())


@pytest.mark.parametrize("number", [np.float32, np.array, torch.tensor])
def test_factors_of_numpy_and_torch_are_pythons(number, tmp_path):
    save_file(make_model(MLP, 1), tmp_path / "model.safetensors")
    start = ShrinkPerturb(tmp_path, number(0.5), number(0.25), np.bool_(True))
    assert start == ShrinkPerturb(tmp_path, 0.5, 0.25, True)
    assert json.loads(json.dumps(start.describe())) == start.describe()
    with pytest.raises(UserError, match="reset_head is 1; allowed: true or false"):
        WarmStart(tmp_path, np.int64(1))
