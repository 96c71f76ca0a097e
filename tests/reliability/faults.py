"""Disks that fill, folders that can no longer be written, data that goes away, clocks that are set back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.trainings import Ended, Training, same

_CLOCK = """\
import time
began, now, back = time.monotonic(), time.time, time.gmtime
def earlier():
    return now() - 400 * 86400 * (time.monotonic() - began > {seconds})
time.time = earlier
time.gmtime = lambda seconds=None: back(earlier() if seconds is None else seconds)
"""
"""A `sitecustomize` that sets the clock back by more than a year, `seconds` after the start of a process."""

_DATA = """\
from pathlib import Path
import numpy as np
import fastcifar

@fastcifar.dataset("kept")
def load(data_dir: Path | None) -> fastcifar.Dataset:
    \"\"\"Images in one file.\"\"\"
    try:
        with np.load(data_dir / "images.npz") as found:
            images, labels = found["images"], found["labels"]
    except OSError as error:
        raise fastcifar.UserError(f"cannot read {data_dir}: {error.strerror}") from None
    return fastcifar.Dataset.from_arrays(images[:400], labels[:400], images[400:], labels[400:])
"""
"""A plug-in whose data lies in a folder."""


@dataclass
class Faults:
    """What came of trainings that met a fault."""

    trainings: int = 0
    clear: int = 0
    """Those that ended well, or with one clear line."""
    kept: int = 0
    """Those whose network was there at the end: in its folder, in another that was named, or after going on."""
    faults: list[str] = field(default_factory=list)

    def note(self, what: str, ended: Ended, is_kept: bool, allowed: tuple[int, ...] = (0, 2)) -> None:
        """Count a training that `ended`."""
        self.trainings += 1
        is_clear = ended.status in allowed and ended.is_clear and (ended.status == 0 or len(ended.lines) >= 1)
        self.clear += is_clear
        self.kept += is_kept
        if not (is_clear and is_kept):
            self.faults.append(f"{what}: status {ended.status}: {ended.errors}")


@contextlib.contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a small file system, which needs the superuser. Raises PermissionError where that is not allowed."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)], capture_output=True
    )
    if done.returncode:
        raise PermissionError(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder: Path, sizes: tuple[int, ...] = (2000, 600, 300, 150, 60, 8)) -> Faults:
    """Let the disk fill while a training writes, at `sizes` kilobytes that are left; then free it and go on."""
    found, expected = Faults(), _expected(folder)
    for size in sizes:
        with disk(folder / f"disk-{size}", 4000) as place:
            training = _training(place / "run")
            process = training.start(cwd=folder)
            _wait_for(training.folder / "unfinished.json", process)
            filler = place / "filler"
            _fill(filler, size)
            ended = Ended.of(process)
            filler.unlink(missing_ok=True)
            found.note(f"{size} kB left", ended, _is_kept(training, ended, expected, folder))
    return found


def read_only(folder: Path) -> Faults:
    """Let nothing more be written into a training's folder; then go on once it can be. Raises PermissionError where
    that cannot be forbidden, as the superuser alone can."""
    found, expected = Faults(), _expected(folder)
    training = _training(folder / "run")
    process = training.start(cwd=folder)
    _wait_for(training.folder / "checkpoints", process)
    done = subprocess.run(["chattr", "-R", "+i", str(training.folder)], capture_output=True, text=True)
    try:
        if done.returncode:
            process.kill()
            raise PermissionError(f"no folder can be made immutable here: {done.stderr.strip()}")
        ended = Ended.of(process)
    finally:
        subprocess.run(["chattr", "-R", "-i", str(training.folder)], capture_output=True)
    found.note("read-only", ended, _is_kept(training, ended, expected, folder))
    return found


def data_gone(folder: Path) -> Faults:
    """Remove the data's folder while a training goes on, kill that, and go on without the data and with it."""
    import numpy as np

    plugin, data, away = folder / "kept_data.py", folder / "data", folder / "away"
    data.mkdir(parents=True)
    plugin.write_text(_DATA)
    random = np.random.default_rng(0)
    images, labels = random.integers(256, size=(480, 32, 32, 3), dtype=np.uint8), random.integers(10, size=480)
    np.savez(data / "images.npz", images=images, labels=labels)
    more = ("--plugin", "kept_data", "--dataset", "kept", "--data-dir", str(data), "--checkpoint-every", "0.3")
    found, expected = Faults(), {}
    for name in ("whole", "alone", "killed"):
        training = Training.of("everything", folder / name, *more)
        process = training.start(cwd=folder)
        if name == "whole":
            found.note(name, Ended.of(process), True, (0,))
            expected = training.made()
            continue
        _wait_for(training.folder / "checkpoints", process)
        data.rename(away)
        if name == "killed":
            process.kill()
            Ended.of(process)
            refused = Ended.of(training.start(resume=True, cwd=folder))
            found.note("going on without the data", refused, refused.status == 2 and len(refused.lines) == 1)
            away.rename(data)
            process = training.start(resume=True, cwd=folder)
        ended = Ended.of(process)
        found.note(f"data removed, {name}", ended, not same(training.made(), expected), (0,))
        if away.is_dir():
            away.rename(data)
    return found


