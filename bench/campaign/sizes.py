"""Part `sizes`: the operators of the recipes' steps launched with other block sizes and warps than those in the tables
beside their kernels, to find what belongs there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch

from bench.campaign.campaign import Campaign, Line
from bench.campaign.kernels import cases
from bench.cases import in_turn
from bench.recorded_cases import RecordedCase
from bench.timing import best_seconds
from fastcifar.kernels import compile_ahead
from fastcifar.kernels.launch import LaunchSizes

Fields = dict[str, Any]  # fields of an operator's `Sizes` with their values


def _grid(**values: Sequence[Any]) -> list[Fields]:
    """Return every combination of the fields' values."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


_TILES = [
    {"rows": rows, "channels": channels, "warps": warps}
    for rows, channels, warps in ((64, 32, 4), (32, 64, 4), (64, 32, 8), (128, 32, 8))
]
"""For `norm_act_pool`: 8 or 16 elements a thread. Others (16 warps; 64 channels with 8) were never best on an H100."""
_NORM = [{**tile, **rest} for tile in _TILES for rest in _grid(stages=(1, 3, 4), programs=(2, 4, 8))]
_BLOCKS = _grid(block=(1024, 2048, 4096), warps=(4, 8))
_CONV_POOL = [
    *_grid(pixels=(64,), outputs=(64,), warps=(4,), stages=(1,), programs=(2,)),
    *_grid(pixels=(64,), outputs=(64,), warps=(4, 8), stages=(2,), programs=(1,)),
    *_grid(pixels=(64,), outputs=(32,), warps=(4,), stages=(1,), programs=(2, 3, 4)),
    *_grid(pixels=(64,), outputs=(32,), warps=(4,), stages=(2, 3), programs=(1,)),
    *_grid(pixels=(128,), outputs=(64,), warps=(8,), stages=(1,), programs=(1,)),
    *_grid(pixels=(128,), outputs=(32,), warps=(8,), stages=(1,), programs=(1, 2)),
]
"""Those whose registers and shared memory fit a multiprocessor of the generation 9.0 as often as they say."""
_FILTERS = [
    {f"gradient_{name}": value for name, value in fields.items()}
    for fields in (
        *_grid(pixels=(32,), columns=(128,), warps=(4,), stages=(1, 2), programs=(2, 3)),
        *_grid(pixels=(32,), columns=(64,), warps=(4,), stages=(1, 2), programs=(2, 4)),
        *_grid(pixels=(64,), columns=(64,), warps=(4,), stages=(1, 2), programs=(2, 3)),
    )
]
OTHERS: dict[str, tuple[str, list[Fields]]] = {
    "norm_act_pool": ("norm_act_pool.forward", _NORM),
    "norm_act_pool_backward": ("norm_act_pool.backward", _NORM),
    "norm_act_pool_inference": ("norm_act_pool.forward", _TILES),
    "conv_pool": ("conv_pool_triton", _CONV_POOL),
    "conv_pool_inference": ("conv_pool_triton", _CONV_POOL),
    "conv_pool_backward": ("conv_pool_triton", _FILTERS),
    "augment": ("augment_triton", _grid(block=(512, 1024, 2048, 4096), warps=(2, 4, 8))),
    "whiten": ("whiten_triton", _grid(pixels=(32, 64, 128, 256), warps=(1, 2, 4, 8))),
    "flat_sgd": ("flat_optimizer_triton", _BLOCKS),
    "muon_direction": ("flat_muon_triton", _BLOCKS),
    "muon_update": ("flat_muon_triton", _BLOCKS),
    "newton_schulz": (
        "newton_schulz",
        [
            *_grid(tile=(32, 64, 128), depth=(32, 64), warps=(4, 8)),
            *_grid(square_depth=(16, 32, 64), square_warps=(4, 8)),
            *_grid(small_rows=(0, 64)),
        ],
    ),
    "cross_entropy_step": ("cross_entropy_triton", _grid(values=(128, 256, 512, 1024), warps=(4, 8))),
}
"""`OTHERS[operator]`: the file in `fastcifar.kernels` with its table, imported when needed, since most import Triton;
and the other sizes that it is launched with."""


def sizes(campaign: Campaign, operators: Collection[str] = OTHERS) -> Iterator[Line]:
    """Time each of the `operators`, in each form of a step of the largest crops and of an evaluation, with the sizes of
    now, and then with every combination of `OTHERS`; the largest tensors first. What cannot be launched is left out."""
    found, failures = cases(campaign)
    yield from failures
    known = {(record["shape"], str(record["sizes"])) for record in campaign.records("sizes", "sizes")}
    wanted = [
        (case, name)
        for case, name in found
        if case.operation in operators
        and (campaign.tiny or re.search("32 pixels|evaluation", " ".join(name["places"])))
    ]
    wanted.sort(key=lambda named: -named[0].bytes_moved)
    tried = [(case, name, _tried(case.operation, campaign)) for case, name in wanted]
    compile_ahead(lambda: _launch_all(tried), campaign.device)
    for case, name, combinations in tried:
        call = in_turn(case, "kernel", campaign.device)
        for fields in combinations:
            if campaign.seconds_left < 0:
                return
            if (case.shape, str(fields)) in known:
                continue
            calls, repeats = (1, 1) if campaign.tiny else (20, 3)
            with contextlib.suppress(RuntimeError), _launched_with(case.operation, fields):
                seconds = best_seconds(call, campaign.device, calls, repeats)
                now = fields == combinations[0]
                yield {"what": "sizes", **name, "sizes": fields, "now": now, "seconds": seconds}


def _tried(operation: str, campaign: Campaign) -> list[Fields]:
    """Return the sizes of now, then the others; with `tiny` one other."""
    present = dataclasses.asdict(_table(operation).of(torch.empty(0, device=campaign.device)))
    _, wanted = OTHERS[operation]
    others = [fields for fields in wanted if not fields.items() <= present.items()]
    now = {name: present[name] for fields in wanted for name in fields}
    return [now, *(others[:1] if campaign.tiny else others)]


def _table(operation: str) -> LaunchSizes[Any]:
    return importlib.import_module(f"fastcifar.kernels.{OTHERS[operation][0]}").SIZES


@contextlib.contextmanager
def _launched_with(operation: str, fields: Fields) -> Iterator[None]:
    """Have the operator's kernels take these sizes in the block, on any device."""
    table = _table(operation)
    generations = {known: dataclasses.replace(row, **fields) for known, row in table.generations.items()}
    interpreted = dataclasses.replace(table.interpreted, **fields)
    with patch.multiple(table, generations=generations, interpreted=interpreted):
        yield


def _launch_all(tried: list[tuple[RecordedCase, Line, list[Fields]]]) -> None:
    for case, _, combinations in tried:
        arguments = case.make()
        for fields in combinations:
            with contextlib.suppress(RuntimeError), _launched_with(case.operation, fields):
                case.kernel(*arguments)
