"""The states of a training on disk: what is kept and when, what is damaged, and that a run that was killed loses
nothing."""

import dataclasses
import errno
import json
import os
import random
import shutil
import warnings

import pytest
import torch

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import Notice, UserError
from fastcifar.output import CHECKPOINTS, EPOCHS, UNFINISHED
from fastcifar.recipes import EvaluateConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.start import WarmStart
from fastcifar.training import Checkpoints, Listener, Trainer, checkpoint, device, train
from tests.small import DAVIDNET, MLP
from tests.training.test_state import EVERYTHING, RECIPES, Noisy

TIMES = ("started", "first_step_seconds", "phases", "images_per_second", "resumed")


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


@pytest.fixture(scope="module")
def states(data, tmp_path_factory):
    """A folder with the states after 16 and 17 steps."""
    folder = tmp_path_factory.mktemp("states")
    stopped_at(17, Trainer(EVERYTHING, data, "cpu"), Checkpoints(folder, every=0.2), seed=3)
    return folder


class Killed(Exception):
    """The process ended here."""


def kill(*_):
    raise Killed


def stopped_at(step, trainer, checkpoints, **arguments):
    """Train until `step` and no further; return the run where it ends before."""
    listeners = [Listener(on_step=lambda now, total: now == step and kill())]
    try:
        return trainer.run(listeners=[checkpoints, *listeners], resume=checkpoints.newest(), **arguments)
    except Killed:
        return None


def facts(run):
    """All of a run that is no reading of a clock."""
    record = {k: v for k, v in run.record.to_json().items() if k not in TIMES and not k.endswith("seconds")}
    return {**record, "history": without_seconds(run.rows)}


def without_seconds(rows):
    return [dataclasses.replace(row, seconds=0) for row in rows]


def assert_same(one, other):
    assert facts(one) == facts(other)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert torch.equal(one.tta_logits, other.tta_logits) and torch.equal(one.plain_logits, other.plain_logits)


def augment(images):
    return images + 0.1 * torch.randn_like(images)


OWN = {"model": Noisy, "augment": augment, "optimizer": torch.optim.AdamW}
TRAININGS = {
    **{name: (RECIPES[name], {}, {}) for name in ("plain", "everything", "bfloat16", "float16", "Adam")},
    "evaluations": (EVERYTHING, {}, {"evaluate_at_start": True, "eval_every": 2}),
    "no evaluations": (MLP, {}, {"eval_every": 0}),
    "own": (dataclasses.replace(DAVIDNET, optimizer=SGDConfig(lr=0.01)), OWN, {"evaluate_at_start": True}),
}


@pytest.mark.parametrize("name", [*TRAININGS, "until"])
def test_a_training_that_is_killed_again_and_again_ends_as_if_it_had_not_been(data, name, tmp_path):
    recipe, parts, arguments = TRAININGS.get(name) or TRAININGS["plain"]
    trainer = Trainer(recipe, data, "cpu", **parts)
    seed, whole = 3, trainer.run(3, **arguments)
    if name == "until":
        while whole.rows[0].train_accuracy >= whole.rows[1].train_accuracy:  # a CPU's own digits decide
            seed += 1
            whole = trainer.run(seed)
        arguments = {"until_train_accuracy": whole.rows[1].train_accuracy}
        whole = trainer.run(seed, **arguments)
    chosen, told = random.Random(name), []
    for every in (0.3, 0.15, 0.15):
        checkpoints = Checkpoints(tmp_path / "states", every)
        state = checkpoints.newest()
        step = state["step"] if state else 0
        end = step + chosen.randint(2, 4)
        stop = Listener(on_step=lambda now, total, end=end: now == end and kill())
        listeners = [Listener(on_epoch=told.append), checkpoints, stop]
        with pytest.raises(Killed):
            Trainer(recipe, data, "cpu", **parts).run(seed, listeners=listeners, resume=state, **arguments)
    listeners = [Listener(on_epoch=told.append), checkpoints]
    trainer.run(9)  # whatever is in its buffers is replaced
    run = trainer.run(9, listeners=listeners, resume=checkpoints.newest(), **arguments)
    assert_same(run, whole)
    assert len(run.record.resumed) >= 2 and list(run.record.resumed) == sorted(run.record.resumed)
    assert {row.epoch for row in told} == {row.epoch for row in whole.rows}


