"""FIRE, DASH, factors by layer and resets as starts of a training: what is changed, when, and what stays."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from fastcifar import ColdStart, Dash, Fire, Listener, ShrinkPerturb, Start, Trainer, WarmStart, train
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import build_model
from fastcifar.plasticity import dash, fire
from fastcifar.recipes import change
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.start import STARTS, check_entry, read_start
from fastcifar.training import initialize, methods
from tests.small import DAVIDNET, MLP

RECIPE = dataclasses.replace(DAVIDNET, epochs=1)
RESNET = dataclasses.replace(RECIPE, network=ResNet18Config(width=2, stem="imagenet"))
DATA = make_synthetic(72, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function of a recipe that returns the folder of a run of it."""
    found = {}

    def run(recipe):
        if recipe not in found:
            folder = tmp_path_factory.mktemp("source") / "run"
            found[recipe] = train(recipe, DATA, seed=1, device="cpu").save(folder)
        return found[recipe]

    return run


def begun(recipe, start, seed=5, data=DATA, **parts):
    """Return the master weights that a training from `start` begins with."""
    trainer = Trainer(recipe, data, "cpu", **parts)
    trainer.reset(seed, start)
    return trainer.state.flat.state_dict()


def fresh(recipe, seed=5):
    return begun(recipe, ColdStart(), seed)


def given(recipe, folder):
    """Return the network of `recipe` with the weights in `folder`, in training mode."""
    model = build_model(recipe, 10, DATA.mean, DATA.std)
    initialize(model, WarmStart(folder))
    return model


def differ(one, other):
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("recipe", [RECIPE, RESNET, MLP], ids=["davidnet", "resnet18", "mlp"])
@pytest.mark.parametrize("steps", [0, 10])
def test_a_training_begins_with_what_fire_makes_of_its_source(recipe, steps, folders):
    model = given(recipe, folders(recipe))
    fire(model, steps)
    found = begun(recipe, Fire(folders(recipe), steps))
    assert not differ(found, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    source = load_file(folders(recipe) / "model.safetensors")
    changed = differ(found, source)
    assert changed == {name for name in source if source[name].dim() > 1} - {"whitening.weight"}


def test_dash_takes_the_mean_losses_of_plain_batches_in_the_datas_order(folders):
    recipe = dataclasses.replace(RECIPE, batch_size=32, label_smoothing=0.2)
    mean, std = torch.tensor(DATA.mean), torch.tensor(DATA.std)
    images = ((DATA.train.images.float() - mean) / std).permute(0, 3, 1, 2)
    # the last batch of 8 images is half a ghost batch, which is left out
    batches = [(images[at : at + 32], DATA.train.labels[at : at + 32]) for at in (0, 32)]
    model = given(recipe, folders(RECIPE))
    dash(model, batches, lambda x, y: F.cross_entropy(x, y, label_smoothing=0.2), floor=0.1, alpha=0.5)
    found = begun(recipe, Dash(folders(RECIPE), 0.1, 0.5))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    changed = differ(found, load_file(folders(RECIPE) / "model.safetensors"))
    assert changed == {name for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad}


def test_dash_takes_the_loss_of_the_training(folders):
    losses = []

    def loss(logits, labels):
        losses.append(len(labels))
        return F.cross_entropy(logits, labels, reduction="none")

    begun(MLP, Dash(folders(MLP)), loss=loss)
    assert losses == [16, 16, 16, 16, 8]


@pytest.mark.parametrize("method", [Fire, Dash])
def test_a_network_in_bfloat16_begins_with_the_same_weights_in_float32(method, folders):
    wanted = begun(RECIPE, method(folders(RECIPE)))
    half = Trainer(dataclasses.replace(RECIPE, dtype="bfloat16"), DATA, "cpu")
    half.reset(5, method(folders(RECIPE)))
    found = half.state.flat.state_dict()
    changing = [name for name in wanted if name != "whitening.weight"]  # a frozen one is in bfloat16 itself
    assert all(torch.equal(found[name], wanted[name]) for name in changing)
    filters = half.model.get_parameter("stem.conv.weight")
    assert filters.dtype == torch.bfloat16 and torch.equal(filters, wanted["stem.conv.weight"].bfloat16())


@pytest.mark.parametrize("start", [Fire, Dash])
def test_frozen_layers_and_whitening_are_the_sources(start, folders):
    recipe, source = dataclasses.replace(RECIPE, freeze="3"), load_file(folders(RECIPE) / "model.safetensors")
    changed = differ(begun(recipe, start(folders(RECIPE))), source)
    assert "stem.conv.weight" not in changed and "classifier.weight" in changed
    run = Trainer(RECIPE, make_synthetic(72, 20, seed=1), "cpu").run(0, init=start(folders(RECIPE)))
    assert torch.equal(run.state["whitening.weight"], source["whitening.weight"])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "start", [WarmStart, Fire, Dash, lambda path: ShrinkPerturb(path, 0.4, 0.1), lambda path: ColdStart(scale=3.0)]
)
def test_what_a_recipe_freezes_is_the_sources_or_fresh_whatever_the_start(start, mode, folders):
    recipe = dataclasses.replace(RECIPE, freeze="3", frozen_mode=mode)
    start = start(folders(RECIPE))
    wanted = fresh(RECIPE) if isinstance(start, ColdStart) else load_file(folders(RECIPE) / "model.safetensors")
    network = Trainer(recipe, DATA, "cpu").network
    frozen = {name for name in network.frozen_from if "whitening" not in name}
    if mode == "eval":
        frozen |= {
            f"{name}.running_{what}"
            for name, each in network.module.named_modules()
            if isinstance(each, nn.BatchNorm2d) and not each.training
            for what in ("mean", "var")
        }
    assert len(frozen) > (mode == "eval") and not differ(begun(recipe, start), wanted) & frozen


