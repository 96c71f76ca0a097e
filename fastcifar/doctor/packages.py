"""Python, the packages that fastcifar needs and may use, and the command that was installed."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcifar.doctor.finding import Finding, fail, import_error, imported, ok, warn

_PYTHON = (3, 10)
_INSTALL = f"{sys.executable} -m pip install"
_FROM_FOLDER = f"{_INSTALL} -e FOLDER, its checkout"


def python() -> Finding:
    found = f"{platform.python_version()} ({platform.platform(terse=True)}), {sys.executable}"
    allowed = ".".join(map(str, _PYTHON))
    return ok(found) if sys.version_info >= _PYTHON else fail(found, f"use Python {allowed} or newer")


def required() -> Finding:
    """Examine the packages that fastcifar needs, but torch."""
    here, problems = [], []
    for requirement in _requirements():
        if requirement.name == "torch":
            continue
        problem = _unmet(requirement) or import_error(requirement.name)
        if problem:
            problems.append(f"{requirement.name}: {problem}")
        else:
            here.append(f"{requirement.name} {importlib.metadata.version(requirement.name)}")
    if _distribution() is None:
        return warn("fastcifar itself is not installed: what it needs is not known", _FROM_FOLDER)
    if problems:
        names = " ".join(f"'{problem.partition(':')[0]}'" for problem in problems)
        return fail("; ".join(problems), f"{_INSTALL} --force-reinstall {names}")
    return ok(", ".join(here))


def torch() -> Finding:
    requirement = next((each for each in _requirements() if each.name == "torch"), None)
    problem = (requirement and _unmet(requirement)) or import_error("torch")
    if problem:
        return fail(problem, f"{_INSTALL} '{requirement or 'torch'}'")
    module = imported("torch")
    build = f"for CUDA {module.version.cuda}" if module.version.cuda else "without CUDA"
    return ok(f"{module.__version__}, built {build}" + (f"; {requirement} is needed" if requirement else ""))


def extras() -> Finding:
    """Say which extras are installed, and how to install the others."""
    here, absent = [], []
    installed = _distribution()
    for extra in (installed and installed.metadata.get_all("Provides-Extra")) or []:
        lacking = [each.name for each in _requirements(extra) if _unmet(each)]
        if lacking:
            absent.append(f"{extra} (lacks {', '.join(lacking)})")
        else:
            here.append(extra)
    said = [f"installed: {', '.join(here)}"] * bool(here) + [f"not installed: {', '.join(absent)}"] * bool(absent)
    return ok("; ".join(said) or "there are none", f"if needed, {_INSTALL} 'fastcifar[NAME]'" if absent else "")


def command() -> Finding:
    """Examine whether `fastcifar` on PATH is the one that was installed with this package."""
    installed = _distribution()
    ours = [
        path
        for file in (installed and installed.files) or []
        if file.stem == "fastcifar" and (path := _located(file)).suffix in ("", ".exe")
    ]
    ours = [path for path in ours if path.is_file()]
    found, advice = shutil.which("fastcifar"), f"{sys.executable} -m fastcifar does the same"
    if found is None:
        folder = f", or add {ours[0].parent} to PATH" if ours else ""
        return warn("fastcifar is not on PATH", advice + folder)
    if Path(found).resolve() in ours:
        return ok(found)
    return warn(f"fastcifar on PATH is {found}, of another installation", advice)


def _located(file: importlib.metadata.PackagePath) -> Path:
    return Path(str(file.locate())).resolve()


def _distribution() -> importlib.metadata.Distribution | None:
    """Return what is known of the installed package; None where fastcifar runs from a folder alone."""
    try:
        return importlib.metadata.distribution("fastcifar")
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(extra: str = "") -> Iterator[Any]:
    """Give the requirements of fastcifar, or those of an extra alone, that count on this machine."""
    installed = _distribution()
    parsed = imported("packaging.requirements", "packaging")
    for text in (installed and installed.requires) or []:
        requirement = parsed.Requirement(text)
        marker = requirement.marker
        of_extra = marker is not None and "extra" in str(marker)
        if of_extra == bool(extra) and (marker is None or marker.evaluate({"extra": extra})):
            requirement.marker = None
            yield requirement


def _unmet(requirement: Any) -> str:
    """Return in what way `requirement` is not met, "" if it is."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    return "" if requirement.specifier.contains(version, prereleases=True) else f"{version}; allowed: {requirement}"
