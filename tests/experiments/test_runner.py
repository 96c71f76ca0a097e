"""`Runner`: what is trained in which order, what depends on what, and several processes that share the jobs."""

import dataclasses
import errno
import subprocess
import sys
import time
import weakref

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss, OutOfMemory, UserError
from fastcifar.experiments import Diverged, Experiment, Failed, Job, Result
from fastcifar.experiments.runner import Runner
from fastcifar.experiments.store import Store
from fastcifar.recipes import EMAConfig, Recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.start import WarmStart
from fastcifar.training import Trainer

RECIPE = Recipe(
    epochs=1,
    batch_size=32,
    network=MLPConfig(hidden=(8,)),
    optimizer=SGDConfig(lr=0.05, bias_lr_factor=1.0),
    ema=EMAConfig(decay=0.0),
)
MORE = dataclasses.replace(RECIPE, name="more")
FIRST = Job("first", 0, RECIPE, train_size=64)
SECOND = Job("second", 0, RECIPE, round=1, after=FIRST.key, start=WarmStart)


@pytest.fixture(scope="module")
def dataset():
    return make_synthetic(train_size=128, test_size=32)


def run(jobs, dataset, folder, **options):
    return dict(Runner(jobs, dataset, Store(folder, {}), "cpu", **options))


def test_a_job_begins_with_the_weights_of_another_which_are_dropped_when_nobody_needs_them(dataset, tmp_path):
    third = dataclasses.replace(SECOND, arm="third", keep_weights=True)
    outcomes = run([FIRST, SECOND, third], dataset, tmp_path)
    assert outcomes[SECOND].init["source"] == str(tmp_path / "first/seed-0.safetensors")
    assert (outcomes[FIRST].dataset.train_size, outcomes[SECOND].dataset.train_size) == (64, 128)
    assert (outcomes[FIRST].seed, outcomes[SECOND].seed) == (0, 10**9)
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["third"]


def test_weights_that_another_process_removes_just_then_are_trained_again(dataset, tmp_path, monkeypatch):
    train_again, calls = Runner._train_again, []

    def removed_after(runner, job):
        train_again(runner, job)
        if job.after and not calls:
            calls.append(job.key)
            (tmp_path / "first/seed-0.safetensors").unlink()

    monkeypatch.setattr(Runner, "_train_again", removed_after)
    outcomes = run([FIRST, SECOND], dataset, tmp_path)
    assert calls == [SECOND.key] and outcomes[SECOND].steps > 0
    monkeypatch.undo()
    whole = run([FIRST, SECOND], dataset, tmp_path / "whole")
    assert outcomes[SECOND].tta_loss == whole[SECOND].tta_loss


def test_a_job_whose_start_diverged_has_diverged_too(dataset, tmp_path, monkeypatch):
    trained = []

    def fail(trainer, seed, **_):
        trained.append(seed)
        raise NonFiniteLoss("the loss became nan")

    monkeypatch.setattr(Trainer, "run", fail)
    for _ in range(2):  # the second time from what is kept
        outcomes = run([FIRST, SECOND], dataset, tmp_path)
        assert outcomes[FIRST] == Diverged("the loss became nan")
        assert outcomes[SECOND] == Diverged("the run that it begins with, first/seed-0, diverged: the loss became nan")
    assert trained == [0]


def test_a_job_out_of_memory_leaves_the_others_room_and_is_tried_again(dataset, tmp_path, monkeypatch):
    third, trained, made = dataclasses.replace(FIRST, arm="third", recipe=MORE), [], []
    train, init = Trainer.run, Trainer.__init__

    def fail_at_first(trainer, seed, **options):
        made.append(weakref.ref(trainer))
        trained.append(seed)
        if len(trained) == 1:
            raise OutOfMemory("no memory for batch_size 32")
        return train(trainer, seed, **options)

    def freed(trainer, *args, **options):
        assert all(each() is None for each in made)
        init(trainer, *args, **options)

    monkeypatch.setattr(Trainer, "run", fail_at_first)
    monkeypatch.setattr(Trainer, "__init__", freed)
    outcomes = run([FIRST, SECOND, third], dataset, tmp_path)
    assert outcomes[FIRST] == Failed("no memory for batch_size 32")
    assert outcomes[SECOND].reason == "the run that it begins with, first/seed-0, failed: no memory for batch_size 32"
    assert outcomes[third].steps == 2 and trained == [0, 0]
    result = Result(Experiment(), {}, {job.arm: [outcome] for job, outcome in outcomes.items()})
    assert result.counts == {"failed": 2, "diverged": 0} and result.n == 0
    assert result.remarks()[0].startswith("2 runs failed, whose seeds are in no number beside them (first: no memory")

    made.clear()
    monkeypatch.setattr(Trainer, "__init__", init)
    outcomes = run([FIRST, SECOND, third], dataset, tmp_path)
    assert not any(isinstance(each, Failed) for each in outcomes.values()) and trained[2:] == [0, 10**9]