@pytest.mark.parametrize("method", [WarmStart, Fire, Dash, lambda path, **how: ShrinkPerturb(path, 0.4, 0.1, **how)])
def test_what_is_reset_is_fresh_whatever_the_method_does_to_the_rest(method, folders):
    source, cold = folders(RESNET), fresh(RESNET)
    whole = begun(RESNET, method(source))
    assert differ(begun(RESNET, method(source, reset=("head",))), cold) >= {"conv1.weight"}
    assert method(source, reset=("head",)) == method(source, reset_head=True)
    assert method(source, reset=("head",)).describe() == method(source, reset_head=True).describe()
    last = {name for name in cold if name.startswith(("fc.", "layer4.1.bn2.", "layer4.1.conv2."))}
    for reset, names in {
        ("last-1",): {"fc.weight", "fc.bias"},
        ("last-3",): last,
        ("statistics",): {name for name in cold if "running" in name},
        ("last-3", "statistics"): last | {name for name in cold if "running" in name},
    }.items():
        found = begun(RESNET, method(source, reset=reset))
        assert all(torch.equal(found[name], cold[name]) for name in names)
        if method is not Dash:  # whose gradients are those of the network with its fresh layers
            assert differ(found, whole) <= names
        assert differ(found, cold) & {"conv1.weight"}