def clock_set_back(folder: Path) -> Faults:
    """Set the clock back while a training goes on, and between that and the one that goes on with it."""
    found, expected = Faults(), _expected(folder)
    for name, seconds in (("within", 4.0), ("before", 0.0)):
        site = folder / f"site-{name}"
        site.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(_CLOCK.format(seconds=seconds))
        training = _training(folder / name)
        path = os.pathsep.join([str(site), str(Path(__file__).parents[2])])
        other = Training(training.folder, training.arguments, {"PYTHONPATH": path})
        process = (other if name == "within" else training).start()
        if name == "before":
            _wait_for(training.folder / "checkpoints", process)
            process.kill()
            Ended.of(process)
            process = other.start(resume=True)
        found.note(f"clock set back {name}", ended := Ended.of(process), not same(training.made(), expected), (0,))
        if ended.errors:
            found.faults.append(ended.errors)
    return found


def _training(folder: Path) -> Training:
    return Training.of("everything", folder, "--checkpoint-every", "0.3")


def _expected(folder: Path) -> dict[str, str]:
    training = _training(folder / "whole")
    ended = training.run()
    assert ended.status == 0, ended.errors
    return training.made()


def _is_kept(training: Training, ended: Ended, expected: dict[str, str], folder: Path) -> bool:
    """Return whether what `expected` names is there: in the folder, in one that was named, or after going on."""
    if ended.status:
        instead = [
            line.partition("saved in ")[2].partition(" instead")[0] for line in ended.lines if "saved in " in line
        ]
        if instead:
            other = Training(folder / instead[0], ())
            mismatch = [name for name in same(other.made(), expected) if "/" not in name]
            shutil.rmtree(other.folder)
            return not mismatch
        if not training.folder.is_dir():
            return False
        ended = training.run(resume=True)
    differ = same(training.made(), expected)
    # Weights of an epoch for which there was no room are not made again.
    return ended.status == 0 and all(name.startswith("weights/") and name not in training.made() for name in differ)


def _fill(file: Path, left: int) -> None:
    """Fill the disk with `file` up to `left` kilobytes."""
    free = shutil.disk_usage(file.parent).free
    with contextlib.suppress(OSError), open(file, "wb") as filler:
        filler.write(bytes(max(0, free - left * 1024)))


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `path` is there, and holds something where it is a folder."""
    until = time.monotonic() + 120
    while not (path.is_file() or (path.is_dir() and any(each.suffix == ".pt" for each in path.iterdir()))):
        if process.poll() is not None or time.monotonic() > until:
            raise AssertionError(f"{path} did not come: {process.stderr and process.stderr.read()}")
        time.sleep(0.01)


CHECKS: dict[str, Callable[[Path], Faults]] = {
    "the disk is full": full_disk,
    "the folder becomes read-only": read_only,
    "the data's folder is removed": data_gone,
    "the clock is set back": clock_set_back,
}