def test_who_stops_listening_stops_training(dataset, tmp_path):
    jobs = [dataclasses.replace(FIRST, seed=seed) for seed in range(3)]
    for _ in Runner(jobs, dataset, Store(tmp_path, {}), "cpu"):
        break
    assert [path.name for path in tmp_path.rglob("seed-*")] == ["seed-0.json"]


def test_jobs_that_are_alike_share_a_trainer(dataset, tmp_path, monkeypatch):
    made, init = [], Trainer.__init__

    def counted(self, recipe, *args, **kwargs):
        made.append(recipe.name)
        init(self, recipe, *args, **kwargs)

    monkeypatch.setattr(Trainer, "__init__", counted)
    recipes = [dataclasses.replace(RECIPE, name=name) for name in "abc"]
    run([Job(recipe.name, seed, recipe) for seed in (0, 1) for recipe in recipes], dataset, tmp_path)
    assert made == ["a", "b", "c", "c"]  # two are kept ready


def test_the_time_left_goes_by_the_runs_that_are_most_alike(dataset, tmp_path, monkeypatch):
    seconds = {"slow": 0.2, "fast": 0.0}
    train, said = Trainer.run, []

    def run_for_a_while(trainer, seed, **options):
        time.sleep(seconds[trainer.recipe.name])
        return train(trainer, seed, **options)

    monkeypatch.setattr(Trainer, "run", run_for_a_while)
    recipes = [dataclasses.replace(RECIPE, name=name) for name in seconds]
    jobs = [Job(recipe.name, seed, recipe) for seed in range(3) for recipe in recipes]
    run(jobs, dataset, tmp_path, on_progress=said.append)
    left = [progress.seconds_left for progress in said if progress.outcome]
    assert left[1] > 0.4 and left[-2] < left[-3] and left[-1] == 0


@pytest.mark.parametrize(
    ("jobs", "refusal"),
    [
        ([], "there are no jobs"),
        ([FIRST, FIRST], "two jobs have the key first/seed-0"),
        ([SECOND, FIRST], "second/seed-0 is after 'first/seed-0'; allowed: the key of a job that stands before it"),
    ],
)
def test_jobs_that_cannot_be_done_are_refused(dataset, tmp_path, jobs, refusal):
    with pytest.raises(UserError, match=refusal):
        run(jobs, dataset, tmp_path)


def test_without_locks_everybody_trains(dataset, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert not isinstance(run([FIRST], dataset, tmp_path)[FIRST], Diverged)


def test_who_waits_for_another_process_says_so_once(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcifar.experiments.runner._WAIT_SECONDS", 0.01)
    said, store = [], Store(tmp_path, {})
    other = store.claim(FIRST)
    other.__enter__()

    def free(_):
        other.__exit__(None, None, None)
        monkeypatch.undo()

    monkeypatch.setattr("time.sleep", free)
    run([FIRST], dataset, tmp_path, on_progress=said.append)
    assert [progress.is_waiting for progress in said] == [True, False]


PROCESS = """
import sys
from fastcifar.data.synthetic import make_synthetic
from fastcifar.experiments import Job
from fastcifar.experiments.runner import Runner
from fastcifar.experiments.store import Store
from tests.experiments.test_runner import RECIPE
jobs = [Job("arm", seed, RECIPE) for seed in range(6)]
trained = []
runner = Runner(jobs, make_synthetic(128, 32), Store(sys.argv[1], {}), "cpu",
                on_progress=lambda progress: progress.outcome and not progress.kept and trained.append(progress.key))
print(len(list(runner)), *trained)
"""


def test_processes_that_are_given_the_same_folder_share_the_jobs(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in processes]
    assert [words[0] for words in said] == ["6", "6"]
    trained = said[0][1:] + said[1][1:]
    assert sorted(trained) == [f"arm/seed-{seed}" for seed in range(6)]
    assert not list(tmp_path.rglob("*.lock"))