def test_every_row_is_told_once_also_of_a_training_that_a_signal_stops(data, tmp_path):
    """A state that is written at any call of any listener goes on with the calls that were left."""
    arguments = {"evaluate_at_start": True, "eval_every": 2}
    trainer, whole = Trainer(MLP, data, "cpu"), []
    trainer.run(3, listeners=[Listener(on_epoch=whole.append)], **arguments)
    for stop in range(1, 22, 2):
        checkpoints, told, calls = Checkpoints(tmp_path / str(stop), "never"), [], iter(range(1, 100))

        def hear(*_, checkpoints=checkpoints, calls=calls, stop=stop):
            if next(calls) == stop:
                checkpoints.save()
                raise Killed

        listeners = [checkpoints, Listener(on_epoch=told.append), Listener(on_step=hear, on_epoch=hear)]
        with pytest.raises(Killed):
            trainer.run(3, listeners=listeners, **arguments)
        trainer.run(listeners=[Listener(on_epoch=told.append)], resume=checkpoints.newest(), **arguments)
        assert without_seconds(told) == without_seconds(whole)


def test_the_newest_two_are_kept_each_of_one_step(data, tmp_path):
    seen, checkpoints = [], Checkpoints(tmp_path / "states", every=0.5)

    def look(*_):
        files = sorted(os.listdir(checkpoints.folder)) if checkpoints.folder.exists() else []
        if files not in seen:
            seen.append(files)

    Trainer(MLP, data, "cpu").run(3, listeners=[checkpoints, Listener(on_step=look, on_epoch=look)])
    steps = [[int(file[5:13]) for file in files] for files in seen]
    assert steps == [[], [3], [3, 6], [6, 9], [9, 12], [12, 15], [15, 18]]
    state = torch.load(tmp_path / "states" / "step-00000015.pt", weights_only=True)  # as any program may read it
    assert state["version"] == 1 and Trainer(MLP, data, "cpu").run(resume=state).record.resumed == (15,)
    checkpoints.remove()
    assert not checkpoints.folder.exists()


def test_a_signal_just_after_a_state_was_written_writes_it_no_second_time(data, tmp_path, monkeypatch):
    written, write = [], checkpoint.write_state
    monkeypatch.setattr(checkpoint, "write_state", lambda path, state: written.append(path.name) or write(path, state))
    checkpoints = Checkpoints(tmp_path / "states", every=1)

    def save_again(row):
        if row.epoch in (1, 2):
            assert checkpoints.save() == checkpoints._whole[-1]

    trainer = Trainer(RECIPES["everything"], data, "cpu")
    trainer.run(3, listeners=[checkpoints, Listener(on_epoch=save_again)])
    assert len(written) == len({*written}) >= 2


def test_what_a_killed_process_left_half_written_is_removed(data, tmp_path):
    (tmp_path / ".partial-abc.pt").write_bytes(b"half of a state")
    (tmp_path / "notes.txt").write_text("the user's own")
    checkpoints = Checkpoints(tmp_path, every=1)
    Trainer(MLP, data, "cpu").run(3, listeners=[checkpoints])
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-00000012.pt", "step-00000018.pt"]
    checkpoints.remove()
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_states_of_another_training_are_not_written_over(data, states):
    before = sorted(os.listdir(states))
    with pytest.raises(UserError, match=r"holds the states of a training; allowed: resume=checkpoints.newest\(\)"):
        Trainer(MLP, data, "cpu").run(listeners=[Checkpoints(states)])
    with pytest.raises(UserError, match="does not fit: recipe"):
        Trainer(MLP, data, "cpu").run(resume=Checkpoints(states).newest())
    assert sorted(os.listdir(states)) == before


def test_a_folder_without_states_has_none(tmp_path):
    assert Checkpoints(tmp_path).newest() is Checkpoints(tmp_path / "absent").newest() is None


