"""Frozen layers, features computed once, and the best epoch's weights."""

import dataclasses

import pytest
import torch

from fastcifar import ResNet18Config, Trainer, UserError, WarmStart, get_recipe, load_dataset, recipe_for, train
from fastcifar.errors import Notice
from fastcifar.models import build_model
from fastcifar.recipes import change
from fastcifar.recipes.networks.wideresnet import WideResNetConfig
from fastcifar.record import RunRecord
from fastcifar.training import Listener
from fastcifar.training.state_file import read_state, write_state
from tests.small import ALEXNET, DAVIDNET, MLP

SMALL = {"network.width": 4, "network.stem": "cifar", "epochs": 2, "dtype": "float32", "batch_size": 20}
EXTRACT = change(get_recipe("extract-adam"), {**SMALL, "optimizer.lr": 0.05})


@pytest.fixture(scope="module")
def data():
    return load_dataset("synthetic").take(130, seed=0).hold_out(30)


def changed(trainer, run):
    fresh = trainer.new_network(0).module.state_dict()
    return {name for name, tensor in fresh.items() if not torch.equal(tensor, run.state[name])}


@pytest.mark.parametrize("optimizer", ["Adam", "sgd", "muon", "lars"])
def test_a_frozen_backbone_keeps_its_weights_and_its_average(data, optimizer):
    changes = {"freeze": "backbone", "frozen_mode": "eval", "optimizer": optimizer, "ema.decay": 0.5}
    trainer = Trainer(change(EXTRACT, {**changes, "optimizer.weight_decay": 0.1}), data, "cpu")
    assert changed(trainer, trainer.run()) == {"fc.weight", "fc.bias"}


def test_in_training_mode_the_running_statistics_move_as_in_the_tutorial(data):
    trainer = Trainer(EXTRACT, data, "cpu")
    names = changed(trainer, trainer.run())
    assert {name for name in names if "running" not in name} == {"fc.weight", "fc.bias"}
    assert "layer4.1.bn2.running_var" in names


def test_the_tutorial_s_loop_gives_the_same_weights(data):
    trainer = Trainer(change(EXTRACT, {"epochs": 1, "optimizer": "SGD", "optimizer.lr": 0.1}), data, "cpu")
    start, orders = trainer.new_network(0), []
    run = trainer.run(
        listeners=[Listener(on_start=lambda each: orders.append(each.state.tensors.plan.indices.clone()))]
    )
    model = start.module.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.fc.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1, momentum=0.9)
    pixels = data.train.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    for indices in orders[0].split(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels[indices]), data.train.labels[indices]).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(run.state[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("layers", "last"), [("1", "conv1"), ("2", "bn1"), ("3", "layer1.0.conv1")])
def test_the_first_layers_are_frozen_and_no_gradients_are_computed_below_the_lowest_trained(data, layers, last):
    trainer = Trainer(change(EXTRACT, {"freeze": layers, "frozen_mode": "eval", "epochs": 1}), data, "cpu")
    names = [name for name, _ in trainer.new_network(0).named_parameters()]
    below = {*names[: 1 + max(place for place, name in enumerate(names) if name.startswith(f"{last}."))]}
    needed = []
    trainer.network.get_submodule(last).register_forward_hook(lambda *call: needed.append(call[2].requires_grad))
    run = trainer.run()
    assert set(names) - changed(trainer, run) == below
    assert needed[:5] == [False] * 5


@pytest.mark.parametrize(
    ("network", "layers", "off"),
    [
        (dataclasses.replace(ALEXNET, dropout=0.5), 5, set()),
        (dataclasses.replace(ALEXNET, dropout=0.5), 6, {"classifier.0"}),
        (dataclasses.replace(ALEXNET, dropout=0.5), 7, {"classifier.0", "classifier.3"}),
        (WideResNetConfig(depth=10, widen=1, dropout=0.5), 4, set()),  # conv1, bn1, conv1, bn2, dropout, conv2
        (WideResNetConfig(depth=10, widen=1, dropout=0.5), 5, {"groups.0.0.dropout"}),
    ],
)
def test_dropout_between_frozen_layers_is_off_with_them(network, layers, off):
    recipe = dataclasses.replace(EXTRACT, network=network, freeze=str(layers), frozen_mode="eval")
    model = build_model(recipe, 10, (0.0,) * 3, (1.0,) * 3, sides=(70,))
    dropouts = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Dropout)}
    assert {name for name, each in dropouts.items() if not each.training} == off
    assert model.training and dropouts


def test_nothing_is_frozen_by_default(data):
    trainer = Trainer(change(EXTRACT, {"freeze": "none", "epochs": 1}), data, "cpu")
    names = {name for name, _ in trainer.new_network(0).named_parameters()}
    assert names <= changed(trainer, trainer.run())