def test_the_layers_that_are_reset_may_have_any_shape_and_too_many_are_refused(folders, tmp_path):
    weights = load_file(folders(MLP) / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = torch.zeros(3)
    weights["classifier.more"] = torch.zeros(1)
    save_file(weights, tmp_path / "other.safetensors")
    found = begun(MLP, WarmStart(tmp_path / "other.safetensors", reset=("last-1",)))
    assert torch.equal(found["classifier.weight"], fresh(MLP)["classifier.weight"])
    with pytest.raises(
        UserError, match="reset has 'last-2', and the network has 2 layers with parameters; allowed: up"
    ):
        begun(MLP, WarmStart(folders(MLP), reset=("last-2",)))
    members = change(MLP, {"ensemble.members": 2})
    with pytest.raises(UserError, match="reset has 'last-1' for a network of 2; allowed: statistics, or one network"):
        begun(members, Fire(train(members, DATA).save(tmp_path / "run"), reset=("last-1",)))


def test_the_seed_of_a_start_names_its_fresh_weights_alone(folders):
    source, head = folders(MLP), ("classifier.weight", "classifier.bias")
    found = begun(MLP, WarmStart(source, reset_head=True, seed=9))
    assert all(torch.equal(found[name], fresh(MLP, 9)[name]) for name in head)
    mixed, cold = begun(MLP, ShrinkPerturb(source, 0, 1, seed=9)), fresh(MLP, 9)
    assert not differ(mixed, cold)
    trainer = Trainer(MLP, DATA, "cpu")
    one, other = trainer.run(5, init=ShrinkPerturb(source, 0, 1, seed=9)), trainer.run(5, init=ColdStart(9))
    assert not differ(one.state, other.state)


@pytest.mark.parametrize("recipe", [RECIPE, RESNET, MLP], ids=["davidnet", "resnet18", "mlp"])
def test_factors_by_layer_are_exact_at_their_ends(recipe, folders):
    tops = {name.partition(".")[0] for name, p in given(recipe, folders(recipe)).named_parameters() if p.requires_grad}
    source = load_file(folders(recipe) / "model.safetensors")
    warm = tuple(f"{top}:shrink=1,perturb=0" for top in tops)
    assert not differ(begun(recipe, ShrinkPerturb(folders(recipe), 0.4, 0.1, layers=warm)), source)
    cold = tuple(f"{top}:shrink=0,perturb=1" for top in tops)
    assert not differ(begun(recipe, ShrinkPerturb(folders(recipe), 0, 0.5, layers=cold)), fresh(recipe))


def test_the_longest_name_counts_and_statistics_follow_their_layer(folders):
    source, cold = load_file(folders(RESNET) / "model.safetensors"), fresh(RESNET)
    layers = ("layer4:shrink=0.2,perturb=0.5", "layer4.1.bn2:perturb=0.6", "fc:shrink=0,perturb=1")
    found = begun(RESNET, ShrinkPerturb(folders(RESNET), 0.4, 0.1, layers=layers))
    for name, tensor in found.items():
        s, p = (
            (0.4, 0.6) if name.startswith("layer4.1.bn2.") else (0.2, 0.5) if name.startswith("layer4.") else (0.4, 0.1)
        )
        s, p = (0, 1) if name.startswith("fc.") else (s, p)
        s, p = (s / (s + p), p / (s + p)) if "running" in name else (s, p)
        torch.testing.assert_close(tensor, s * source[name] + p * cold[name], msg=name)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            ("fc",),
            r"layers \(--shrink-layers\) has 'fc'; allowed: words NAME:shrink=S, NAME:perturb=P or NAME:shrink=S,",
        ),
        (("fc:lr=1",), r"layers \(--shrink-layers\) has 'fc:lr=1'; allowed: words NAME:shrink=S"),
        (("fc:shrink=2",), r"shrink in 'fc:shrink=2' of layers .* is 2.0; allowed: 0 to 1"),
        (("fc:shrink=0", "fc:perturb=1"), r"layers .* has 'fc' twice; allowed: one word for a name"),
        (("fc:shrink=0,perturb=0",), "shrink and perturb of 'fc' are both 0, which leaves no weights; allowed: one of"),
        (
            ("layr4:shrink=1",),
            r"has 'layr4', and no trained parameter .*; did you mean 'layer4'.*; allowed: conv1,",
        ),
    ],
)
def test_words_for_layers_that_are_wrong_are_refused(layers, said, folders):
    with pytest.raises(UserError, match=said):
        begun(RESNET, ShrinkPerturb(folders(RESNET), layers=layers))