def test_a_damaged_state_is_replaced_and_the_whole_one_stays_until_then(data, states, tmp_path):
    folder = shutil.copytree(states, tmp_path / "states")
    (folder / "step-00000017.pt").write_bytes(b"")
    (folder / "step-00000019.pt").write_bytes(b"")
    checkpoints = Checkpoints(folder, every="never")
    with pytest.warns(Notice):
        state = checkpoints.newest()
    listener = Listener(on_step=lambda step, total: step == 17 and checkpoints.save() and kill())
    with pytest.raises(Killed):
        Trainer(EVERYTHING, data, "cpu").run(listeners=[checkpoints, listener], resume=state)
    assert sorted(os.listdir(folder)) == ["step-00000016.pt", "step-00000017.pt"]


@pytest.mark.parametrize(
    ("what", "reason"), [("a full disk", "No space left on device"), ("a file in the way", "File exists")]
)
def test_a_training_goes_on_where_states_cannot_be_written(data, tmp_path, monkeypatch, what, reason):
    whole, folder, sync = Trainer(MLP, data, "cpu").run(3), tmp_path / "a" / "states", os.fsync
    checkpoints, said = Checkpoints(folder, every=0.5), []
    if what == "a file in the way":
        folder.parent.write_text("a file")

    def fill(step, total):
        def full(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full if step >= 5 else sync)
        if step == 7:
            with pytest.raises(UserError) as error:
                checkpoints.save()
            said.append(str(error.value))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = Trainer(MLP, data, "cpu").run(3, listeners=[Listener(on_step=fill), checkpoints])
    assert_same(run, whole)
    (line,) = [str(each.message) for each in told]
    assert line.endswith(f"{reason}; the training goes on")
    assert said and "\n" not in line + said[0]
    if what == "a full disk":
        assert os.listdir(folder) == ["step-00000003.pt"] and Checkpoints(folder).newest()["step"] == 3


def test_clocks_and_steps_of_all_processes_are_in_the_record(data, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, every=0.5)
    stopped_at(4, Trainer(MLP, data, "cpu"), checkpoints)
    state = checkpoints.newest()
    before, seconds = state["processes"], state["train_seconds"]
    before["phases"]["imports"] = 1000.0  # a slow process
    before["started"], before["first_step_seconds"] = "2025-01-31T12:00:00Z", 7.0
    record = Trainer(MLP, data, "cpu").run(resume=state).record
    assert record.started == "2025-01-31T12:00:00Z" and record.first_step_seconds == 7
    assert record.phases["imports"] == 1000 and list(record.phases)[-1] == "other"
    assert record.process_seconds == pytest.approx(sum(record.phases.values())) and record.process_seconds > 1000
    assert seconds < record.train_seconds < record.time_seconds < 1000
    assert record.resumed == (3,)
    assert fastcifar.RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    trainer = Trainer(MLP, data, "cpu")
    trainer.run(resume=state)
    again = trainer.run(3).record  # the next run of a trainer is not of these processes
    assert again.process_seconds < 1000 and again.resumed == () and again.started > before["started"]


def test_a_state_of_before_its_process_was_kept_is_read(data, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0.5)
    stopped_at(10, Trainer(MLP, data, "cpu"), checkpoints, seed=3)
    state = {k: v for k, v in checkpoints.newest().items() if k not in ("processes", "told", "version")}
    run = Trainer(MLP, data, "cpu").run(resume=state)
    assert_same(run, Trainer(MLP, data, "cpu").run(3))
    assert run.record.resumed == (9,)


def test_another_number_of_threads_is_told(data, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0.5)
    stopped_at(4, Trainer(MLP, data, "cpu"), checkpoints)
    state = checkpoints.newest()
    state["processes"]["threads"] += 3
    with pytest.warns(Notice, match="threads of the CPU: . before, . from here on"):
        Trainer(MLP, data, "cpu").run(resume=state)


