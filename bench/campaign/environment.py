"""Part `env`: what the machine is, and the ceilings that every other figure is a share of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from bench.campaign.campaign import Campaign, Record, seconds_per_call
from bench.campaign.recipes import measured_recipes
from bench.convolutions import convolutions
from bench.peers.clocks import read_clocks
from bench.record import versions
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import Recipe
from fastcifar.training import Trainer
from fastcifar.training.device import describe_device, resolve_dtype


def environment(campaign: Campaign) -> Iterator[Record]:
    """Versions and clocks; copy bandwidth, matrix product; the convolutions of each network's step, pass by pass."""
    yield {"what": "environment", **_versions(campaign.device)}
    yield copy_rate(campaign)
    yield _product(campaign)
    # A ceiling: the best that the library knows. The setting is the process's, so that later parts must not find it.
    with searching(True):
        for name, recipe in measured_recipes(campaign).items():
            for record in _convolutions(campaign, recipe):
                yield {"what": "convolution", "recipe": name, **record}
                if campaign.seconds_left < 0:
                    return


def searching(search: bool) -> AbstractContextManager:
    """cuDNN's own search for the fastest kernel, on or off. Its plan cache ignores `benchmark`, but not `allow_tf32`,
    which means nothing in half precision: setting both keeps the plans of a search apart."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=not search)


def _versions(device: torch.device) -> Record:
    record: Record = {
        "device": describe_device(device),
        **versions(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "cudnn": torch.backends.cudnn.version(),
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "clocks": read_clocks(device.type),
        }
    return record


def copy_rate(campaign: Campaign) -> Record:
    """Bytes/s, read and written, of a copy larger than any cache."""
    # No power of two: a graph's copies of just such sizes were seen at half the bandwidth (pytorch issue 191284).
    size = 1000 << 20 if campaign.device.type == "cuda" else 1 << 26
    source = torch.empty(size >> 6 if campaign.tiny else size, dtype=torch.uint8, device=campaign.device).random_()
    target = torch.empty_like(source)
    seconds = seconds_per_call(lambda: target.copy_(source), campaign.device, calls=5)
    return {"what": "copy", "bytes": 2 * source.numel(), "seconds": seconds, "rate": 2 * source.numel() / seconds}


def _product(campaign: Campaign) -> Record:
    """FLOP/s of a large square matrix product in the compute type, on random values: zeros draw less power."""
    side = 256 if campaign.tiny else 8192 if campaign.device.type == "cuda" else 2048
    dtype = resolve_dtype("auto", campaign.device)
    left, right = (torch.randn(side, side, device=campaign.device).to(dtype) for _ in range(2))
    seconds = seconds_per_call(lambda: left @ right, campaign.device, calls=5)
    flop = 2 * side**3
    return {"what": "product", "side": side, "dtype": str(dtype), "seconds": seconds, "rate": flop / seconds}


def _convolutions(campaign: Campaign, recipe: Recipe) -> Iterator[Record]:
    """Each pass of each convolution of the recipe's step, seconds and FLOP/s."""
    trainer = Trainer(recipe, make_synthetic(4 * recipe.batch_size, 10), campaign.device)  # recipes may leave some out
    for part in convolutions(trainer):
        calls = 1 if campaign.tiny else 10
        seconds = {which: seconds_per_call(call, campaign.device, calls) for which, call in part.passes.items()}
        yield {
            "layer": part.name,
            "input": list(part.inputs),
            "output": list(part.outputs),
            "flop": part.flop,
            "seconds": seconds,
            "rate": {which: part.flop / value for which, value in seconds.items()},
        }
