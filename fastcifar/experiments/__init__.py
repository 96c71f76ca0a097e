"""Experiments: many trainings that answer one question, each kept as it is finished, so that an interrupted experiment
goes on where it was. `Experiment` is their base, and each file of `named` holds one."""

from fastcifar.experiments.experiment import EXPERIMENTS, Experiment, Job, experiment
from fastcifar.experiments.result import Diverged, Failed, Outcome, Result

__all__ = ["EXPERIMENTS", "Diverged", "Experiment", "Failed", "Job", "Outcome", "Result", "experiment"]
