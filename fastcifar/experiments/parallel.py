"""`ParallelRunner`: trains several jobs of an experiment at once on one device, each in a process of its own.

The processes are fresh ones that are given the jobs, the images in shared memory (on CUDA: as handles of the resident
tensors), and the store, whose claims share the jobs out: each is a `Runner`. What they find they tell the parent, which
trains nothing, and is told of as one process is. One that dies loses the run it was at, which another then trains.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import torch
import torch.multiprocessing  # teaches the pickler to hand tensors over

from fastcifar.data import Dataset
from fastcifar.data.shared import shared
from fastcifar.errors import Notice, ProcessesDied, UserError, as_out_of_memory, is_out_of_memory
from fastcifar.experiments.experiment import Job
from fastcifar.experiments.result import Failed, Outcome, is_tried_again
from fastcifar.experiments.runner import Keeper, OnProgress, Runner
from fastcifar.kernels import keep_freed_memory
from fastcifar.phases import Phases
from fastcifar.record import RunRecord
from fastcifar.registry import PLUGINS, import_plugin
from fastcifar.signals import NUMBERS, SIGNALS, Interrupted, Stop
from fastcifar.training import Listener, resolve_device
from fastcifar.training.device import convolution_seconds, take_convolution_seconds

_LOOK_SECONDS = 0.5
"""The parent looks so often for what processes of other commands have finished."""


def at_once(parallel: int | Literal["auto"], runs: int, device: str | torch.device) -> int:
    """Return how many of `runs`, those of an arm, to train at once: for "auto" on a CPU one for each of torch's
    threads, which saves what threads lose that share a small network's steps, and on a GPU one."""
    if parallel != "auto":
        return parallel
    return min(runs, torch.get_num_threads()) if resolve_device(device).type == "cpu" else 1


def runner_for(
    parallel: int,
    jobs: Sequence[Job],
    dataset: Dataset,
    store: Keeper,
    device: str | torch.device = "auto",
    *,
    listeners: Sequence[Listener] = (),
    on_progress: OnProgress | None = None,
    phases: Phases | None = None,
) -> Runner:
    """Return what trains `jobs`, `parallel` of them at once; the other arguments are those of `Runner`. Listeners hear
    of the runs of this process alone: of none where there are several."""
    how = {"on_progress": on_progress, "phases": phases}
    if min(parallel, len(jobs)) > 1:
        return ParallelRunner(parallel, jobs, dataset, store, device, **how)
    return Runner(jobs, dataset, store, device, listeners=listeners, **how)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    at: str | None = None
    """The key of the job that it trains."""
    failed: dict[str, Failed] = field(default_factory=dict)
    """Jobs that failed there, and may do better in another process."""
    reason: str = ""
    """Why it died, where it could say."""


