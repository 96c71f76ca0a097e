"""`Throughput`: sizes double until memory ends, what a recipe cannot have is left out, and nothing stays behind."""

import dataclasses
import gc
import json
import statistics
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar
from fastcifar.costs import throughput
from fastcifar.costs.throughput import GROUPS, Throughput
from fastcifar.errors import UserError
from fastcifar.recipes import SelectConfig, change
from fastcifar.training import Trainer
from fastcifar.training.rehearse import repeated_step
from tests.small import BARE, DAVIDNET, EVERYTHING, MLP

LOTS = 2**40


def batches(sizes):
    return [size.batch_size for size in sizes]


@pytest.fixture(autouse=True)
def one_thread():
    """Steps so small are slow where threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def needs(monkeypatch):
    """Lets a size need what a function of it says, in bytes, in place of a measurement; returns the sizes that ran."""

    def install(bytes_of):
        ran = []

        def run(found, recipe, steps):
            ran.append(recipe.batch_size)
            return bytes_of(recipe.batch_size), (1, [1.0] * (GROUPS if steps > 1 else 1), "float32", None)

        monkeypatch.setattr(Throughput, "_run", run)
        monkeypatch.setattr(Throughput, "_counted", lambda *_: 0)
        return ran

    return install


@pytest.mark.parametrize("recipe", [MLP, EVERYTHING], ids=["mlp", "everything"])
def test_a_few_sizes_are_measured_with_their_spread_and_memory(recipe):
    found = Throughput(recipe, "cpu", memory=LOTS, steps=2)
    sizes = list(found.measure(16, 64))
    assert batches(sizes) == [16, 32, 64] and (found.ended, found.too_large, found.left_out) == (None, None, {})
    for size in sizes:
        assert len(size.seconds) == GROUPS and min(size.seconds) > 0 and size.memory >= 0
        assert size.rate == statistics.median(size.batch_size / each for each in size.seconds)
        assert (size.dtype, size.not_captured) == ("float32", "a CPU has no CUDA graphs")
    told = json.loads(json.dumps(found.describe(), allow_nan=False))
    first = told["sizes"][0]
    assert first["least"] <= first["images_per_second"] <= first["most"] and first["n"] == GROUPS
    assert told["device"]["type"] == "cpu" and told["recipe"]["name"] == "small"


def test_sizes_that_are_no_multiple_of_a_ghost_batch_are_left_out_with_the_reason():
    found = Throughput(DAVIDNET, "cpu", memory=LOTS, steps=2)
    assert batches(found.measure(1, 16)) == [16]
    assert list(found.left_out) == [1, 2, 4, 8]
    assert found.left_out[2] == "batch_size is 2; allowed: a multiple of network.ghost_batch, 16"


@pytest.mark.parametrize(("first", "last"), [(3, None), (1, 8), (100, None)])
def test_a_recipe_that_can_have_none_of_the_sizes_is_refused(first, last):
    with pytest.raises(UserError, match=r"batch_size is \d+; allowed: a multiple of network.ghost_batch, 16"):
        list(Throughput(DAVIDNET, "cpu", memory=LOTS).measure(first, last))


def test_counts_below_1_are_refused():
    with pytest.raises(UserError, match="classes is 0; allowed: 1 or more"):
        Throughput(MLP, "cpu", classes=0)
    with pytest.raises(UserError, match="first is 0; allowed: 1 or more"):
        next(Throughput(MLP, "cpu", memory=LOTS).measure(0, 8))


def test_more_images_than_a_selection_leaves_are_drawn():
    recipe = dataclasses.replace(MLP, select=SelectConfig(keep=0.3, from_epoch=1))
    assert batches(Throughput(recipe, "cpu", memory=LOTS, steps=2).measure(7, 14)) == [7, 14]


def test_out_of_memory_is_the_end_of_the_curve_and_nothing_of_it_stays(monkeypatch):
    kept, trainers, step = [], [], repeated_step

    def fails(trainer):
        trainers.append(weakref.ref(trainer))
        kept.append(weakref.ref(trainer.state.flat.groups[0].weights.untyped_storage()))
        if trainer.recipe.batch_size > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 79.10 GiB")
        return step(trainer)

    monkeypatch.setattr(throughput, "repeated_step", fails)
    found = Throughput(BARE, "cpu", memory=LOTS, steps=2)
    sizes = list(found.measure(16))
    assert batches(sizes) == [16, 32] and found.too_large == 64
    told = "out of memory on cpu in the step at this size: 20.0 GiB more were asked for"
    assert found.ended.startswith(told) and "batch_size is 64" in found.ended
    assert found.largest() == (32, 33)
    gc.collect()
    assert [each() for each in (*trainers, *kept)] == [None] * len(trainers) * 2


def test_other_errors_are_what_they_were(monkeypatch):
    def fails(trainer):
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(throughput, "repeated_step", fails)
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        list(Throughput(BARE, "cpu", memory=LOTS).measure(16))


@settings(max_examples=60)
@given(
    fixed=st.integers(0, 10**6), each=st.integers(1, 10**5), limit=st.integers(1, 10**9), ghost=st.sampled_from([1, 16])
)
def test_the_largest_is_found_to_within_a_hundredth_or_a_ghost_batch(fixed, each, limit, ghost):
    with pytest.MonkeyPatch.context() as patch:
        run = lambda _, recipe, steps: (fixed + each * recipe.batch_size, (1, [1.0], "float32", None))  # noqa: E731
        patch.setattr(Throughput, "_run", run)
        patch.setattr(Throughput, "_counted", lambda *_: 0)
        patch.setattr(Throughput, "_clear", lambda *_: None)
        found = Throughput(BARE if ghost == 1 else DAVIDNET, "cpu", memory=limit)
        sizes = batches(found.measure(ghost))
        fit = (limit - fixed) // each // ghost * ghost  # the largest in truth
        largest = found.largest()
    if not sizes:
        assert fit < ghost and largest is None
        return
    assert sizes == [ghost * 2**n for n in range(len(sizes))] and sizes[-1] <= fit < 2 * sizes[-1] == found.too_large
    fits, fits_not = largest
    assert fits <= fit < fits_not and fits_not - fits <= max(ghost, fits / 100) and fits % ghost == 0


def test_what_is_expected_to_exceed_the_limit_is_not_tried(needs):
    ran = needs(lambda size: 100 + 10 * size)
    found = Throughput(BARE, "cpu", memory=400)
    assert batches(found.measure(1)) == [1, 2, 4, 8, 16]
    assert ran == [1, 1, 2, 4, 8, 16], "the first twice, and 32 not at all"
    assert found.ended == ("out of memory on cpu: with batch_size 32 0.0 MiB are expected, and 0.0 MiB may be taken")


def test_what_takes_more_than_was_expected_is_too_large(needs):
    needs(lambda size: size if size < 8 else 1000)
    found = Throughput(BARE, "cpu", memory=400)
    assert batches(found.measure(1)) == [1, 2, 4] and "are taken" in found.ended


def test_a_first_size_whose_activations_alone_exceed_the_limit_is_not_tried(monkeypatch):
    monkeypatch.setattr(Throughput, "_run", lambda *_: pytest.fail("it was tried"))
    found = Throughput(DAVIDNET, "cpu", memory=2**20)
    assert list(found.measure(4096)) == [] and "are expected" in found.ended and found.largest() is None


def test_a_cpu_may_take_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(throughput, "free_memory", lambda: 1000)
    assert Throughput(BARE, "cpu").memory == 500
    monkeypatch.setattr(throughput, "free_memory", lambda: None)
    with pytest.raises(UserError, match=r"^memory is not given, and what is free is not known here; allowed: a size"):
        Throughput(BARE, "cpu")


def test_memory_grows_with_the_batch_as_its_images_do():
    """A perceptron's step keeps each image as bytes and as float32, 15 kB together, at least."""
    found = Throughput(BARE, "cpu", memory=LOTS, steps=2)
    if found.memory_is != "resident":
        pytest.skip("the system tells no peak")
    small, large = list(found.measure(2048, 4096))
    assert large.memory - small.memory > 2048 * 15 * 1024 / 2


