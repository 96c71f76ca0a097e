"""The interpolation of a wide network and an ensemble: its forms, what is shared, its losses and its coin."""

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastcifar.costs.flops import count_recipe
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models.interpolation import SUBNETWORKS, BlockConvolution, ChannelSwap, InterpolationNet, halves, toss
from fastcifar.optim import FlatModel
from fastcifar.recipes import AverageConfig, EMAConfig, Recipe, change
from fastcifar.recipes.networks.davidnet import DavidNetInterpolationConfig
from fastcifar.recipes.networks.resnet18 import ResNet18InterpolationConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Listener, Trainer, estimate_statistics, load_run

DAVIDNET = DavidNetInterpolationConfig(widths=(4, 8, 12, 16), ghost_batch=4, freeze_scale=False)
RESNET18 = ResNet18InterpolationConfig(width=4)
each_kind = pytest.mark.parametrize("config", [DAVIDNET, RESNET18], ids=["davidnet", "resnet18"])

even = st.integers(1, 4).map(lambda half: 2 * half)
davidnets = st.builds(
    DavidNetInterpolationConfig,
    widths=st.tuples(even, even, even, even),
    residual=st.sampled_from([(), (1,), (1, 3), (1, 2, 3)]),
    whitening=st.booleans(),
    norm=st.booleans(),
    ghost_batch=st.sampled_from([0, 4]),
    freeze_scale=st.booleans(),
    activation=st.sampled_from(["celu", "relu", "gelu", "silu", "none"]),
    pool=st.sampled_from(["max", "avg"]),
    final_pool=st.sampled_from(["max", "avg"]),
)


