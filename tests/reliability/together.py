"""Processes that meet: in one folder of a run, in one folder of several runs, and in an empty folder of data."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastcifar.data.releases import CIFAR10
from tests.data.server import Server, begin, running
from tests.reliability.trainings import ROOT, Ended, Training

RECORDS = 200
"""Images in each batch of the archive that is downloaded."""
_LOAD = """\
import json, sys, time
from pathlib import Path
from fastcifar.data.cifar import load_release
from fastcifar.data.releases import CIFAR10
import dataclasses
url, md5, size, records, cache, at = json.loads(sys.argv[1])
binary = dataclasses.replace(CIFAR10.binary, md5=md5, sha256="", size=size)
release = dataclasses.replace(CIFAR10, records=[records] * 6, binary=binary, homes=(url,))
time.sleep(max(0, at - time.time()))
print(load_release(release, None, Path(cache)).sha256)
"""


def figures(folder: Path) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """Give what, the figure, n and what went wrong, of each meeting."""
    for what, meeting in MEETINGS.items():
        place = folder / what.replace(" ", "-")
        place.mkdir(parents=True)
        yield what, *meeting(place)


def one_folder(folder: Path) -> tuple[str, int, tuple[str, ...]]:
    """Start two trainings into one folder at once."""
    rounds, wrong = 3, []
    for number in range(rounds):
        training = Training.of("averages", folder / str(number))
        ended = [Ended.of(process) for process in [training.start(), training.start()]]
        first, second = sorted(ended, key=lambda each: each.status)
        if (first.status, second.status, len(second.lines)) != (0, 2, 1) or not second.is_clear:
            wrong.append(f"{[(each.status, each.errors) for each in ended]}")
    return f"one trained and one was refused, {rounds - len(wrong)} times", rounds, tuple(wrong)


def shared_runs(folder: Path) -> tuple[str, int, tuple[str, ...]]:
    """Start three processes that share six runs."""
    training = Training.of("averages", folder / "runs", "--runs", "6")
    ended = [Ended.of(process) for process in [training.start() for _ in range(3)]]
    lines = [json.loads(line) for line in (training.folder / "runs.jsonl").read_text().splitlines()]
    seeds = sorted(line["seed"] for line in lines)
    wrong = [each.errors for each in ended if each.status]
    wrong += [f"seeds {seeds}"] * (seeds != list(range(6)))
    return f"{len(set(seeds))} runs, each trained once", len(ended), tuple(wrong)


def empty_data_folder(folder: Path) -> tuple[str, int, tuple[str, ...]]:
    """Start eight processes on an empty cache, whose home is slow."""
    content = _archive()
    sent: list[int] = []

    def slowly(handler, content: bytes) -> None:
        rest = begin(handler, content)
        while rest:
            handler.wfile.write(rest[: 1 << 18])
            sent.append(len(rest[: 1 << 18]))
            rest = rest[1 << 18 :]
            time.sleep(0.2)

    with running(Server(content, slowly)) as server:
        md5, cache = hashlib.md5(content, usedforsecurity=False).hexdigest(), str(folder / "cache")
        url = server.url.replace("set.tar.gz", CIFAR10.binary.filename)
        given = json.dumps([url, md5, len(content), RECORDS, cache, time.time() + 6])
        command = [sys.executable, "-c", _LOAD, given]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options = {"cwd": ROOT, "env": {**os.environ, "FASTCIFAR_DATA": ""}, **pipes}
        ended = [Ended.of(each) for each in [subprocess.Popen(command, **options) for _ in range(8)]]
    sums = {each.output for each in ended}
    wrong = [each.errors for each in ended if each.status]
    wrong += [f"{sum(sent):,} bytes were sent of {len(content):,}"] * (sum(sent) != len(content))
    wrong += [f"they read {len(sums)} different sets"] * (len(sums) != 1)
    value = f"{len(server.asked)} download of {sum(sent) / len(content):.2f} times the archive, {len(sums)} copy"
    return value, len(ended), tuple(wrong)


def _archive() -> bytes:
    """Return an archive of the official form with random images."""
    release, random = CIFAR10, np.random.default_rng(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in release.binary.batches:
            batch = random.integers(256, size=(RECORDS, 3073), dtype=np.uint8)
            batch[:, 0] %= 10
            member = tarfile.TarInfo(f"{release.binary.folder}/{name}")
            member.size = batch.nbytes
            tar.addfile(member, io.BytesIO(batch.tobytes()))
    return buffer.getvalue()


MEETINGS: dict[str, Callable[[Path], tuple[str, int, tuple[str, ...]]]] = {
    "two trainings into one folder at once": one_folder,
    "processes that share the runs of one folder": shared_runs,
    "processes that start on an empty data folder at once": empty_data_folder,
}
