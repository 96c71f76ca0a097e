"""Parts `peers`, `cold` and `parallel`: what needs processes of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.campaign.campaign import Campaign, Record
from bench.campaign.recipes import shrink
from bench.peers import PeerError, Worker
from bench.peers.clocks import read_clocks
from bench.peers.programs import OURS, PROGRAMS
from bench.peers.worker import CACHES
from fastcifar.recipes import RECIPES, to_toml

_RIVALS = ("cifar10-speedrun", "airbench94_muon", "cifar10-fast", "airbench95", "airbench96_faster", "hlb-CIFAR10")
"""The programs set beside ours, in order of value: while the first lacks runs, no later one has its turn."""
_ROUNDS = 20
_GAP_SECONDS = 1.0
"""Idle before each run, the same for all, so that none starts on a hotter chip."""


def side_by_side(campaign: Campaign) -> Iterator[Record]:
    """Whole trainings of each program and of our recipe beside it, in turn, up to `_ROUNDS` of each over all calls."""
    if campaign.peers is None and not campaign.tiny:
        yield {"what": "skipped", "reason": "no --peers folder"}
        return
    for rival in ("tiny",) if campaign.tiny else _RIVALS:
        yield from _pair(campaign, rival)
        if campaign.seconds_left < 0:
            return


def _pair(campaign: Campaign, rival: str) -> Iterator[Record]:
    names = _names(campaign, rival)
    before = [record for record in campaign.records("peers") if record.get("pair") == rival]
    rounds = 2 if campaign.tiny else _ROUNDS
    done = min(sum(record.get("peer") == name and not record["warm_up"] for record in before) for name in names)
    if done >= rounds:
        return
    workers: list[Worker] = []
    try:
        for name in names:
            try:
                workers.append(_worker(campaign, name))
            except PeerError as error:
                yield {"what": "failed", "pair": rival, "peer": name, "reason": str(error), "log": error.traceback}
                return
        longest = 0.0
        for number in itertools.count(done):
            began = time.monotonic()
            # A worker's first run also compiles: it is kept, and counted as a warm-up.
            for worker, name in zip(workers, names, strict=True):
                time.sleep(0.0 if campaign.tiny else _GAP_SECONDS)
                speed = read_clocks(campaign.device.type)
                try:
                    steps = 2 if campaign.tiny else None
                    result = worker.run(steps, seed=number, timeout=max(60.0, 2 * campaign.seconds_left))
                except PeerError as error:
                    yield {"what": "failed", "pair": rival, "peer": name, "reason": str(error), "log": error.traceback}
                    return
                yield {"what": "run", "pair": rival, "warm_up": number == done, "clocks": speed, **result, "peer": name}
            if number > done:
                longest = max(longest, time.monotonic() - began)
            if number - done >= rounds - done or campaign.seconds_left < longest:
                return
    finally:
        for worker in workers:
            worker.close()


def _names(campaign: Campaign, rival: str) -> tuple[str, str]:
    if rival == "tiny":
        file = campaign.out / "tiny.toml"
        file.write_text(to_toml(shrink(RECIPES["davidnet"])), encoding="utf-8")
        return OURS + str(file.resolve()), OURS + str(file.resolve())
    return rival, OURS + (PROGRAMS[rival].rival or "davidnet")


def _worker(campaign: Campaign, name: str) -> Worker:
    checkout = None if name.startswith(OURS) else campaign.peers / PROGRAMS[name].checkout
    data = "synthetic" if campaign.tiny else campaign.data
    return Worker(name, checkout, data, campaign.device.type, _caches(campaign), max(60.0, campaign.seconds_left))


def _caches(campaign: Campaign) -> Path:
    return campaign.out / "compiled"


def cold(campaign: Campaign) -> Iterator[Record]:
    """From the start of a fresh process with empty compile caches to its first accuracy: ours, then the peers'."""
    recipes = ["davidnet"] if campaign.tiny else ["davidnet", "speedrun94"]
    known = {record.get("program") for record in campaign.records("cold")}
    for recipe in recipes:
        if OURS + recipe not in known:
            yield _cold_ours(campaign, recipe)
            if campaign.seconds_left < 0:
                return
    for name in ("airbench94_muon", "cifar10-speedrun") if campaign.peers and not campaign.tiny else ():
        if name not in known:
            yield _cold_peer(campaign, name)
            if campaign.seconds_left < 0:
                return


def _cold_ours(campaign: Campaign, recipe: str) -> Record:
    code = (
        "import sys, json; import fastcifar\n"
        "from fastcifar.recipes import RECIPES; from bench.campaign.recipes import shrink\n"
        "name, data, folder, device, tiny = sys.argv[1:]\n"
        "recipe = shrink(RECIPES[name]) if tiny == 'True' else RECIPES[name]\n"
        "run = fastcifar.train(recipe, data, data_dir=folder or None, device=device, eval_every=0)\n"
        "print(json.dumps({key: run.record.get(key) for key in ('process_seconds', 'train_seconds', 'time_seconds', "
        "'tta_accuracy', 'phases')}))\n"
    )
    dataset = "synthetic" if campaign.tiny else "cifar10"
    arguments = [recipe, dataset, str(campaign.data or ""), campaign.device.type, str(campaign.tiny)]
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, **{name: f"{empty}/{folder}" for name, folder in CACHES.items()}}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, cwd=root, capture_output=True, text=True
        )
        seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"a fresh process of {recipe} ended with {done.returncode}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {"what": "cold", "program": OURS + recipe, "whole_process_seconds": seconds, **told}


def _cold_peer(campaign: Campaign, name: str) -> Record:
    with tempfile.TemporaryDirectory() as empty:
        try:
            checkout = campaign.peers / PROGRAMS[name].checkout
            with Worker(name, checkout, campaign.data, campaign.device.type, Path(empty)) as worker:
                result = worker.run(timeout=max(120.0, 2 * campaign.seconds_left))
                seconds = time.perf_counter() - worker.started
        except PeerError as error:
            return {"what": "failed", "program": name, "reason": str(error), "log": error.traceback}
    return {"what": "cold", "program": name, "process_seconds": seconds, **result}


def parallel(campaign: Campaign) -> Iterator[Record]:
    """The library trains one network at a time."""
    yield {"what": "skipped", "reason": "fastcifar trains one network at a time on a device"}