def build(config, seed=0, **changes):
    """A network in float64 with norms, biases and statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    network = InterpolationNet(dataclasses.replace(config, **changes)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(0, 0.1)
    return network


def batch(count, side, seed=1):
    torch.manual_seed(seed)
    return torch.randn(count, 3, side, side, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


def answers(network, x):
    """The logits of the wide network and of the four subnetworks, `[5, N, classes]`."""
    return torch.cat([network.wide(x)[None], network.subnetwork_logits(x)])


@given(davidnets, st.integers(0, 1000), st.booleans(), st.sampled_from([8, 11]), st.sampled_from([4, 8]))
@example(RESNET18, 0, True, 11, 4)
@example(dataclasses.replace(RESNET18, stem="imagenet"), 1, False, 16, 2)
@settings(max_examples=10)
def test_all_forms_give_the_same_values_gradients_and_statistics(config, seed, training, side, count):
    networks = [build(config, seed, form=form).train(training) for form in ("summed", "joined", "zeroed")]
    found = []
    for network in networks:
        out = answers(network, batch(count, side))
        parameters = [p for p in network.parameters() if p.requires_grad]
        weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
        gradients = torch.autograd.grad((weights * out).sum(), parameters, materialize_grads=True)
        found.append([out.detach(), *gradients, *network.buffers()])
    names = [[name for name, _ in network.named_parameters()] for network in networks]
    assert names[0] == names[1] == names[2]
    for summed, *others in zip(*found, strict=True):
        scale = summed.abs().max().clamp_min(1).item()
        for other in others:
            torch.testing.assert_close(summed, other, rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("config", "form"), [(DAVIDNET, "summed"), (DAVIDNET, "joined"), (DAVIDNET, "zeroed"), (RESNET18, "zeroed")]
)
def test_each_tensor_reaches_the_networks_that_share_it_and_no_other(config, form):
    """What a subnetwork says has a gradient with respect to its own parameters alone, and what the wide network says to
    its own and to all blocks."""
    network, shared = build(config, form=form).eval(), set()
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    out = answers(network, batch(2, 8))
    heads = torch.linspace(1, 2, out[0].numel(), dtype=torch.float64).view(out[0].shape)
    gradients = [
        torch.autograd.grad((heads * each).sum(), list(trained.values()), retain_graph=True, materialize_grads=True)
        for each in out
    ]
    for name, *reached in zip(trained, *gradients, strict=True):
        moved = {place for place in range(5) if reached[place].any()}
        words = name.split(".")
        if words[0] == "wide":
            assert moved == {0}, name
        else:
            own = 1 + int(words[1])
            is_block = words[-2] in ("conv", "conv1", "conv2", "0") and words[2].startswith("layer")
            assert moved == ({0, own} if is_block else {own}), name
            shared |= {name} if is_block else set()
    blocks = [module for module in network.modules() if isinstance(module, BlockConvolution)]
    assert len(blocks) == (7 if config is DAVIDNET else 19)
    assert len(shared) == 4 * (7 if config is DAVIDNET else 19)


@pytest.mark.parametrize("change_of", [lambda n: n, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n)), FlatModel])
def test_the_storage_in_common_is_that_of_the_blocks(change_of):
    network = change_of(build(DAVIDNET, form="zeroed").float())
    network = network.model if isinstance(network, FlatModel) else network
    places = {}
    for part in (network.wide, *network.subnetworks):
        for tensor in (*part.parameters(), *part.buffers()):
            places.setdefault((tensor.data_ptr(), tensor.numel()), []).append(part)
    assert all(len(parts) == 1 for parts in places.values())
    for name, module in network.wide.named_modules():
        if isinstance(module, BlockConvolution):
            assert not list(module.parameters())
            found = [block for row in module._blocks for block in row]
            wanted = [each.get_submodule(name) for each in network.subnetworks]
            assert {id(block) for block in found} == {id(block) for block in wanted}
    for number, zeroed in enumerate(network.zeroed):
        assert zeroed._of[0] is network.subnetworks[number]
        assert not list(zeroed.parameters()) and all(p.is_meta for p in zeroed._of[1].parameters())


@each_kind
@pytest.mark.parametrize("training", [True, False])
def test_the_wide_network_is_a_plain_one_of_the_blocks(config, training):
    network = build(config).train(training)
    plain, x = network.wide_network(), batch(4, 8)
    assert type(plain) is type(network.subnetworks[0]) and plain.config == config.wide()
    assert all(type(module) is not BlockConvolution for module in plain.modules())
    torch.testing.assert_close(network.wide(x), plain(x), rtol=1e-9, atol=1e-9)
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in network.parameters()}


def test_a_block_convolution_is_the_sum_over_where_from():
    torch.manual_seed(0)
    blocks = [[nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False) for _ in range(2)] for _ in range(2)]
    x = torch.randn(2, 6, 8, 8)
    for whole in (False, True):
        out = BlockConvolution(blocks, whole)(x)
        for o, row in enumerate(blocks):
            wanted = sum(F.conv2d(x[:, 3 * i : 3 * i + 3], row[i].weight, stride=2, padding=1) for i in range(2))
            torch.testing.assert_close(out[:, 2 * o : 2 * o + 2], wanted)
    assert torch.equal(ChannelSwap()(x), torch.cat([x[:, 3:], x[:, :3]], 1))


@each_kind
def test_in_each_layer_the_subnetworks_take_a_block_each_and_their_paths_fit(config):
    network = build(config)
    blocks = [name for name, module in network.wide.named_modules() if isinstance(module, BlockConvolution)]
    for name in blocks:
        taken = [halves(network._network, number, name) for number in range(4)]
        assert sorted(taken) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        for (enters, leaves), (_, crosses) in zip(taken, SUBNETWORKS, strict=True):
            assert (enters != leaves) == crosses
    path = [name for name in blocks if "downsample" not in name]
    for number, (start, _) in enumerate(SUBNETWORKS):
        where = start
        for name in path:
            enters, where_next = halves(network._network, number, name)
            assert enters == where
            where = where_next
        assert halves(network._network, number, f"{network.wide.head}.weight")[0] == where


def recipe(config, **changes):
    optimizer = SGDConfig(lr=0.05, weight_decay=0.0, bias_lr_factor=1.0)
    base = Recipe(name="small", epochs=2, batch_size=8, dtype="float32", network=config, optimizer=optimizer)
    return change(dataclasses.replace(base, ema=EMAConfig(decay=0.0)), changes)


DATA = make_synthetic(train_size=24, test_size=10).resize(8)


def trained(config, seed=3, **listeners):
    return Trainer(recipe(config), DATA).run(seed=seed, listeners=[Listener(**listeners)]).model.state_dict()


@pytest.mark.parametrize(
    ("config", "loss"), [*((DAVIDNET, loss) for loss in ("wide", "ensemble", "mix", "coin")), (RESNET18, "ensemble")]
)
def test_what_a_loss_does_not_train_stays_and_all_forms_train_alike(config, loss):
    """Where both losses are trained every parameter moves, else all but the first convolution, the norms and the
    classifier of the networks that the loss leaves out."""
    config = dataclasses.replace(config, loss=loss, share=0.4)
    found, *others = (trained(dataclasses.replace(config, form=form)) for form in ("summed", "joined", "zeroed"))
    for name, tensor in found.items():
        for other in others:
            torch.testing.assert_close(tensor, other[name], rtol=1e-2, atol=2e-3, msg=name)
    network = Trainer(recipe(config), DATA).new_network(seed=3)
    wholes = [module for module in network.modules() if isinstance(module, BlockConvolution)]
    blocks = {id(block) for whole in wholes for row in whole._blocks for block in row}
    stay = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:  # the whitening's filters, fitted to the images
            continue
        is_block = id(network.get_submodule(name.rpartition(".")[0])) in blocks
        owner = "wide" if name.startswith("wide") else "ensemble"
        moves = is_block or loss in (owner, "mix", "coin")
        assert torch.equal(found[name], parameter) != moves, name
        stay += [name] * (not moves)
    for ending in ("norm.bias", "stem.conv.weight", "classifier.weight") if config is DAVIDNET else ():
        assert any(name.endswith(ending) for name in stay) == (loss in ("wide", "ensemble"))


@pytest.mark.parametrize(
    ("loss", "form"), [("mix", "summed"), ("coin", "zeroed"), ("wide", "joined"), ("ensemble", "joined")]
)
def test_statistics_after_averaging_are_those_of_each_network_alone(loss, form):
    torch.manual_seed(0)
    network = InterpolationNet(dataclasses.replace(DAVIDNET, loss=loss, form=form))
    alone = [*copy.deepcopy(network.subnetworks), network.wide_network()]
    for each in (network, *alone):
        estimate_statistics(each, DATA.train, 16, 8, torch.float32)
    for part, plain in zip(network.made_of, alone, strict=True):
        state, fresh = part.state_dict(), type(plain)(plain.config).state_dict()
        for name, tensor in plain.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(state[name], tensor)
                assert not torch.isclose(tensor, fresh[name], atol=1e-7).all(), name


@pytest.mark.parametrize("output", ["wide", "ensemble"])
def test_no_norm_of_an_averaged_run_has_the_statistics_that_it_began_with(output):
    small = recipe(dataclasses.replace(DAVIDNET, loss="mix", output=output))
    run = Trainer(dataclasses.replace(small, average=AverageConfig(epochs=1, images=16)), DATA).run(seed=0)
    running = {name: tensor for name, tensor in run.state.items() if "running" in name}
    assert running and not any((tensor == ("var" in name)).any() for name, tensor in running.items())


def test_a_certain_coin_is_a_mix_of_one_loss():
    for share in (0.0, 1.0):
        coin, mix = (trained(dataclasses.replace(DAVIDNET, loss=loss, share=share)) for loss in ("coin", "mix"))
        for name, tensor in coin.items():
            torch.testing.assert_close(tensor, mix[name], rtol=1e-5, atol=1e-6, msg=name)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=30)
def test_a_coin_shows_heads_as_often_as_its_share_says(seed, share):
    counts = torch.arange(20_000)
    heads = toss(torch.full_like(counts, seed), counts, share)
    assert abs(heads.double().mean().item() - share) < 0.02
    pairs = (heads[1:] & heads[:-1]).double().mean().item()
    assert abs(pairs - share**2) < 0.02


def test_a_coin_is_the_seeds_and_counts_steps():
    def weights(seed):
        torch.manual_seed(seed)
        network = InterpolationNet(dataclasses.replace(DAVIDNET, loss="coin"))
        assert "coin_count" not in network.state_dict()
        return torch.stack([network.loss_weights() for _ in range(64)])

    first = weights(0)
    assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))
    heads = torch.tensor([1.0, 0, 0, 0, 0])
    tails = torch.tensor([0, 0.25, 0.25, 0.25, 0.25])
    is_heads = (first == heads).all(1)
    assert ((first == tails).all(1) == ~is_heads).all() and 0 < is_heads.sum() < 64


def test_the_coin_of_a_run_depends_on_its_seed_alone():
    config = dataclasses.replace(DAVIDNET, loss="coin")
    seeds = []
    for seed in (3, 3, 4):
        torch.rand(7)
        seeds.append(Trainer(recipe(config), DATA).new_network(seed).coin_seed.item())
    assert seeds[0] == seeds[1] != seeds[2] and all(0 <= seed < 2**32 for seed in seeds)


def test_a_training_with_a_coin_goes_on_to_the_same_bits():
    config, states = dataclasses.replace(DAVIDNET, loss="coin"), []
    trainer = Trainer(recipe(config), DATA)
    whole = trainer.run(seed=5, listeners=[Listener(on_epoch=lambda row: states.append(trainer.state.state_dict()))])
    again = Trainer(recipe(config), DATA).run(resume=states[0])
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_the_initial_weights_are_the_same_with_every_loss_and_form():
    fresh = [
        Trainer(recipe(dataclasses.replace(DAVIDNET, loss=loss, form=form)), DATA).new_network(seed=2).state_dict()
        for loss, form in (("wide", "summed"), ("coin", "summed"), ("ensemble", "zeroed"))
    ]
    for other in fresh[1:]:
        assert other.keys() == fresh[0].keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in fresh[0].items())


def test_what_is_evaluated_and_who_answers_alone():
    x = batch(4, 8).float()
    for loss, output, wide in (
        ("wide", "auto", True),
        ("ensemble", "auto", False),
        ("mix", "auto", True),
        ("coin", "ensemble", False),
    ):
        torch.manual_seed(0)
        network = InterpolationNet(dataclasses.replace(DAVIDNET, loss=loss, output=output)).eval()
        wanted = network.wide(x) if wide else torch.stack([each(x) for each in network.subnetworks]).mean(0)
        torch.testing.assert_close(network(x), wanted)
        assert list(network.members) == ([] if loss == "wide" else list(network.subnetworks))
        every = network(x, every=True)
        assert len(every) == network.outputs == {"wide": 1, "ensemble": 4}.get(loss, 5)


def test_the_work_is_that_of_one_two_and_five_wide_networks():
    def flop(**changes):
        return count_recipe(Recipe(network=dataclasses.replace(config, **changes))).training_flop

    config = DavidNetInterpolationConfig(widths=(32, 64, 128, 256))
    wide = count_recipe(Recipe(network=config.wide())).training_flop
    assert flop() / wide == pytest.approx(1, abs=1e-3)
    assert flop(loss="ensemble") / wide == pytest.approx(1, abs=0.01)  # each has a stem of its own
    for loss in ("mix", "coin"):
        assert flop(loss=loss) / wide == pytest.approx(2, abs=0.01)
        assert flop(loss=loss, form="zeroed") / wide == pytest.approx(5, abs=0.001)


def test_whitening_is_the_same_in_all():
    network = InterpolationNet(DAVIDNET)
    network.fit_whitening(DATA.train.images)
    for each in network.subnetworks:
        assert torch.equal(each.whitening.weight, network.wide.whitening.weight)
        assert each.whitening.weight.data_ptr() != network.wide.whitening.weight.data_ptr()


def test_a_saved_run_is_read_again(tmp_path):
    run = Trainer(recipe(dataclasses.replace(DAVIDNET, loss="coin")), DATA).run(seed=1)
    run.save(tmp_path / "run")
    _, model, _ = load_run(tmp_path / "run")
    x = batch(4, 8).float()
    assert torch.equal(model(x), run.model(x))


def test_it_is_exported_with_any_batch():
    network = InterpolationNet(dataclasses.replace(DAVIDNET, loss="ensemble")).eval()
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(network, (batch(4, 8).float(),), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(batch(6, 8).float()), network(batch(6, 8).float()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"widths": (4, 8, 9, 16)},
            "network.widths is (4, 8, 9, 16); allowed: even numbers, as each subnetwork has half",
        ),
        ({"output": "ensemble"}, "network.output is 'ensemble'; allowed: auto or wide, all that loss wide trains"),
        (
            {"loss": "ensemble", "output": "wide"},
            "network.output is 'wide'; allowed: auto or ensemble, all that loss ensemble trains",
        ),
        ({"share": 1.5}, "network.share is 1.5; allowed: 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(UserError) as error:
        dataclasses.replace(DAVIDNET, **changes)
    assert str(error.value) == said


def test_it_is_no_member_of_an_ensemble():
    with pytest.raises(UserError, match=r"ensemble\.members is 2; allowed: 1, the network davidnet-interpolation is"):
        change(Recipe(network=DavidNetInterpolationConfig()), {"ensemble.members": 2})