@pytest.mark.parametrize("recipe", [EXTRACT, change(DAVIDNET, {"augment.crop": 0, "augment.flip": "none"})])
def test_features_computed_once_give_what_passing_the_backbone_gives(data, recipe):
    recipe = change(recipe, {"freeze": "backbone", "frozen_mode": "eval", "batch_size": 32, "epochs": 3})
    passed = Trainer(recipe, data, "cpu").run(3, evaluate_at_start=True)
    once = Trainer(change(recipe, {"frozen_mode": "once"}), data, "cpu").run(3, evaluate_at_start=True)
    assert once.state.keys() == passed.state.keys()
    for name, tensor in passed.state.items():
        torch.testing.assert_close(once.state[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(once.plain_logits, passed.plain_logits, rtol=1e-4, atol=1e-4)
    for one, other in zip(once.rows, passed.rows, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-4)


def test_an_epoch_on_features_passes_no_image_through_the_backbone(data):
    trainer = Trainer(change(EXTRACT, {"frozen_mode": "once", "epochs": 4}), data, "cpu")
    passed = []
    trainer.network.get_submodule("conv1").register_forward_hook(lambda *call: passed.append(len(call[2])))
    trainer.run()
    assert sum(passed) == len(data.train) + len(data.test)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"freeze": "0"}, "freeze is '0'; allowed: none, backbone or 1, 2, ..."),
        ({"freeze": "head"}, "freeze is 'head'"),
        ({"freeze": "none"}, "freeze is 'none' with frozen_mode once; allowed: backbone"),
        ({"freeze": "none", "frozen_mode": "eval"}, "freeze is 'none' with frozen_mode eval; allowed: backbone or 1"),
        ({"augment.flip": "random"}, "augment.flip is 'random' with frozen_mode once; allowed: none"),
        ({"augment.early_crops": ((24, 0.5),)}, "augment.early_crops is .* with frozen_mode once; allowed: none"),
        ({"ensemble.members": 2}, "ensemble.members is 2 with frozen_mode once; allowed: 1"),
        ({"mix.mixup": 0.5}, "mix.mixup is 0.5 with frozen_mode once; allowed: 0"),
    ],
)
def test_a_recipe_that_features_computed_once_would_not_follow_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        change(EXTRACT, {"frozen_mode": "once", **changes})


def test_what_only_the_network_tells_is_refused_before_the_training(data):
    with pytest.raises(UserError, match="freeze is 99, which leaves nothing to train; allowed: up to 40"):
        Trainer(change(EXTRACT, {"freeze": "99"}), data, "cpu")
    with pytest.raises(UserError, match="which layer of OwnNetwork classifies is not known; allowed: none"):
        Trainer(
            EXTRACT,
            data,
            "cpu",
            model=lambda classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, classes)),
        )
    with pytest.raises(UserError, match="augment is given with frozen_mode once"):
        Trainer(change(EXTRACT, {"frozen_mode": "once"}), data, "cpu", augment=lambda images: images)


# Rates at which later epochs are worse than an earlier one.
WILD = change(MLP, {"epochs": 5, "ema.decay": 0, "optimizer": "SGD", "optimizer.lr": 0.3, "optimizer.weight_decay": 0})


def test_the_best_epoch_s_weights_are_those_of_the_run(data):
    weights = {}

    def keep(row):
        weights[row.epoch] = trainer.evaluated_weights()

    trainer = Trainer(WILD, data, "cpu")
    run = trainer.run(listeners=[Listener(on_epoch=keep)], keep="best")
    accuracies = {row.epoch: row.test_accuracy for row in run.rows}
    best = run.record.best_epoch
    assert best == next(epoch for epoch, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
    assert best < 5  # else it shows nothing
    for name, tensor in weights[best].items():
        assert torch.equal(run.state[name], tensor)
    assert run.accuracy == accuracies[best]
    plain = trainer.run()
    assert plain.record.best_epoch is None
    assert [row.test_accuracy for row in plain.rows] == list(accuracies.values())
    assert RunRecord.from_json(run.record.to_json()) == run.record


@pytest.mark.parametrize("stop", [1, 3])
def test_the_best_weights_survive_being_broken_off(data, tmp_path, stop):
    whole = Trainer(WILD, data, "cpu").run(keep="best")
    states = []

    def save(row):
        if row.epoch == stop:
            states.append(trainer.state.state_dict())

    trainer = Trainer(WILD, data, "cpu")
    trainer.run(listeners=[Listener(on_epoch=save)], keep="best")
    write_state(tmp_path / "state.pt", states[0])
    state = read_state(tmp_path / "state.pt")
    run = Trainer(WILD, data, "cpu").run(keep="best", resume=state)
    assert run.record.best_epoch == whole.record.best_epoch
    for name, tensor in whole.state.items():
        assert torch.equal(run.state[name], tensor)
    with pytest.raises(UserError, match="which weights it keeps"):
        Trainer(WILD, data, "cpu").run(resume=state)


def test_features_are_computed_again_after_a_resume(data):
    recipe, states = change(EXTRACT, {"frozen_mode": "once"}), []
    trainer = Trainer(recipe, data, "cpu")
    whole = trainer.run(listeners=[Listener(on_epoch=lambda _: states.append(trainer.state.state_dict()))])
    run = Trainer(recipe, data, "cpu").run(resume=states[0])
    for name, tensor in whole.state.items():
        assert torch.equal(run.state[name], tensor)


def test_keeping_the_best_is_refused_where_there_is_none_and_told_where_the_test_set_chooses(data):
    for changes, asked, said in (
        ({}, {"keep": "first"}, "keep is 'first'; allowed: last or best"),
        ({}, {"keep": "best", "eval_every": 0}, "eval_every is 0 and keep is best; allowed: 1 or more"),
        ({"average.epochs": 1}, {"keep": "best"}, "average.epochs is 1.0 and keep is best; allowed: 0"),
    ):
        with pytest.raises(UserError, match=said):
            Trainer(change(WILD, changes), data, "cpu").run(**asked)
    with pytest.warns(Notice, match="the best epoch is chosen on the test set"):
        train(dataclasses.replace(MLP, epochs=1), load_dataset("synthetic").take(64), device="cpu", keep="best")


def weights_of(file, classes=1000, width=4, save=torch.save):
    recipe = dataclasses.replace(EXTRACT, network=ResNet18Config(width=width, stem="imagenet"), freeze="none")
    model = build_model(recipe, classes, (0.0,) * 3, (1.0,) * 3).module
    counts = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(7)
        for name in model.state_dict()
        if "mean" in name
    }
    state = {**model.state_dict(), **counts}  # as torchvision's file has them
    file.parent.mkdir(parents=True, exist_ok=True)
    save(state, file)
    return state


