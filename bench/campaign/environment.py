"""Part `env`: what the machine is, and the ceilings that every other figure is a share of."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import nn

from bench.campaign.campaign import Campaign, Record, seconds_per_call
from bench.campaign.recipes import measured_recipes
from bench.peers.clocks import read_clocks
from bench.record import versions
from fastcifar.models import build_model
from fastcifar.training.device import describe_device, resolve_dtype


def environment(campaign: Campaign) -> Iterator[Record]:
    """Versions and clocks; copy bandwidth, matrix product; each convolution of each network, three ways."""
    yield {"what": "environment", **_versions(campaign.device)}
    yield copy_rate(campaign)
    yield _product(campaign)
    # A ceiling: the best that the library knows. The setting is the process's, so that later parts must not find it.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for name, recipe in measured_recipes(campaign).items():
            for record in _convolutions(campaign, recipe):
                yield {"what": "convolution", "recipe": name, **record}
                if campaign.seconds_left < 0:
                    return


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
    size = 1 << (30 if campaign.device.type == "cuda" else 26)
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


def _convolutions(campaign: Campaign, recipe) -> Iterator[Record]:
    """Forward, input gradient and weight gradient of each convolution of the recipe's network, seconds and FLOP/s."""
    device, dtype = campaign.device, resolve_dtype(recipe.dtype, campaign.device)
    model = build_model(recipe, 10, (127.5,) * 3, (127.5,) * 3).to(device=device)
    calls: list[tuple[str, nn.Conv2d, torch.Size]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, _, name=name: calls.append((name, module, args[0].shape)))
    with torch.no_grad():
        model.eval()(torch.zeros(2, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last))
    for place, (name, module, shape) in enumerate(calls):
        x = _images(recipe.batch_size, *shape[1:], device=device, dtype=dtype)
        weight = module.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        stride, padding = module.stride, module.padding
        out = torch.conv2d(x, weight, None, stride, padding)
        gradient = torch.randn_like(out)

        def backward(mask: list[bool], gradient=gradient, x=x, weight=weight, stride=stride, padding=padding) -> None:
            torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [*mask, False]
            )

        def forward(x=x, weight=weight, stride=stride, padding=padding) -> None:
            torch.conv2d(x, weight, None, stride, padding)

        ways = {"forward": forward}
        if place:  # nothing that trains lies below the first
            ways["input"] = lambda backward=backward: backward([True, False])
        if module.weight.requires_grad:
            ways["weight"] = lambda backward=backward: backward([False, True])
        flop = 2 * out.numel() * weight[0].numel()
        seconds = {way: seconds_per_call(call, device, calls=1 if campaign.tiny else 10) for way, call in ways.items()}
        yield {
            "layer": name,
            "input": list(x.shape),
            "output": list(out.shape),
            "flop": flop,
            "seconds": seconds,
            "rate": {way: flop / value for way, value in seconds.items()},
        }


def _images(*shape: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
