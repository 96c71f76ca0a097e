"""Every call of the public surface, and every public module, as a guest in the host's process.

A new public call has a line here; `test_every_public_call_is_here` fails without one.
"""

import contextlib
import dataclasses
import functools
import random
import tempfile
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.plasticity import dash, fire
from tests.modules import MODULES, gradients, make, plain
from tests.small import BARE, DAVIDNET, EVERYTHING


@contextlib.contextmanager
def default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def draws() -> contextlib.AbstractContextManager:
    """Other random numbers than those of a fresh process."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    return contextlib.nullcontext()


# What a host program may have set. Deterministic algorithms and threads are left to it.
SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "as torch starts": contextlib.nullcontext,
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "random numbers": draws,
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("setting", ["default dtype", "default device"])
def test_a_module_computes_the_same_under_other_defaults(name, setting):
    module, x = make(name)
    wanted = gradients(module, x)
    module, x = make(name)
    with SETTINGS[setting]():
        out = module(x)
    assert torch.equal(out, wanted[0])


def host_state() -> dict[str, object]:
    """All that a host program has set and that a call could change."""
    return {
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's": [np.asarray(part).tolist() for part in np.random.get_state()],
        "python's": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


class Dropped(nn.Sequential):
    """A network of a user's own that draws random numbers while it trains."""

    def __init__(self, classes: int) -> None:
        layers = nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)
        super().__init__(*layers)


RECIPE = dataclasses.replace(BARE, epochs=1)
DROPPING = dataclasses.replace(BARE, network=fastcifar.WideResNetConfig(depth=10, widen=1, dropout=0.3))
Number = Callable[[float], object]
"""Makes the numbers of a call: Python's or numpy's."""


@functools.cache
def data() -> fastcifar.Dataset:
    return make_synthetic(48, 48)


@functools.cache
def trained() -> fastcifar.Run:
    return fastcifar.train(RECIPE, data(), device="cpu", eval_every=0)


def outcome(run: fastcifar.Run) -> list[object]:
    return [run.tta_logits, *run.state.values(), *run.model.state_dict().values(), run.record.losses, run.seed]


def train(number: Number, recipe: fastcifar.Recipe = RECIPE, **options) -> list[object]:
    given = {"seed": 3, "eval_every": 0, "holdout": 10, "epochs": 1, "optimizer.lr": 0.25}
    given = {name: number(value) for name, value in given.items()}
    return outcome(fastcifar.train(recipe, data(), device="cpu", **given, **options))


def trainer(number: Number) -> list[object]:
    trainer = fastcifar.Trainer(dataclasses.replace(DAVIDNET, epochs=1), data().take(number(32), seed=number(1)), "cpu")
    return [*outcome(trainer.run(number(1), eval_every=number(1))), *outcome(trainer.run(number(2)))]


def warm_start(number: Number, folder) -> list[object]:
    saved = trained().save(folder / f"run-{len(list(folder.iterdir()))}")
    start = fastcifar.ShrinkPerturb(saved, number(0.5), number(0.25))
    recipe, model, record = fastcifar.load_run(saved)
    fastcifar.load_weights(model, saved)
    further = fastcifar.recipe_for(saved)
    return [*train(number, init=start), *model.state_dict().values(), recipe, record.losses, further]


def evaluate(number: Number) -> list[object]:
    module = plain(trained().model).train()
    how = fastcifar.EvaluateConfig(batch_size=number(32), tta="flip-crop", tta_share=number(0.5))
    mean, std = ([number(value) for value in values] for values in (data().mean, data().std))
    found = fastcifar.evaluate(module, data().test, how, mean=mean, std=std)
    return [found.logits, found.plain_logits, found.loss, all(part.training for part in module.modules())]


def load_dataset(number: Number) -> list[object]:
    loaded = fastcifar.load_dataset("synthetic", device="cpu", holdout=number(20)).take(number(64), seed=number(2))
    loaded = loaded.take(classes=[number(0), number(1)])
    x, y = data().train.images.numpy(), data().train.labels.tolist()
    made = fastcifar.Dataset.from_arrays(x, y, x, y, mean=[number(100)] * 3, std=[number(50)] * 3)
    pairs = [(image, number(label)) for image, label in zip(x, y, strict=True)]
    items = fastcifar.Dataset.from_any(pairs, pairs, resize=number(32))
    loader = fastcifar.Loader(made.train, number(16), seed=number(5), mean=made.mean, std=made.std)
    return [
        loaded.train.images,
        loaded.test.labels,
        loaded.subset,
        made.train.images,
        items.sha256,
        made.mean,
        *next(iter(loader)),
    ]