class ParallelRunner(Runner):
    """A `Runner` that trains up to `parallel` jobs at once, with torch's present number of threads split among them.

    There are no more processes than jobs that are left. The threads of each go by `parallel` all the same, so that the
    last runs have the bits of the others. Iterating raises ProcessesDied where all have died; that some did, and the
    others went on, is said in a `Notice` at the end.
    """

    def __init__(
        self,
        parallel: int,
        jobs: Sequence[Job],
        dataset: Dataset,
        store: Keeper,
        device: str | torch.device = "auto",
        *,
        on_progress: OnProgress | None = None,
        phases: Phases | None = None,
    ) -> None:
        super().__init__(jobs, dataset, store, device, on_progress=on_progress, phases=phases)
        self.parallel = min(parallel, len(self.jobs))
        self.threads = max(1, torch.get_num_threads() // self.parallel)
        """Of each process."""
        self._workers: list[_Worker] = []
        self._known_to_workers = 0
        """Jobs, from the first, that the processes started last were given."""
        self._deaths: list[str] = []
        self._said = set[str]()

    def __iter__(self) -> Iterator[tuple[Job, Outcome]]:
        try:
            yield from super().__iter__()
        finally:
            self._end()
            if self._deaths and sys.exc_info()[0] in (None, GeneratorExit):
                count = f"{len(self._deaths)} of {self._processes} processes died"
                what = f"{count} ({'; '.join(self._deaths)}); the others trained what they left"
                warnings.warn(what, Notice, stacklevel=2)

    def _share(self, count: int) -> None:
        self._known_to_workers = len(self.jobs)
        try:
            self._start(count)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            what = f"the images cannot be shared by {count} processes: {str(error).partition(chr(10))[0]}"
            raise UserError(f"{what}; allowed: a larger /dev/shm (docker run --shm-size), or one process") from None

    def _start(self, count: int) -> None:
        self.free_memory()
        self._dataset = shared(self._dataset.to(self._device))
        on_cpu = self._device.type == "cpu"
        measures = on_cpu and any(job.recipe.dtype == "auto" for job in self.jobs)
        task = _Task(
            self.jobs,
            self._dataset,
            self._store,
            self._dataset.train.device,  # with its number on CUDA
            self.threads,
            convolution_seconds() if measures else {},
            self._phases,
        )
        self._processes = count
        context = multiprocessing.get_context("spawn")
        for _ in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, tuple(PLUGINS), _Sealed(task)), daemon=True)
            with _signals_waiting():  # the process lets them wait too, until it can take them
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))

    def _end(self) -> None:
        """End the processes that are left; a training first keeps its state."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def _known(self, job: Job) -> Outcome | None:
        outcome = super()._known(job)
        if outcome is not None and job.key not in self._outcomes:
            self._hear(0)  # a process of ours tells of it a moment after it is kept
            if any(worker.at == job.key for worker in self._workers):
                return None
        return self._outcomes.get(job.key) or outcome

    def _train_one_of(self, jobs: Sequence[Job]) -> bool:
        """Wait for a moment for what the processes find; start them, where the earlier ones were not given all jobs."""
        if not self._workers and self._known_to_workers < len(self.jobs):
            self._share(min(self.parallel, sum(not self._is_done(job.key) for job in jobs)))
        if not self._workers:
            died = "; ".join(self._deaths) or "without a reason"
            raise ProcessesDied(f"all {self._processes} processes that trained died: {died}")
        self._hear(_LOOK_SECONDS)
        return True

    def _hear(self, seconds: float) -> None:
        """Take what the processes tell within `seconds`."""
        told = wait([worker.pipe for worker in self._workers], seconds)
        for worker in [worker for worker in self._workers if worker.pipe in told]:
            try:
                while worker.pipe.poll():
                    self._take(worker, *worker.pipe.recv())
            except (EOFError, OSError):  # the latter where it was killed in the midst of a message
                self._bury(worker)

    def _take(self, worker: _Worker, what: str, value: Any, outcome: Any = None, seconds: float = 0.0) -> None:
        if what == "begins":
            worker.at = value
        elif what == "ends":
            worker.at = None
            if is_tried_again(outcome):
                worker.failed[value] = outcome
                self._note_failures(self._workers)
                return
            if isinstance(outcome, RunRecord) and not outcome.resumed:
                self._learn(self._jobs[value], seconds)
            self._note(value, outcome)
        elif what == "says":
            warnings.warn(value, Notice, stacklevel=2)
        elif what == "dies":
            worker.reason = value
        else:
            raise value

    def _note_failures(self, workers: Sequence[_Worker]) -> None:
        """Note the jobs that failed in every one of these processes: they count as failed."""
        first, *others = workers
        for key, outcome in first.failed.items():
            if key not in self._outcomes and all(key in other.failed for other in others):
                self._note(key, outcome)

    def _note(self, key: str, outcome: Outcome) -> None:
        self._outcomes[key] = outcome
        self._say(0, self._jobs[key], outcome, False)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        code = worker.process.exitcode or 0
        if code:
            how = worker.reason or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")
            self._deaths.append(how + (f" at {worker.at}" if worker.at else ""))
        self._workers.remove(worker)
        self._note_failures(self._workers or [worker])  # what failed in the last one has failed in all

    def _say(self, done: int, job: Job, outcome: Outcome | None, kept: bool) -> None:
        if job.key not in self._said:  # each as it comes, not in the order of the jobs
            self._said.add(job.key)
            super()._say(len(self._said), job, outcome, kept)


@dataclass(frozen=True)
class _Task:
    """What a process is given."""

    jobs: Sequence[Job]
    dataset: Dataset
    store: Keeper
    device: torch.device
    threads: int
    convolution_seconds: Mapping[torch.dtype, float]
    phases: Phases


class _Sealed:
    """A task that is unpickled when it is opened: where that fails, for want of memory, say, `_work` can tell."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __reduce__(self) -> tuple[type[_Sealed], tuple[bytes]]:
        return _Sealed, (bytes(ForkingPickler.dumps(self._task)),)

    def open(self) -> _Task:
        # From the parent alone, as multiprocessing hands over all else.
        return ForkingPickler.loads(self._task)  # pyright: ignore[reportAttributeAccessIssue]  (pickle.loads itself)


