"""What is handed out, tried without the checkout: the wheel and the sdist in a folder hold every file of the package,
and each, installed in a fresh environment, trains.

    python tests/dist.py build/dist    # `make dist-test` builds both before

Needs nothing but Python and pip.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "train --quick --dataset synthetic --train-size 2000 --epochs 1 --out runs/a",
    "eval runs/a",
    "summary runs/a",
    "plot runs/a",
    "report runs/a",
)


def package_files() -> set[str]:
    """Return the files of the package in this checkout, as a wheel holds them: all that is in its folders."""
    rooms = {"fastcifar": ROOT / "fastcifar", "fastcifar/kernels": ROOT / "kernels"}
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in rooms.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_files(wheel: Path) -> set[str]:
    """Return the files of the package in a wheel."""
    with zipfile.ZipFile(wheel) as packed:
        return {name for name in packed.namelist() if ".dist-info/" not in name}


def sdist_files(sdist: Path) -> set[str]:
    """Return the files of the package in an sdist, by the names that a wheel of it has."""
    with tarfile.open(sdist) as packed:
        names = [member.name.partition("/")[2] for member in packed if member.isfile()]
    names = [f"fastcifar/{name}" if name.startswith("kernels/") else name for name in names]
    return {name for name in names if name.startswith("fastcifar/")}


def train(python: Path, folder: Path) -> None:
    """Run `COMMANDS` in an empty folder, with what is installed beside `python`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = {"cwd": folder, "env": environment, "check": True}
    where = [python, "-c", "import fastcifar, fastcifar.kernels; print(fastcifar.__file__, fastcifar.kernels.__file__)"]
    said = subprocess.run(where, **run, capture_output=True, text=True).stdout.split()
    assert all(Path(file).is_relative_to(python.parents[1]) for file in said), said
    for command in COMMANDS:
        print(f"$ fastcifar {command}", flush=True)
        subprocess.run([python.with_name("fastcifar"), *command.split()], **run)


def main(folder: Path) -> None:
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    for name, held in ((wheel.name, wheel_files(wheel)), (sdist.name, sdist_files(sdist))):
        assert held == package_files(), f"{name}: {sorted(held ^ package_files())}"
        print(f"{name} holds the {len(held)} files of the package", flush=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        venv.create(place / "fresh", with_pip=True)
        python = place / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        for what in ([f"{wheel.resolve()}[plot,report]"], ["--no-deps", "--force-reinstall", str(sdist.resolve())]):
            print(f"installing {Path(what[-1]).name}", flush=True)
            subprocess.run([*install, *what], cwd=place, check=True)
            with tempfile.TemporaryDirectory() as empty:
                train(python, Path(empty))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
