"""A few steps of a training as a trace."""

import dataclasses
import json

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.training import Trainer
from fastcifar.training.profile import StepTrace
from tests.small import MLP

RECIPE = dataclasses.replace(MLP, batch_size=64)


@pytest.fixture(scope="module")
def trainer():
    return Trainer(RECIPE, make_synthetic(192, 64))


def test_some_steps_are_traced_and_the_training_is_the_same(trainer, tmp_path):
    trace = StepTrace(trainer.device)
    traced = trainer.run(0, listeners=[trace])
    trace.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    if trainer.device.type == "cpu":
        assert trace.steps == (2, 4)
        assert sum(name == "fastcifar: forward" for name in names) == 3
        assert set(trace.parts()) == {"augment", "forward", "backward", "optimizer"}
        assert all(seconds > 0 for seconds in trace.parts().values())
    else:
        assert trace.steps == (4, 6)
        assert names
    assert [row.train_loss for row in traced.rows] == [row.train_loss for row in trainer.run(0).rows]


def test_a_training_that_is_too_short_leaves_no_trace(tmp_path):
    trainer = Trainer(dataclasses.replace(RECIPE, epochs=1), make_synthetic(128, 64))
    trace = StepTrace(trainer.device)
    trainer.run(0, listeners=[trace])
    trace.close()
    trace.save(tmp_path / "trace.json")
    assert (trace.steps, trace.parts(), list(tmp_path.iterdir())) == (None, {}, [])


def test_a_trace_that_cannot_be_written_is_said_in_one_line(tmp_path):
    trace = StepTrace(torch.device("cpu"))
    for step in range(1, 5):
        trace.on_step(step, 4)
    with pytest.raises(UserError, match=r"cannot save the trace in .*/none/trace\.json"):
        trace.save(tmp_path / "none" / "trace.json")