def read_runs(number: Number) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        trained().save(f"{folder}/run")
        (runs,) = fastcifar.read_runs(folder).groups
    return [runs.summary().mean, runs.at_target(number(0.25)).share]


def robustness(number: Number) -> list[object]:
    baseline = fastcifar.fit_baseline(fastcifar.published_pairs("cifar10.1:v4"))
    counts = {"images": number(200), "shifted_images": number(100)}
    point = fastcifar.AccuracyPair("a", number(0.9375), number(0.875), **counts)
    figure = fastcifar.plot_effective_robustness([point], fastcifar.published_baseline("cifar10.1"))
    return [baseline.slope, fastcifar.effective_robustness(point, baseline), figure.lines[-1], point.interval]


def transforms(number: Number) -> list[object]:
    x, own = data().train.images, torch.Generator().manual_seed(0)
    x = fastcifar.random_flip(fastcifar.random_crop(x, number(32), number(4), own), own)
    x = fastcifar.normalize(fastcifar.cutout(x, number(8), own), [number(125)] * 3, [number(64)] * 3)
    made = [fastcifar.jitter(x, number(0.5), number(0.25), own)]
    scale = {"mean": [number(125)] * 3, "std": [number(64)] * 3}
    made += [fastcifar.color_jitter(x, number(0.5), number(0.5), number(0.5), number(0.25), own, **scale)]
    made += [fastcifar.rand_augment(x, number(2), number(9), own, **scale), fastcifar.grayscale(x, number(0.5), own)]
    made += [fastcifar.gaussian_blur(x, number(0.5), (number(0.5), number(1.0)), number(3), own)]
    made += [fastcifar.random_erasing(x, number(0.5), (number(0.25), number(0.5)), fill="random", generator=own)]
    for mixed in (fastcifar.mixup, fastcifar.cutmix):
        made += mixed(x, data().train.labels, number(10), number(0.5), own)
    return made


def predict(number: Number) -> list[object]:
    module, (mean, std) = trained().model, ([number(value)] * 3 for value in (120.0, 60.0))
    return [fastcifar.predict(module, data().test.images[:4], mean=mean, std=std)]


def by_class(number: Number) -> list[object]:
    matrix = fastcifar.confusion_matrix([number(0), number(2), number(-1)], [number(0), number(1), 1], number(3))
    return [matrix.tolist(), *(each.tolist() for each in fastcifar.precision_recall(matrix))]


def recipes(number: Number) -> list[object]:
    recipe = fastcifar.change(fastcifar.get_recipe("davidnet"), {"epochs": number(3), "optimizer.lr": number(0.5)})
    return [recipe, type(recipe.epochs), type(recipe.optimizer.lr)]


@dataclasses.dataclass(frozen=True)
class Once(fastcifar.Experiment):
    recipe: fastcifar.Recipe = RECIPE

    def jobs(self, dataset):
        return [fastcifar.Job("once", seed, self.recipe) for seed in self.seeds]


def experiment(number: Number) -> list[object]:
    (run,) = Once(runs=number(1), seed=number(2)).run(data(), holdout=number(16), device="cpu").outcomes["once"]
    return [run.losses, run.accuracy]


def corrupted(number: Number) -> list[object]:
    x, names = data().test.images[:2], ("shot-noise", "glass-blur", "snow", "elastic-transform")
    return [fastcifar.corrupt(x, name, number(3), number(5)) for name in names]


def diagnosed(number: Number) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        losses = train(number, listeners=[fastcifar.DiagnoseUpdates(f"{folder}/updates.npz")])
        return [*losses, fastcifar.read_diagnosis(f"{folder}/updates.npz").weight.tolist()]