class _Telling:
    """A store that tells the parent of the jobs that begin and end here."""

    def __init__(self, store: Keeper, pipe: Connection) -> None:
        self._store, self._pipe, self._began = store, pipe, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def state(self, job: Job) -> Mapping[str, Any] | None:
        self._began = time.perf_counter()
        self._pipe.send(("begins", job.key))
        return self._store.state(job)

    def put(self, job: Job, *how: Any, **options: Any) -> Outcome:
        outcome = self._store.put(job, *how, **options)
        self._pipe.send(("ends", job.key, outcome, time.perf_counter() - self._began))
        SIGNALS.is_held = False
        if SIGNALS.number:  # one that came in the final evaluation
            raise SIGNALS.interrupted()
        return outcome


def _work(pipe: Connection, plugins: tuple[str, ...], sealed: _Sealed) -> None:
    """Train, as one of several processes, what no other does."""
    status = 128 + signal.SIGTERM
    with contextlib.suppress(Interrupted):  # by the parent, wherever this process is
        status = _status_of(pipe, plugins, sealed)
    sys.exit(status)


def _status_of(pipe: Connection, plugins: tuple[str, ...], sealed: _Sealed) -> int:
    for number in NUMBERS:  # a terminal sends its signals to every process: the parent alone ends this one
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    with SIGNALS.taken(), warnings.catch_warnings():
        SIGNALS.is_patient = True  # of a group's signal, and then the parent's
        _tell_notices(pipe)
        try:
            for module in plugins:  # before the task, which may need them
                import_plugin(module)
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
            _train(pipe, sealed)
        except BrokenPipeError:  # nobody hears of it any more
            return 1
        except UserError as error:
            pipe.send(("fails", error))
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            pipe.send(("dies", str(as_out_of_memory(error))))
            return 5
    return 0


def _train(pipe: Connection, sealed: _Sealed) -> None:
    task = sealed.open()
    torch.set_num_threads(task.threads)
    take_convolution_seconds(task.convolution_seconds)
    if task.device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(task.device)
    threading.Thread(target=_end_with_parent, args=(task.device.type == "cpu",), daemon=True).start()
    listeners = []
    if task.store.keep_state:
        stop = Stop(SIGNALS, task.store.keep_state)
        listeners.append(Listener(on_start=stop.begin, on_step=stop.step, on_epoch=stop.epoch))
    store: Any = _Telling(task.store, pipe)
    for _ in Runner(task.jobs, task.dataset, store, task.device, listeners=listeners, phases=task.phases):
        pass


def _end_with_parent(softly: bool) -> None:
    """End this process when its parent does, however that came about; `softly`: a training keeps its state, which is
    sound where the images are still there."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if not softly:
        os._exit(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _tell_notices(pipe: Connection) -> None:
    """Let the parent say what is to be noticed."""
    others = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, Notice):
            pipe.send(("says", str(message)))
        else:
            others(message, category, *where)

    warnings.showwarning = tell
    warnings.simplefilter("default", Notice)


@contextlib.contextmanager
def _signals_waiting() -> Iterator[None]:
    """Let signals wait while the block runs, and in a process that is started there."""
    can_block = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS) if can_block else []
    SIGNALS.is_held = True  # another thread may take one
    try:
        yield
    finally:
        SIGNALS.is_held = False
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if SIGNALS.number:
        raise SIGNALS.interrupted()