def test_the_work_of_a_method_is_training_time_and_a_phase_of_its_own(folders, monkeypatch):
    trainer = Trainer(MLP, DATA, "cpu")
    compute = methods.compute
    monkeypatch.setattr(methods, "compute", lambda *args: 1000 + compute(*args))
    run = trainer.run(0, init=Fire(folders(MLP)))
    assert 1000 < run.train_seconds < run.time_seconds and run.record.phases["training: start"] > 0
    warm = trainer.run(0, init=WarmStart(folders(MLP)))
    assert warm.train_seconds < 1000 and "training: start" not in warm.record.phases


@pytest.mark.parametrize("method", [Fire, Dash])
def test_a_training_goes_on_from_a_state_without_the_methods_work(method, folders, monkeypatch):
    recipe, states = dataclasses.replace(MLP, epochs=2), []
    start = method(folders(MLP), reset=("last-1",))

    def keep(step, total_steps):
        if step == 3:
            states.append(trainer.state.state_dict())

    trainer = Trainer(recipe, DATA, "cpu")
    whole = trainer.run(4, init=start, listeners=[Listener(on_step=keep)])
    again = trainer.run(4, init=start)
    monkeypatch.setattr(methods, "compute", None)
    resumed = Trainer(recipe, DATA, "cpu").run(4, init=start, resume=states[0])
    assert not differ(whole.state, resumed.state) and not differ(whole.state, again.state)
    assert resumed.record.init == whole.record.init == start.describe()


def test_dash_takes_batches_of_its_own_size(folders):
    sizes = []

    def loss(logits, labels):
        sizes.append(len(labels))
        return F.cross_entropy(logits, labels, reduction="none")

    begun(MLP, Dash(folders(MLP), batch=32), loss=loss)
    begun(RECIPE, Dash(folders(RECIPE), batch=48), loss=loss)
    begun(MLP, Dash(folders(MLP), batch=1000), loss=loss)
    assert sizes == [32, 32, 8, 48, 16, 72]
    with pytest.raises(UserError, match="batch of the start dash is 40; allowed: 0, or a multiple of network"):
        train(RECIPE, DATA, init=Dash(folders(RECIPE), batch=40))
    with pytest.raises(UserError, match="batch is 1; allowed: 0, or 2 or more images"):
        Dash(folders(MLP), batch=1)


@pytest.mark.parametrize("start", [WarmStart, Fire])
def test_weights_that_do_not_fit_are_refused_before_anything_is_compiled(start, folders, monkeypatch):
    trainer, source = Trainer(RECIPE, DATA, "cpu"), folders(MLP)
    monkeypatch.setattr(trainer, "rehearse", None)
    with pytest.raises(UserError, match="do not fit the network"):
        trainer.run(init=start(source))


@pytest.mark.parametrize("method", [Fire, Dash])
def test_weights_that_are_computed_from_others_are_refused_by_name(method, tmp_path):
    def normed(classes):
        made = nn.utils.parametrizations.weight_norm(nn.Linear(3072, 8))
        return nn.Sequential(nn.Flatten(), made, nn.ReLU(), nn.Linear(8, classes))

    source = train(MLP, DATA, model=normed).save(tmp_path / "run")
    with pytest.raises(UserError, match=r"^1\.weight is computed from other parameters; allowed: "):
        train(MLP, DATA, model=normed, init=method(source))
    assert train(MLP, DATA, model=normed, init=WarmStart(source)).record.init["mode"] == "warm"


def test_dash_is_refused_for_several_losses(folders):
    recipe = change(MLP, {"ensemble.members": 2, "ensemble.joint": "sum"})
    with pytest.raises(UserError, match="the start is dash for Members of several outputs; allowed: one output"):
        train(recipe, DATA, init=Dash(folders(MLP)))