def test_weights_of_torchvision_are_found_in_the_hub_s_cache_and_never_downloaded(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = "torchvision:IMAGENET1K_V1"
    with pytest.raises(UserError) as refused:
        WarmStart(source)
    for part in ("https://download.pytorch.org/models/resnet18-f37072fd.pth", str(tmp_path / "hub" / "checkpoints")):
        assert part in str(refused.value)
    with pytest.raises(UserError, match="allowed: torchvision:IMAGENET1K_V1"):
        WarmStart("torchvision:IMAGENET1K_V9")
    state = weights_of(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth", width=64)
    recipe = recipe_for(source)
    assert recipe.network == ResNet18Config(width=64, stem="imagenet")
    assert recipe.normalize.mean == pytest.approx((123.675, 116.28, 103.53))
    assert recipe_for(source, "extract-sgd").normalize.mean == (127.5,) * 3
    assert recipe_for(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") == recipe
    trainer = Trainer(change(recipe, {"freeze": "backbone", "frozen_mode": "once", "dtype": "float32"}), data, "cpu")
    with pytest.warns(Notice, match="the classifier of the weights in torchvision:IMAGENET1K_V1 is fresh"):
        model = trainer.new_network(0, WarmStart(source, reset_head=None))
    assert torch.equal(model.module.conv1.weight, state["conv1.weight"])
    assert model.module.fc.weight.shape == (10, 512)


def test_the_head_is_kept_where_it_fits_unless_it_is_reset(data, tmp_path):
    state = weights_of(tmp_path / "a.pt", classes=10)
    trainer = Trainer(change(EXTRACT, {"network.stem": "imagenet"}), data, "cpu")
    with pytest.warns(Notice, match=r"the classifier of the weights in .*a\.pt is kept") as told:
        kept = trainer.new_network(0, WarmStart(tmp_path / "a.pt", reset_head=None))
    assert [each.filename for each in told] == [__file__]  # where a log shows it
    assert torch.equal(kept.module.fc.weight, state["fc.weight"])
    reset = trainer.new_network(0, WarmStart(tmp_path / "a.pt", reset_head=True))
    assert not torch.equal(reset.module.fc.weight, state["fc.weight"])


def test_a_run_brings_its_network_and_its_normalization(data, tmp_path):
    run = train(dataclasses.replace(DAVIDNET, epochs=1), data, device="cpu")
    folder = run.save(tmp_path / "run")
    for path in (folder, folder / "model.safetensors"):
        recipe = recipe_for(path)
        assert (recipe.network, recipe.normalize.mean, recipe.batch_size) == (DAVIDNET.network, data.mean, 96)
        assert recipe_for(path, "finetune-adam").normalize.mean == (127.5,) * 3
    weights_of(tmp_path / "a.pt")
    with pytest.warns(Notice, match="normalized: by mean 127.5, 127.5, 127.5 and standard deviation 127.5"):
        assert recipe_for(tmp_path / "a.pt", "extract-sgd") == get_recipe("extract-sgd")
    with pytest.warns(Notice, match="normalized: by the data set's mean and the data set's standard deviation") as told:
        recipe_for(tmp_path / "a.pt")
    assert [each.filename for each in told] == [__file__]


def test_weights_for_images_of_another_side_are_called_so(data, tmp_path):
    folder = train(dataclasses.replace(MLP, epochs=1), data, device="cpu").save(tmp_path / "run")
    trainer = Trainer(recipe_for(folder), data.resize(40), "cpu")
    with pytest.raises(UserError, match="of images of 32 pixels, and these have 40; allowed: --resize 32, as mlp"):
        trainer.new_network(0, WarmStart(folder, reset_head=None))