def optimizers(number: Number) -> list[object]:
    found = []
    for cls in (fastcifar.SGD, fastcifar.LARS, fastcifar.Muon):
        weight = torch.linspace(-1, 1, 12, dtype=torch.float32, device="cpu").view(3, 4).requires_grad_()
        with torch.inference_mode(False), torch.enable_grad():
            weight = weight.clone().detach().requires_grad_()
        weight.grad = torch.ones_like(weight)
        cls([weight], lr=number(0.5), momentum=number(0.75), weight_decay=number(0.125)).step()
        found.append(weight.detach().clone())
    return found


def plasticity(number: Number) -> list[object]:
    how, found = {"floor": number(0.25), "alpha": number(0.5)}, []
    for method in (lambda module, _: fire(module, number(10)), lambda module, batches: dash(module, batches, **how)):
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            images = data().train.images[:8].permute(0, 3, 1, 2).to(torch.float32) / 255
            labels = data().train.labels[:8] % 4
            module = nn.Sequential(nn.Flatten(), skip_init(nn.Linear, 3072, 4, dtype=torch.float32))
            module[1].weight.copy_(torch.arange(4 * 3072, dtype=torch.float32).view(4, 3072).sin())
            module[1].bias.fill_(0.5)
        method(module, [(images, labels)])
        found += [parameter.detach().clone() for parameter in module.parameters()]
    return found


TRANSFORMS = "random_crop random_flip cutout normalize jitter color_jitter rand_augment grayscale gaussian_blur "
TRANSFORMS += "random_erasing mixup cutmix"
ROBUSTNESS = "published_pairs published_baseline fit_baseline effective_robustness plot_effective_robustness"
CALLS: dict[str, Callable[..., list[object]]] = {
    "train": train,
    "train an own network": lambda number: train(number, model=Dropped),
    "train with dropout": lambda number: train(number, DROPPING),
    "train everything": lambda number: train(number, EVERYTHING),
    "Trainer": trainer,
    "load_run load_weights recipe_for": warm_start,
    "evaluate": evaluate,
    "predict": predict,
    "confusion_matrix precision_recall": by_class,
    "load_dataset": load_dataset,
    TRANSFORMS: transforms,
    "get_recipe change": recipes,
    "read_runs": read_runs,
    ROBUSTNESS: robustness,
    "Experiment": experiment,
    "corrupt": corrupted,
    "read_diagnosis": diagnosed,
    "optimizers": optimizers,
    "fire dash": plasticity,
}
OF_TENSORS = (TRANSFORMS, "optimizers", "fire dash")
"""Calls that make tensors of the kind that the host's own functions make."""
DECLARATIONS = {"dataset", "experiment", "network", "optimizer", "setting", "transform", "trick"}
"""Public functions that only declare something."""


def test_every_public_call_is_here():
    public = {name for name in fastcifar.__all__ if isinstance(getattr(fastcifar, name), types.FunctionType)}
    assert public - DECLARATIONS <= {word for call in CALLS for word in call.split()}


def assert_same(found: list[object], wanted: list[object]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other)
        else:
            assert one == other


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], list[object]]:
    """What a call gives in a process as torch starts, by Python's numbers."""
    return functools.cache(lambda name: call(name, as_it_is, tmp_path_factory.mktemp("alone")))


def as_it_is(value: float) -> float:
    return value


def call(name: str, number: Number, folder) -> list[object]:
    return CALLS[name](number, folder) if "load_run" in name else CALLS[name](number)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_call_is_a_guest(name, setting, alone, tmp_path):
    """It gives what it gives alone, to the last bit, whatever the host has set, and leaves all of that as it was."""
    wanted = alone(name)
    with SETTINGS[setting]():
        before = host_state()
        found = call(name, as_it_is, tmp_path)
        assert host_state() == before
    assert_same(found, wanted)
    if name not in OF_TENSORS:
        assert not any(value.is_inference() for value in found if isinstance(value, torch.Tensor))


def numpys(value: float) -> object:
    return np.int64(value) if isinstance(value, int) else np.float64(value)


@pytest.mark.parametrize("name", CALLS)
def test_numbers_may_be_numpys(name, alone, tmp_path):
    assert_same(call(name, numpys, tmp_path), alone(name))
