"""Training, evaluation, stopwatches and run folders."""

from fastcifar.data import resolve_device
from fastcifar.phases import process_seconds
from fastcifar.record import EpochRow, RunRecord
from fastcifar.training.average import estimate_statistics
from fastcifar.training.checkpoint import Checkpoints
from fastcifar.training.device import convolution_seconds, describe_device, resolve_dtype
from fastcifar.training.evaluate import Evaluation, evaluate
from fastcifar.training.initialize import initialize
from fastcifar.training.listeners import Listener
from fastcifar.training.run import Run, load_run
from fastcifar.training.state import TrainingState
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.train import Trainer, train
from fastcifar.training.weights import load_weights

__all__ = [
    "Checkpoints",
    "EpochRow",
    "Evaluation",
    "Listener",
    "Run",
    "RunRecord",
    "Stopwatch",
    "Trainer",
    "TrainingState",
    "convolution_seconds",
    "describe_device",
    "estimate_statistics",
    "evaluate",
    "initialize",
    "load_run",
    "load_weights",
    "process_seconds",
    "resolve_device",
    "resolve_dtype",
    "train",
]
