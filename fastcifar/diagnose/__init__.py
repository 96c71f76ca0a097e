"""Diagnoses of a training: listeners that measure it while the stopwatch stands still, and what they found."""

from __future__ import annotations

from pathlib import Path

from fastcifar.diagnose.activations import Activations, DiagnoseActivations
from fastcifar.diagnose.curvature import Curvature, DiagnoseCurvature
from fastcifar.diagnose.diagnosis import Diagnosis, Found
from fastcifar.diagnose.forgetting import DiagnoseForgetting, Forgetting
from fastcifar.diagnose.plasticity import DiagnosePlasticity, Plasticity
from fastcifar.diagnose.updates import DiagnoseUpdates, Updates
from fastcifar.output import DIAGNOSE, user_path

__all__ = [
    "DIAGNOSES",
    "Activations",
    "Curvature",
    "DiagnoseActivations",
    "DiagnoseCurvature",
    "DiagnoseForgetting",
    "DiagnosePlasticity",
    "DiagnoseUpdates",
    "Diagnosis",
    "Forgetting",
    "Found",
    "Plasticity",
    "Updates",
    "diagnosis_file",
    "read_diagnosis",
]

DIAGNOSES: dict[str, type[Diagnosis]] = {
    each.found_class.kind: each
    for each in (DiagnoseUpdates, DiagnoseActivations, DiagnoseCurvature, DiagnoseForgetting, DiagnosePlasticity)
}
"""The listeners by the words of --diagnose."""


def diagnosis_file(folder: Path, kind: str) -> Path:
    """Return the file in a run's folder that keeps what the diagnosis `kind` found."""
    return folder / DIAGNOSE / f"{kind}.npz"


def read_diagnosis(file: str | Path) -> Found:
    """Return what a diagnosis kept in `file`, such as runs/a/diagnose/updates.npz. Raises UserError for any other
    file, and for one of a newer version."""
    return Found.read(user_path(file, "the diagnosis"), [each.found_class for each in DIAGNOSES.values()])
