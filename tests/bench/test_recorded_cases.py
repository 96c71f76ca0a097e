"""Calls of the project's operators are recorded from whatever makes them, repeated on fresh values, and compared."""

import dataclasses
import os

import pytest
import torch

from bench.recorded_cases import Floats, record_cases
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import EvaluateConfig, get_recipe, quick
from fastcifar.training import Trainer
from fastcifar.training.evaluate import evaluate
from fastcifar.training.rehearse import step_on_noise


def operator_of_tests(x, out, total, labels, position):
    """Doubles x into the first half of `out`, adds its sum to `total` and moves `position` on; in plain torch
    rightly."""
    factor = 2.0 if os.environ.get("FASTCIFAR_KERNELS") == "reference" else operator_of_tests.factor
    if operator_of_tests.writes or factor == 2.0:
        out[: len(x)] = factor * x
    total += x.sum()
    position += 1
    return labels + (labels == 0) * (factor != 2.0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def operator(monkeypatch):
    monkeypatch.setattr(operator_of_tests, "factor", 2.0, raising=False)
    monkeypatch.setattr(operator_of_tests, "writes", True, raising=False)
    with torch.library._scoped_library("fastcifar", "FRAGMENT") as library:
        library.define(
            "of_tests(Tensor x, Tensor(a!) out, Tensor(b!) total, Tensor labels, Tensor(c!) position) -> Tensor"
        )
        library.impl("of_tests", operator_of_tests, "CompositeExplicitAutograd")
        yield torch.ops.fastcifar.of_tests


def call(operator, size=4):
    labels, position = torch.tensor([0, 1, 2, 3]), torch.tensor([5])
    return operator(torch.randn(size), torch.zeros(2 * size), torch.zeros(1), labels, position)


def test_calls_that_differ_in_values_alone_count_as_one(operator):
    first, second = record_cases(lambda: [call(operator) for _ in range(3)] + [call(operator, 8)])
    assert (first.operation, first.calls, second.calls) == ("of_tests", 3, 1)
    assert first.shape.startswith("float32[4] float32[8] float32[1] int64[4] int64[1] (")
    assert first.shape != second.shape
    read, returned, changed = 4 * (4 + 8 + 1) + 8 * (4 + 1), 8 * 4, 4 * (8 + 1) + 8
    assert first.bytes_moved == read + returned + changed


def test_a_right_operator_has_no_error_and_leaves_what_it_does_not_write(operator):
    (case,) = record_cases(lambda: call(operator))
    assert case._only_written(list(case.make())) == [1], "what `total` was matters"
    errors = case.relative_errors()
    assert set(errors) == {"result 0", "out", "total", "position"}
    assert max(errors.values()) < 1e-6


def test_a_wrong_operator_is_seen(operator):
    (case,) = record_cases(lambda: call(operator))
    operator_of_tests.factor = 2.02
    errors = case.relative_errors()
    assert errors["out"] == pytest.approx(0.01, rel=1e-3)
    assert errors["result 0"] == 0.25, "the share of integers that differ"
    assert errors["total"] < 1e-6


def test_a_buffer_that_is_not_written_is_seen(operator):
    (case,) = record_cases(lambda: call(operator))
    operator_of_tests.factor, operator_of_tests.writes = 1.0, False
    assert case.relative_errors()["out"] == float("inf")


def test_the_reference_is_the_path_in_plain_torch(operator):
    (case,) = record_cases(lambda: call(operator))
    operator_of_tests.factor = 3.0
    x, *rest = case.make()
    case.reference(x, *rest)
    torch.testing.assert_close(rest[0][:4], 2 * x)
    case.kernel(x, *rest)
    torch.testing.assert_close(rest[0][:4], 3 * x)
    assert "FASTCIFAR_KERNELS" not in os.environ


def test_a_call_that_is_repeated_begins_at_the_same_position(operator):
    (case,) = record_cases(lambda: call(operator))
    *_, total, _, position = arguments = case.make()
    before = total.clone()
    case.variant("kernel")(*arguments)
    assert position.item() == 5
    assert not torch.equal(total, before), "other values go on"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 4, 3, 3).half().contiguous(memory_format=torch.channels_last),
        torch.randn(3, 8)[:, ::2],
        torch.ones(()).expand(4, 5),
        torch.rand(16),
        torch.full((5,), torch.inf),
    ],
    ids=["channels-last", "strided", "expanded", "not negative", "infinite"],
)
def test_fresh_values_have_the_form_of_the_recorded(tensor):
    recorded = Floats.of(tensor)
    drawn, again = recorded.draw(), recorded.draw()
    assert (drawn.shape, drawn.stride(), drawn.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert drawn.isfinite().all() and not torch.equal(drawn, again)
    assert (drawn.min() >= 0) == (tensor.min() >= 0)


def test_the_scale_of_fresh_values_is_that_of_the_recorded():
    drawn = Floats.of(5 + 0.01 * torch.randn(10_000)).draw()
    assert drawn.mean().item() == pytest.approx(5, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.01, rel=0.1)


def test_a_real_step_is_recorded_and_right():
    recipe, _ = quick(get_recipe("speedrun94"))
    trainer = Trainer(dataclasses.replace(recipe, batch_size=32), make_synthetic(128, 8), "cpu")
    stage = next(iter(trainer.timeline.steps_by_stage()))
    cases = record_cases(step_on_noise(trainer, stage))
    assert {case.operation for case in cases} >= {"augment", "norm_act_pool", "norm_act_pool_backward"}
    assert max(max(case.relative_errors().values(), default=0) for case in cases) < 0.02, "bfloat16 keeps 8 bits"


def test_augment_reads_its_batch_and_not_the_whole_data_set():
    trainer = Trainer(quick(get_recipe("davidnet"))[0], make_synthetic(128, 64), "cpu")
    cases = record_cases(
        lambda: evaluate(trainer.model, trainer.dataset.test, EvaluateConfig(tta="none", batch_size=4))
    )
    (case,) = [case for case in cases if case.operation == "augment"]
    assert case.bytes_moved == pytest.approx(4 * 32 * 32 * 3 * (1 + trainer.dtype.itemsize), rel=0.01)
