"""The process around this library: its random numbers, torch's settings, and threads that train at once."""

import copy
import dataclasses
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastcifar import host
from fastcifar.data.synthetic import make_synthetic
from fastcifar.host import OwnNumbers, ProcessSetting, TorchSettings, building
from fastcifar.models import build_model
from fastcifar.training import Listener, Trainer, evaluate, load_run, train
from tests.small import DAVIDNET, EVERYTHING, MLP

LAYERS = {
    "conv": lambda: nn.Conv2d(3, 4, 3).weight,
    "linear": lambda: nn.Linear(5, 3).bias,
    "dirac": lambda: nn.init.dirac_(nn.Conv2d(3, 4, 3).weight.data[:3]),
    "orthogonal": lambda: nn.init.orthogonal_(nn.Conv2d(3, 4, 3).weight),
    "kaiming": lambda: nn.init.kaiming_normal_(nn.Conv2d(3, 4, 3).weight),
    "truncated": lambda: nn.init.trunc_normal_(nn.Linear(5, 3).weight),
    "multinomial": lambda: torch.ones(9).multinomial(3),
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(2, 3, dtype=torch.float64),
    "randint": lambda: torch.randint(9, (4,)),
    "randint from": lambda: torch.randint(2, 9, (4,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(torch.ones(3)),
    "randn_like": lambda: torch.randn_like(torch.ones(3)),
    "randint_like": lambda: torch.randint_like(torch.ones(3), 9),
    "randint_like from": lambda: torch.randint_like(torch.ones(3), 2, 9),
}


@pytest.mark.parametrize("graph", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", LAYERS)
def test_own_numbers_are_those_after_manual_seed_and_the_process_keeps_its_own(name, graph):
    with graph():
        before = torch.get_rng_state()
        with OwnNumbers(torch.Generator().manual_seed(7)):
            own = [LAYERS[name]() for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            assert all(torch.equal(one, LAYERS[name]()) for one in own)


def test_a_generator_that_is_given_is_used():
    with OwnNumbers(torch.Generator().manual_seed(7)):
        given = torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(given, torch.rand(3, generator=torch.Generator().manual_seed(1)))


def test_a_cpu_trains_without_torch_dynamo_and_sympy_which_take_seconds_to_import():
    code = (
        "import sys; from fastcifar.recipes import RECIPES; from fastcifar.training import Trainer, train; "
        "from fastcifar.data.synthetic import make_synthetic; "
        "Trainer(RECIPES['speedrun94'], make_synthetic(2048, 16), 'cpu'); "
        "train('warmstart-mlp', make_synthetic(128, 16), device='cpu', epochs=1); "
        "print({'torch._dynamo', 'sympy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


class Own(nn.Sequential):
    """A network that draws random numbers when it is made, while it trains and while it is evaluated."""

    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3072, 8), nn.Dropout(0.5), nn.Linear(8, classes))

    def forward(self, x):
        return super().forward(x) + 0.01 * torch.randn(())


PARTS = {"ours": {}, "own": {"model": Own, "augment": lambda images: images + 0.1 * torch.randn_like(images)}}


def bits(run):
    return [run.tta_logits, *run.state.values()]


@pytest.mark.parametrize("parts", PARTS)
def test_threads_that_train_at_once_do_not_disturb_each_other(parts):
    data, seeds, found, draws, over = make_synthetic(64, 20), range(3), {}, [], threading.Event()
    recipe = dataclasses.replace(MLP, epochs=2)
    alone = {seed: bits(Trainer(recipe, data, "cpu", **PARTS[parts]).run(seed)) for seed in seeds}

    def draw():
        torch.manual_seed(5)
        while not over.wait(0.001):  # the others run
            draws.append(torch.rand(4))

    def trained(seed):
        found[seed] = bits(Trainer(recipe, data, "cpu", **PARTS[parts]).run(seed))

    host_thread, *threads = [
        threading.Thread(target=draw),
        *(threading.Thread(target=trained, args=[s]) for s in seeds),
    ]
    is_apart = parts == "ours"  # code of the user's own draws from the process's generator
    threads += [host_thread] * is_apart
    for thread in threads[::-1]:
        thread.start()
    for thread in threads[:3]:
        thread.join()
    over.set()
    for seed in seeds:
        assert all(torch.equal(one, other) for one, other in zip(found[seed], alone[seed], strict=True))
    if is_apart:
        host_thread.join()
        torch.manual_seed(5)
        assert torch.equal(torch.cat(draws), torch.cat([torch.rand(4) for _ in draws]))


class Checkpointed(Own):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def test_checkpointed_parts_get_the_same_random_numbers_again():
    data = make_synthetic(32, 8)
    plain, again = (train(MLP, data, model=model, device="cpu") for model in (Own, Checkpointed))
    assert all(torch.equal(one, other) for one, other in zip(bits(plain), bits(again), strict=True))


def seeded(classes):
    torch.manual_seed(123)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))


def test_a_model_may_set_its_own_seed(tmp_path):
    """Its weights are those of that seed, and the process's generator is as before."""
    before = torch.get_rng_state()
    first = Listener(on_start=lambda trainer: found.append(trainer.model[1].weight.clone()))
    found = []
    run = train(MLP, make_synthetic(32, 8), model=seeded, device="cpu", seed=4, listeners=[first])
    load_run(run.save(tmp_path / "run"), model=seeded)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        assert torch.equal(found[0], seeded(10)[1].weight)


def test_a_model_may_be_a_function_without_a_module():
    names = {"nn": nn}
    exec("def make(classes): return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))", names)
    assert train(MLP, make_synthetic(32, 8), model=names["make"], device="cpu").record.accuracy is not None


@pytest.mark.parametrize("part", ["model", "forward", "loss", "augment"])
def test_what_a_user_compiled_runs_compiled(part):
    calls = []

    def backend(graph, inputs):
        def run(*inputs):
            calls.append(1)
            return graph(*inputs)

        return run

    def compiled(function):
        return torch.compile(function, backend=backend)

    def model(classes):
        net = Own(classes)
        if part == "forward":
            net.forward = compiled(net.forward)
        return compiled(net) if part == "model" else net

    options = {"loss": compiled(F.cross_entropy)} if part == "loss" else {}
    options |= {"augment": compiled(lambda images: images * 0.5)} if part == "augment" else {}
    torch.compiler.reset()
    train(MLP, make_synthetic(32, 8), model=model, device="cpu", **options)
    torch.compiler.reset()
    assert len(calls) >= MLP.epochs * 32 // MLP.batch_size


def test_networks_are_built_in_float32_on_the_cpu_whatever_the_process_has_set():
    with building(3, build_model):
        plain = build_model(EVERYTHING, 10, (0,) * 3, (1,) * 3).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), building(3, build_model):
            found = build_model(EVERYTHING, 10, (0,) * 3, (1,) * 3).state_dict()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(found[name].dtype == plain[name].dtype and torch.equal(found[name], plain[name]) for name in plain)