def test_without_a_peak_memory_is_counted(monkeypatch):
    monkeypatch.setattr(throughput, "restart_peak", lambda: False)
    found = Throughput(BARE, "cpu", memory=LOTS, steps=2)
    (size,) = found.measure(16, 16)
    assert found.memory_is == "activations, counted"
    counted = throughput.count_recipe(dataclasses.replace(BARE, batch_size=16), 16, 1).activation_bytes
    assert size.memory == counted > 0


def test_a_side_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"augment\.crop is 4"):
        Throughput(MLP, "cpu", side=3)


def test_the_step_that_is_timed_is_that_of_a_training():
    """From the same weights, on the same images and plan, one step leaves the weights that a training's first does."""
    from fastcifar.data.synthetic import make_noise

    recipe = dataclasses.replace(BARE, epochs=1)
    trainer = Trainer(recipe, make_noise(16), "cpu")
    step, _ = repeated_step(trainer)
    step()
    run = Trainer(recipe, make_noise(16), "cpu").run(0)
    assert trainer.state.tensors.position.item() == 1
    found = trainer.state.flat.state_dict()
    assert run.state.keys() and all(torch.equal(found[name], run.state[name]) for name in run.state)
    step()  # beyond the training's only step, on the first batch again
    assert trainer.state.tensors.position.item() == 1


def test_the_programs_settings_and_random_numbers_are_as_before():
    before = torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_dtype()
    with torch.no_grad():
        list(Throughput(BARE, "cpu", memory=LOTS, steps=2).measure(16, 16))
        assert not torch.is_grad_enabled()
    assert before == (torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_dtype())


@pytest.mark.gpu
def test_on_a_gpu_steps_are_captured_and_all_memory_is_given_back():
    before = torch.cuda.memory_allocated()
    found = Throughput(fastcifar.get_recipe("davidnet"), "cuda", memory=2**30)
    sizes = list(found.measure(32))
    assert sizes and found.too_large and {size.not_captured for size in sizes} == {None}
    fits, fits_not = found.largest()
    assert sizes[-1].batch_size <= fits < fits_not <= found.too_large
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 2**27, "cuBLAS' workspace"


@pytest.mark.gpu
def test_a_real_out_of_memory_ends_the_curve_and_smaller_sizes_still_run():
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        found = Throughput(fastcifar.get_recipe("davidnet"), "cuda", steps=2)
        sizes = list(found.measure(256))
        assert sizes and "out of memory on cuda" in found.ended
        assert batches(Throughput(found.recipe, "cuda", steps=2).measure(256, sizes[-1].batch_size)) == batches(sizes)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_size_that_needs_memory_of_the_system_that_is_not_there_ends_the_curve(monkeypatch):
    monkeypatch.setattr(throughput, "make_noise", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    found = Throughput(BARE, "cpu", memory=LOTS)
    assert list(found.measure(16)) == [] and isinstance(found.ended, str)


def test_a_loader_whose_time_would_be_left_out_is_refused():
    recipe = change(MLP, {"loading.loader": "host"})
    with pytest.raises(UserError, match="loader is host, and steps are timed"):
        Throughput(recipe, "cpu", memory=LOTS)
