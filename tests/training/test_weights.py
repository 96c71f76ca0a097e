"""Weights from anywhere: files of every kind give the network's tensors to the bit."""

import collections

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.start import WarmStart
from fastcifar.training import load_run, load_weights, train
from tests.small import MLP
from tests.training.weight_files import Net, loaded, older, refused, same

LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.5.0",
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "", "scores": [0.5, None, True]}},
    "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
    "lr_schedulers": [{"milestones": collections.Counter([2, 4])}],
}
BESIDE = {
    "dtype": torch.bfloat16,
    "device": [torch.device("cpu"), torch.device("cuda", 0)],
    "size": torch.Size([3, 32]),
    "set": {1, "a", None},
    "bytes": b"\0\xff",
    "complex": 1j,
}
NESTED = {
    "alone": lambda state: state,
    "parameters": lambda state: {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()},
    "state_dict": lambda state: {**LIGHTNING, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {}, "losses": [0.5] * 1000},
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 1},
    "net": lambda state: {"net": state, "acc": 93.5},
    "beside a tensor": lambda state: {"epoch": 3, "state_dict": state, "best_acc1": torch.tensor(71.2)},
    "below a tensor": lambda state: {"loss": torch.tensor(0.5), "model": {"state_dict": state, "step": torch.ones(1)}},
    "beside settings": lambda state: {"model": {"name": "resnet", "depth": 18}, "state_dict": state},
    "beside values of Python": lambda state: {**BESIDE, "model": state},
    "one in the other": lambda state: {"model": {"state_dict": state}},
}


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("write", [torch.save, older], ids=["zip", "older"])
def test_a_state_dict_is_found_and_read_to_the_bit(write, nested, tmp_path):
    state = Net().state_dict()
    write(NESTED[nested](state), tmp_path / "weights")
    found, said = loaded(tmp_path / "weights")
    assert same(found, state) and said == []


@pytest.mark.parametrize("write", [torch.save, older, save_file])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "model.", "model.net._orig_mod.module."])
def test_prefixes_are_taken_off_and_said(write, prefix, tmp_path):
    state = Net().state_dict()
    write({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "weights")
    found, (said,) = loaded(tmp_path / "weights")
    assert same(found, state)
    assert said == f"the names of the weights in {tmp_path}/weights begin with {prefix!r}, which is taken off"


def test_a_prefix_that_the_network_has_itself_stays(tmp_path):
    net = nn.ModuleDict({"model": Net(), "net": Net(2)})
    only = nn.ModuleDict({"model": net})
    for module, prefix in ((net, ""), (only, ""), (only, "module."), (nn.ModuleDict({"model": Net()}), "model.")):
        state = module.state_dict()
        torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "weights")
        for tensor in module.state_dict().values():
            tensor.zero_()
        found, said = loaded(tmp_path / "weights", module)
        assert same(found, state) and bool(said) == bool(prefix)


def test_an_average_is_never_taken_silently(tmp_path):
    state, other = Net().state_dict(), Net(2).state_dict()
    torch.save({"ema": other, "model": state}, tmp_path / "both")
    found, (said,) = loaded(tmp_path / "both")
    assert same(found, state) and said == f"{tmp_path}/both holds 'ema' beside 'model', and the latter is taken"
    torch.save({"ema": other}, tmp_path / "one")
    assert "it holds 'ema', of which none is the state_dict" in refused(tmp_path / "one")
    torch.save({"net": other, "model": state}, tmp_path / "two")
    assert "it holds 'model', 'net', of which each may be the state_dict" in refused(tmp_path / "two")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_other_floating_point_types_are_converted_and_counts_may_be_absent(write, dtype, tmp_path):
    state = {name: t.to(dtype) for name, t in Net().state_dict().items() if t.is_floating_point()}
    write(state, tmp_path / "weights")
    found, _ = loaded(tmp_path / "weights")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in state.items())


def test_views_tied_and_permuted_tensors_are_read(tmp_path):
    """As torch.save writes them: the strides of views into one buffer."""
    flat = torch.randn(1000)
    state = {name: t.clone() for name, t in Net().state_dict().items()}
    state["0.weight"] = flat[100:208].view(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    state["3.weight"] = flat[10:18].view(4, 2).t()
    state["1.weight"] = state["1.bias"] = flat[:4]
    for write in (torch.save, older):
        write(state, tmp_path / "weights")
        assert same(loaded(tmp_path / "weights")[0], state)


def test_every_door_reads_every_kind(tmp_path):
    """A warm start, load_weights and load_run, of a run's folder and of any file, whatever it is called."""
    data = make_synthetic(32, 20)
    run = train(MLP, data, device="cpu")
    state, folder = dict(run.state), run.save(tmp_path / "run")
    paths = [folder, folder / "model.safetensors", *(tmp_path / name for name in ("a.pt", "b.safetensors", "c.ckpt"))]
    for path, value, write in zip(
        paths[2:], (state, {"model": state}, state), (torch.save, older, save_file), strict=True
    ):
        write(value, path)
    for path in paths:
        fresh = fastcifar.Trainer(MLP, data, "cpu").new_network(5)
        assert not same(fresh.state_dict(), state)
        load_weights(fresh, str(path))
        assert same(fresh.state_dict(), state)
        warm = fastcifar.Trainer(MLP, data, "cpu").new_network(5, WarmStart(path))
        assert same(warm.state_dict(), state)
    assert same(load_run(folder)[1].state_dict(), state)


@pytest.mark.parametrize("count", [2, 2048, 39_100, 100_000])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float16, torch.bfloat16])
def test_counts_of_another_type_are_converted_or_left_out(dtype, count, tmp_path):
    """As in {name: tensor.half()}, where 100,000 is infinite, which leaves the network's own."""
    state = {**Net().state_dict(), "1.num_batches_tracked": torch.tensor(count)}
    state = {name: tensor.to(dtype if name.endswith("tracked") else torch.float32) for name, tensor in state.items()}
    for write in (torch.save, save_file):
        write(state, tmp_path / "weights")
        found, _ = loaded(tmp_path / "weights")
        kept = state["1.num_batches_tracked"]
        assert found["1.num_batches_tracked"] == (1 if kept.isinf() else int(kept))
        assert all(torch.equal(found[name], state[name]) for name in state if not name.endswith("tracked"))


def masked():
    net = nn.Sequential(nn.Linear(2, 2))
    net.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    return net


def test_a_buffer_may_hold_the_infinities_that_the_network_has(tmp_path):
    """An attention's mask; not other ones, nor NaN."""
    state = masked().state_dict()
    torch.save(state, tmp_path / "weights")
    assert same(loaded(tmp_path / "weights", masked())[0], state)
    for place, value in (((0, 0), -torch.inf), ((0, 1), torch.inf), ((0, 1), torch.nan)):
        wrong = state["mask"].clone()
        wrong[place] = value
        torch.save({**state, "mask": wrong}, tmp_path / "weights")
        assert "hold NaN or infinite values, 1 of 9 in mask; allowed" in refused(tmp_path / "weights", masked())


def test_a_parameter_without_a_shape_is_named(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"^weight has no shape yet; allowed: weights for it after a first forward"):
        load_weights(nn.LazyLinear(2), tmp_path / "w.pt")