def test_listeners_find_the_settings_of_the_process():
    found = []
    listener = Listener(on_start=lambda _: found.append(TorchSettings.here()), on_step=lambda *_: torch.ones(1))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        train(MLP, make_synthetic(32, 8), device="cpu", listeners=[listener])
        assert found == [TorchSettings.here()] == [TorchSettings(False, False, (True, False), torch.device("meta"))]
    assert TorchSettings.here() == host.TORCH


def test_a_setting_of_the_process_is_restored_by_the_last_of_several_threads():
    value = ["theirs"]
    setting = ProcessSetting(lambda: value[0], lambda new: value.__setitem__(0, new))
    first, second = setting.set_to("ours"), setting.set_to("ours")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert value == ["ours"]
    second.__exit__(None, None, None)
    assert value == ["theirs"]


@pytest.fixture(scope="module")
def trainer():
    return Trainer(dataclasses.replace(DAVIDNET, dtype="bfloat16", epochs=1), make_synthetic(32, 24), "cpu")


def test_the_model_of_a_run_is_its_own(trainer):
    first = trainer.run(1)
    kept = {name: tensor.clone() for name, tensor in first.state.items()}
    images = torch.linspace(-1, 1, 4 * 3072).view(4, 3, 32, 32)
    logits = first.model(images).detach()
    assert logits.dtype == torch.float32 and not any(module.training for module in first.model.modules())
    second = trainer.run(2)
    for run, state in ((first, kept), (second, second.state)):
        assert all(torch.equal(tensor, state[name]) for name, tensor in run.model.state_dict().items())
    assert torch.equal(first.model(images), logits) and not torch.equal(second.model(images), logits)
    tensors = [*second.model.state_dict().values(), *first.model.state_dict().values(), *first.state.values()]
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(places)) == len(places)
    found = evaluate(first.model, trainer.dataset.test, trainer.recipe.evaluate)
    torch.testing.assert_close(found.logits, first.tta_logits, rtol=0.05, atol=0.05)
    again = trainer.run(1)
    assert all(torch.equal(again.state[name], kept[name]) for name in kept)


class Locked(nn.Module):
    """A network that cannot be copied."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.lock, self.layer = threading.Lock(), nn.Linear(3072, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return self.layer(x.flatten(1))


def test_a_network_that_cannot_be_copied_is_made_again(trainer):
    run = Trainer(MLP, trainer.dataset, "cpu", model=Locked).run(1)
    assert isinstance(run.model, Locked)
    assert all(torch.equal(tensor, run.state[name]) for name, tensor in run.model.state_dict().items())


def test_what_a_run_holds_is_apart_from_all_else_and_gradients_flow_from_it(trainer):
    data = trainer.dataset
    run = Trainer(dataclasses.replace(MLP, evaluate=dataclasses.replace(MLP.evaluate, tta="none")), data, "cpu").run(1)
    temperature = torch.ones(1, requires_grad=True)
    for logits in (run.plain_logits, run.tta_logits):
        assert not logits.is_inference() and not logits.requires_grad
        F.cross_entropy(logits / temperature, run.labels).backward()
    tensors = [run.plain_logits, run.tta_logits, run.labels, data.test.labels]
    assert len({tensor.data_ptr() for tensor in tensors}) == 4


@pytest.mark.parametrize("again", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "pickle"])
def test_a_run_is_copied_and_pickled_and_a_trainer_says_that_it_is_not(trainer, again):
    run = trainer.run(1)
    other = again(run)
    assert other.record == run.record and all(torch.equal(a, b) for a, b in zip(bits(run), bits(other), strict=True))
    images = torch.ones(2, 3, 32, 32)
    assert torch.equal(other.model(images), run.model(images))
    assert not any(np.shares_memory(a.numpy(), b.numpy()) for a, b in zip(bits(run), bits(other), strict=True))
    for whole in (trainer, trainer.state.flat):
        with pytest.raises(TypeError, match="is not copied or pickled"):
            again(whole)
