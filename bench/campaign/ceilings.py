"""Part `ceilings`: the machine, and the rates that every other figure is a share of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import torch

from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import noise
from bench.campaign.recipes import main_recipes
from bench.convolutions import Convolution, convolutions
from bench.peers.clocks import read_clocks
from bench.record import versions
from bench.timing import best_seconds, copy_rate
from fastcifar.training import Trainer
from fastcifar.training.device import describe_device, resolve_dtype


def ceilings(campaign: Campaign, search: int = 10) -> Iterator[Line]:
    """Note versions and clocks; time a copy, a matrix product, and the convolutions of each stage of each recipe's
    step, pass by pass, as fast as the library has them.

    search: cuDNN's algorithms that are tried for a convolution, at most; 0: all, 10: as torch has it.
    """
    torch.backends.cudnn.benchmark = True  # in this process alone
    if campaign.device.type == "cuda":
        torch.backends.cudnn.benchmark_limit = search
    known = [record for record in campaign.records("ceilings") if record.get("search", 10) == search]
    for what, measure in (("environment", _environment), ("copy", copy_rate), ("product", _product)):
        if not any(record["what"] == what for record in known):
            yield {"what": what, **measure(campaign.device, campaign.tiny), "search": search}
    found = {(record["recipe"], record["stage"]) for record in known if record["what"] == "convolutions"}
    for name, recipe in main_recipes(campaign).items():
        trainer = Trainer(recipe, noise(campaign, recipe.batch_size), campaign.device)
        for number, (stage, steps) in enumerate(trainer.timeline.steps_by_stage().items()):
            if campaign.seconds_left < 0:
                return
            if (name, number) not in found:
                layers = [_layer(campaign, layer) for layer in convolutions(trainer, stage)]
                place = {"recipe": name, "stage": number, "size": stage.size, "steps": steps, "search": search}
                yield {"what": "convolutions", **place, "layers": layers}


def _environment(device: torch.device, _: bool) -> Line:
    described = dataclasses.asdict(describe_device(device))
    record = {"device": described, **versions(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "cudnn": torch.backends.cudnn.version(),
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "clocks": read_clocks(device.type),
        }
    return record


def _product(device: torch.device, tiny: bool) -> Line:
    """Time a large square matrix product in the compute type, on random values: zeros draw less power."""
    side = 256 if tiny else 8192 if device.type == "cuda" else 2048
    dtype = resolve_dtype("auto", device)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = best_seconds(lambda: left @ right, device, calls=5)
    return {"side": side, "dtype": str(dtype), "seconds": seconds, "rate": 2 * side**3 / seconds}


def _layer(campaign: Campaign, layer: Convolution) -> Line:
    """Time each pass of a convolution."""
    calls, repeats = (1, 1) if campaign.tiny else (10, 5)
    seconds = {which: best_seconds(call, campaign.device, calls, repeats) for which, call in layer.passes.items()}
    return {
        "layer": layer.name,
        "input": list(layer.inputs),
        "output": list(layer.outputs),
        "flop": layer.flop,
        "seconds": seconds,
        "rate": {which: layer.flop / value for which, value in seconds.items()},
    }