def test_entries_of_the_record_are_those_that_are_not_the_default_and_are_read_back(folders):
    source = folders(MLP)
    sha256 = {"source": str(source), "sha256": WarmStart(source).describe()["sha256"]}
    fire_entry = {"mode": "fire", **sha256, "steps": 0, "reset_head": False}
    assert Fire(source).describe() == fire_entry
    settings = {"floor": 0.3, "alpha": 0.3, "batch": 0}
    assert Dash(source).describe() == {"mode": "dash", **sha256, **settings, "reset_head": False}
    assert Fire(source, reset=("last-2", "head"), seed=3).describe() == {
        **fire_entry, "reset_head": True, "reset": ["last-2"], "seed": 3
    }  # fmt: skip
    mixed = ShrinkPerturb(source, layers=("fc:shrink=0",))
    assert mixed.describe() == {**ShrinkPerturb(source).describe(), "layers": ["fc:shrink=0"]}
    assert "layers" not in ShrinkPerturb(source).describe()
    for cls in STARTS.values():
        for how in ({}, {"reset": ("last-2", "statistics"), "seed": 0, "reset_head": None}):
            entry = cls(source, **how).describe()
            assert json.loads(json.dumps(entry)) == entry and isinstance(cls(source, **how), Start)
            check_entry(entry)
            for wrong in ({**entry, "extra": 1}, {**entry, "sha256": 1}, {**entry, "mode": "cold"}):
                with pytest.raises(UserError):
                    check_entry(wrong)
            for name in entry.keys() - {"mode", "reset", "seed"}:
                with pytest.raises(UserError):
                    check_entry({key: value for key, value in entry.items() if key != name})


def test_one_form_of_what_is_the_same(folders):
    source = folders(MLP)
    words = ("statistics", "last-2", "last-10", "last-2", "statistics", "head")
    one, other = WarmStart(source, reset=words), WarmStart(source, reset=("last-10", "statistics"), reset_head=True)
    assert one == other and one.describe() == other.describe()
    words = ("fc:shrink=1", "conv1:perturb=0")
    assert ShrinkPerturb(source, layers=words) == ShrinkPerturb(source, layers=words[::-1])
    assert ShrinkPerturb(source, layers=words).describe()["layers"] == ["conv1:perturb=0", "fc:shrink=1"]


def test_words_for_starts_are_read():
    for name, cls in STARTS.items():
        if cls is not WarmStart:  # which has none of its own
            assert read_start(f"{name}:{cls.example}")[1].keys() == set(cls.settings)
    assert read_start("warm") == (WarmStart, {})
    assert read_start("fire:steps=10") == (Fire, {"steps": 10})
    assert read_start("dash:alpha=1") == (Dash, {"alpha": 1.0})
    assert read_start("shrink-perturb:shrink=0.4,perturb=0.1") == (ShrinkPerturb, {"shrink": 0.4, "perturb": 0.1})
    for word in (
        "",
        "cold",
        "fire:",
        "fire:steps=1,steps=2",
        "fire:steps=1.5",
        "dash:floor=nan",
        "dash:reset=a",
        "warm:",
    ):
        with pytest.raises(UserError, match="; allowed: "):
            read_start(word)


@pytest.mark.parametrize("word", ["last-0", "last-", "last", "heads", "last-2 ", ""])
def test_other_words_to_reset_are_refused(word, folders):
    with pytest.raises(UserError, match=r"reset has .*; allowed: head, statistics, and last-1, last-2,"):
        WarmStart(folders(MLP), reset=(word,))


@pytest.mark.parametrize("start", [ColdStart(), ColdStart(scale=0.5), ColdStart(seed=3, scale=2.0)])
def test_l2_init_pulls_toward_the_weights_that_a_cold_start_begins_with(start):
    trainer = Trainer(dataclasses.replace(MLP, l2_init=0.01), DATA, "cpu")
    trainer.reset(5, start)
    anchors = trainer.state.optimizer.state_dict()["anchors"]
    assert all(map(torch.equal, anchors, (group.weights for group in trainer.state.flat.groups)))
