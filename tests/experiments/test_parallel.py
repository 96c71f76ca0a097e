"""`ParallelRunner`: the same records from several processes, and what becomes of those that die, fail or are ended."""

import dataclasses
import multiprocessing
import os
import warnings
from contextlib import closing

import pytest
import torch

from fastcifar import registry
from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.data.shared import shared
from fastcifar.errors import Notice, OutOfMemory, ProcessesDied, UserError
from fastcifar.experiments import Failed, Job, parallel
from fastcifar.experiments.named.half import Half
from fastcifar.experiments.parallel import ParallelRunner, at_once, runner_for
from fastcifar.experiments.runner import Runner
from fastcifar.experiments.store import Store
from fastcifar.start import ColdStart, WarmStart
from tests.small import BARE, DAVIDNET, MLP

JOBS = [Job("mlp", seed, MLP, keep_weights=True) for seed in range(3)]
JOBS += [Job("davidnet", seed, DAVIDNET, keep_weights=True) for seed in range(2)]
JOBS += [Job("warm", 0, MLP, round=1, after="mlp/seed-0", start=WarmStart, keep_weights=True)]
LONG = [Job("long", seed, dataclasses.replace(BARE, epochs=50)) for seed in range(4)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert multiprocessing.active_children() == []


def no_memory(_):
    raise OutOfMemory("no memory for this one")


def refused(_):
    raise UserError("nothing like it; allowed: another")


def ends(_):
    os._exit(3)


def notices(_):
    warnings.warn("look here", Notice, stacklevel=1)
    return ColdStart()


def with_start(start, seeds=1, arm="odd"):
    return [Job(arm, seed, MLP, round=1, after=JOBS[0].key, start=start) for seed in range(seeds)]


def run(jobs, dataset, folder, parallel=2, **options):
    return dict(runner_for(parallel, jobs, dataset, Store(folder, {}), "cpu", **options))


def test_the_bits_are_those_of_one_process_with_as_many_threads_and_what_is_kept_is_not_trained_again(
    dataset, tmp_path, threads, monkeypatch
):
    threads(2)
    said, started, start = [], [], ParallelRunner._start
    monkeypatch.setattr(ParallelRunner, "_start", lambda self, count: started.append(count) or start(self, count))
    found = run(JOBS[:-1], dataset, tmp_path / "two", on_progress=said.append)
    assert [progress.done for progress in said] == [1, 2, 3, 4, 5] and not any(each.kept for each in said)
    assert {progress.key for progress in said} == {job.key for job in JOBS[:-1]} and said[-1].seconds_left == 0
    found |= run(JOBS, dataset, tmp_path / "two", on_progress=said.append)
    assert [progress.kept for progress in said[5:]] == [True] * 5 + [False]
    threads(1)
    expected = dict(Runner(JOBS, dataset, Store(tmp_path / "one", {}), "cpu"))
    assert started == [2, 1]
    for job in JOBS:
        assert found[job].weights_sha256 == expected[job].weights_sha256
        assert (found[job].tta_loss, found[job].device.threads) == (expected[job].tta_loss, 1)


def test_no_more_processes_are_started_than_runs_are_left_and_one_run_needs_none(dataset, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(ParallelRunner, "_start", lambda _, count: started.append(count))
    dict(Runner(JOBS[:2], dataset, Store(tmp_path, {}), "cpu"))
    with pytest.raises(ProcessesDied):
        run(JOBS[:4], dataset, tmp_path, parallel=8)
    assert started == [2]
    assert len(run(JOBS[:2], dataset, tmp_path, parallel=2)) == 2 and started == [2]
    assert type(runner_for(8, JOBS[:1], dataset, Store(tmp_path, {}))) is Runner


@pytest.mark.parametrize(("runs", "expected"), [(1, 1), (2, 2), (5, 3)])
def test_auto_is_a_run_for_each_thread_and_no_more_than_seeds(threads, runs, expected):
    threads(3)
    assert at_once("auto", runs, "cpu") == expected
    assert at_once(4, runs, "cpu") == 4


def test_an_experiment_takes_auto_and_counts_its_seeds(dataset, threads, monkeypatch):
    threads(2)
    asked = []

    def stop(parallel, *_, **__):
        asked.append(parallel)
        raise InterruptedError

    monkeypatch.setattr(parallel, "runner_for", stop)
    for runs in (1, 3):
        with pytest.raises(InterruptedError):
            Half(recipe=MLP, runs=runs).run(dataset, device="cpu", parallel="auto")
    assert asked == [1, 2]
    with pytest.raises(UserError, match="parallel is 'all'; allowed: "):
        Half(recipe=MLP).run(dataset, device="cpu", parallel="all")  # pyright: ignore[reportArgumentType]


def test_a_process_that_is_killed_loses_the_run_it_was_at_which_another_trains(dataset, tmp_path):
    killed = []

    def kill(progress):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    with pytest.warns(Notice, match=r"^1 of 2 processes died \(killed by SIGKILL.*\); the others trained what they"):
        found = run(LONG, dataset, tmp_path, on_progress=kill)
    assert [found[job].seed for job in LONG] == [0, 1, 2, 3] and all(found[job].steps == 500 for job in LONG)


def test_where_all_die_it_is_said_of_what_and_at_which_runs(dataset, tmp_path):
    with pytest.raises(ProcessesDied, match=r"^all 2 processes that trained died: exit status 3 at odd/seed-\d; exit "):
        run([JOBS[0], *with_start(ends, seeds=2)], dataset, tmp_path)


def test_a_run_that_fails_in_every_process_has_failed_and_the_others_are_trained(dataset, tmp_path):
    said = []
    jobs = [JOBS[0], *with_start(no_memory), JOBS[1]]
    found = run(jobs, dataset, tmp_path, on_progress=said.append)
    assert found[jobs[1]] == Failed("no memory for this one") and [found[job].seed for job in jobs[::2]] == [0, 1]
    assert sorted(progress.key for progress in said) == ["mlp/seed-0", "mlp/seed-1", "odd/seed-0"]


def test_a_refusal_in_a_process_is_that_of_all_and_notices_are_said(dataset, tmp_path):
    jobs = [JOBS[0], *with_start(notices, arm="notices"), *with_start(refused), *LONG]
    with pytest.warns(Notice, match="^look here$"), pytest.raises(UserError, match=r"^nothing like it; allowed: an"):
        run(jobs, dataset, tmp_path)


def test_processes_import_the_plug_ins(dataset, tmp_path, monkeypatch):
    said = "import warnings\nfrom fastcifar.errors import Notice\nwarnings.warn('a plug-in is here', Notice)\n"
    (tmp_path / "says_that_it_is_here.py").write_text(said)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "PLUGINS", [])
    monkeypatch.setattr(parallel, "PLUGINS", registry.PLUGINS)
    with pytest.warns(Notice):
        registry.import_plugin("says_that_it_is_here")
    with pytest.warns(Notice, match="^a plug-in is here$"):
        run(JOBS[:2], dataset, tmp_path / "kept")


def test_who_stops_listening_ends_the_processes(dataset, tmp_path):
    jobs = [*JOBS[:1], *(dataclasses.replace(job, recipe=dataclasses.replace(BARE, epochs=10**4)) for job in LONG)]
    with closing(iter(runner_for(2, jobs, dataset, Store(tmp_path, {}), "cpu"))) as found:
        assert next(found)[0] is jobs[0]
    assert {path.suffix for path in tmp_path.rglob("seed-*")} <= {".json", ".safetensors", ".lock"}
    assert len(list(tmp_path.rglob("seed-*.json"))) == 1


def test_what_is_shared_is_equal_and_in_shared_memory_and_views_of_the_given_stay_sound(dataset):
    on_host = KeptSplit(HostStore(dataset.train.images.clone()), dataset.train.labels)
    kept = dataclasses.replace(dataset, train=on_host)
    for given in (dataset, kept):
        view = given.train.images.numpy()
        before = view.copy()
        found = shared(given)
        for name in ("train", "test"):
            there, here = getattr(given, name), getattr(found, name)
            assert torch.equal(there.images, here.images) and torch.equal(there.labels, here.labels)
            assert here.images.is_shared() and here.labels.is_shared() and not there.labels.is_shared()
            assert here.resident == there.resident
        assert found.sha256 == given.sha256 and (view == before).all()
    some = kept.take(20)
    assert torch.equal(shared(some).train.images, some.train.images)


def test_images_that_the_system_cannot_share_are_refused_in_a_line(dataset, tmp_path, monkeypatch):
    def full(_):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)\nat"
        )

    monkeypatch.setattr("fastcifar.experiments.parallel.shared", full)
    with pytest.raises(
        UserError, match=r"cannot be shared by 2 processes: unable .* \(28\); allowed: a larger /dev/shm"
    ):
        run(LONG, dataset, tmp_path)