@pytest.mark.parametrize(("there", "here"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_training_that_goes_on_keeps_its_compute_type(data, tmp_path, monkeypatch, there, here):
    def auto_is(dtype):
        seconds = {torch.float32: 1.0, torch.bfloat16: 0.1 if dtype == "bfloat16" else 10.0}
        monkeypatch.setattr(device, "convolution_seconds", lambda: seconds)

    recipe, checkpoints = dataclasses.replace(DAVIDNET, dtype="auto"), Checkpoints(tmp_path, every=0.5)
    auto_is(there)
    whole = Trainer(recipe, data, "cpu").run(3)
    stopped_at(10, Trainer(recipe, data, "cpu"), checkpoints, seed=3)
    auto_is(here)
    trainer = Trainer(recipe, data, "cpu")
    run = trainer.run(resume=checkpoints.newest())
    assert_same(run, whole)
    assert run.record.dtype == there and trainer.run(3).record.dtype == here
    with pytest.raises(UserError, match="does not fit"):
        trainer.run(resume={"dtype": [there]})
    del (state := dict(checkpoints.newest()))["dtype"]  # as older versions kept it
    monkeypatch.setattr(device, "_cpuinfo", lambda: "flags : avx512_bf16" if there == "bfloat16" else "flags : avx2")
    assert trainer.run(resume=state).record.dtype == there  # by what the CPU lists, as they went by it


def test_train_goes_on_where_it_was(data, tmp_path):
    whole, folder = train(MLP, data, seed=3), tmp_path / "runs" / "a"
    stop = Listener(on_step=lambda step, total: step == 10 and kill())
    with pytest.raises(Killed):
        train(MLP, data, seed=3, checkpoints=Checkpoints(folder, every=0.5), listeners=[stop])
    assert sorted(os.listdir(folder)) == ["step-00000006.pt", "step-00000009.pt"]
    with pytest.raises(UserError, match="is of seed 3, not 4; allowed: another folder"):
        train(MLP, data, seed=4, checkpoints=folder)
    with pytest.raises(UserError, match=r"does not fit: recipe\.epochs"):
        train(MLP, data, seed=3, epochs=2, checkpoints=folder)
    run = train(MLP, data, seed=3, checkpoints=folder)
    assert_same(run, whole)
    assert run.record.resumed == (9,) and not folder.exists()
    run.save(folder)


def test_two_trainings_do_not_share_their_states(data, tmp_path):
    def second(trainer):
        with pytest.raises(UserError, match=r"another process trains with the states in .*; allowed: another folder"):
            train(MLP, data, checkpoints=tmp_path / "states")

    assert train(MLP, data, checkpoints=tmp_path / "states", listeners=[Listener(on_start=second)])
    assert os.listdir(tmp_path) == []


def test_a_warm_start_goes_on_without_its_source(data, tmp_path):
    source = train(MLP, data).save(tmp_path / "source")
    whole = Trainer(MLP, data, "cpu").run(3, init=WarmStart(source))
    checkpoints = Checkpoints(tmp_path / "states", every=0.5)
    assert stopped_at(10, Trainer(MLP, data, "cpu"), checkpoints, seed=3, init=WarmStart(source)) is None
    shutil.rmtree(source)
    assert_same(Trainer(MLP, data, "cpu").run(resume=checkpoints.newest()), whole)


@pytest.mark.parametrize("name", ["everything", "bfloat16"])
def test_the_weights_of_every_epoch_are_those_that_were_evaluated(data, name):
    recipe = RECIPES[name]
    trainer, plain, weights = Trainer(recipe, data, "cpu"), Trainer(recipe, data, "cpu").run(3), []
    run = trainer.run(3, listeners=[Listener(on_epoch=lambda row: weights.append((row, trainer.evaluated_weights())))])
    assert_same(run, plain)
    assert [row for row, _ in weights] == list(run.rows)
    assert all(torch.equal(tensor, run.state[name]) for name, tensor in weights[-1][1].items())
    for row, tensors in weights[:-1]:
        network = trainer.new_network(0)
        network.module.load_state_dict(tensors)
        trainer.flat_evaluated.load(network.module)
        assert trainer.scoring.evaluate(trainer.dataset.test, EvaluateConfig(tta="none")).loss == row.test_loss


def test_a_run_is_saved_beside_what_it_left_before_it_was_finished(data, tmp_path):
    run = train(MLP, data)
    (tmp_path / UNFINISHED).write_text("{}")
    for name in (CHECKPOINTS, EPOCHS):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="holds an unfinished run"):
        run.save(tmp_path)
    assert (run.save(tmp_path, unfinished=True) / "run.json").is_file()
    with pytest.raises(UserError, match="already holds a run"):
        run.save(tmp_path, unfinished=True)


def test_before_a_training_nothing_is_saved(tmp_path):
    with pytest.raises(UserError, match="no training has begun"):
        Checkpoints(tmp_path).save()
