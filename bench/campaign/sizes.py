"""Part `sizes`: the operators of the recipes' steps launched with other block sizes and warps than
kernels/launch_sizes.py has for this device, to say what belongs there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

from bench.campaign.campaign import Campaign, Line
from bench.campaign.kernels import Places, cases
from bench.campaign.timing import seconds_per_call
from bench.recorded_cases import RecordedCase
from fastcifar.kernels import compile_ahead, launch_sizes
from fastcifar.kernels.launch_sizes import NormSizes

Fields = dict[str, Any]
"""Fields of `launch_sizes.Sizes` with their values."""

_TILES = ((64, 32, 4), (32, 64, 4), (64, 32, 8), (128, 32, 8))
"""Rows, channels and warps of `norm_act_pool`'s tiles: 8 or 16 elements a thread. Others, tried on an H100 beside them:
16 warps, and 64 channels with 8 warps, which were never best."""
_NORM = [NormSizes(*tile, stages, programs) for tile in _TILES for stages in (1, 3, 4) for programs in (2, 4, 8)]
_FILTERS = {"muon_block": (1024, 2048, 4096), "muon_warps": (4, 8)}
OTHERS: dict[str, tuple[dict[str, Sequence[Any]], ...]] = {
    "norm_act_pool": ({"norm": _NORM},),
    "norm_act_pool_backward": ({"norm_gradient": _NORM},),
    "norm_act_pool_inference": ({"norm": [NormSizes(*tile, stages=1, programs=1) for tile in _TILES]},),
    "augment": ({"augment_block": (512, 1024, 2048, 4096), "augment_warps": (2, 4, 8)},),
    "whiten": ({"whiten_pixels": (32, 64, 128, 256), "whiten_warps": (1, 2, 4, 8)},),
    "flat_sgd": ({"flat_block": (1024, 2048, 4096), "flat_warps": (4, 8)},),
    "muon_direction": (_FILTERS,),
    "muon_update": (_FILTERS,),
    "newton_schulz": (
        {"matrix_tile": (32, 64, 128), "matrix_depth": (32, 64), "matrix_warps": (4, 8)},
        {"square_depth": (16, 32, 64), "square_warps": (4, 8)},
        {"small_rows": (0, 64)},
    ),
    "cross_entropy_step": ({"entropy_values": (128, 256, 512, 1024), "entropy_warps": (4, 8)},),
}
"""By operator grids of the fields that it is launched with: each combination is tried."""


def sizes(campaign: Campaign) -> Iterator[Line]:
    """The seconds of each operator, in each form of a step of the largest crops and of an evaluation, with what there
    is now, and then with every combination of `OTHERS`; the largest tensors first. What cannot be launched is left
    out."""
    found, failures = cases(campaign)
    yield from failures
    known = {(record["shape"], str(record["sizes"])) for record in campaign.records("sizes", "sizes")}
    wanted = [
        (case, places) for case, places in found if case.operation in OTHERS and (campaign.tiny or _is_wanted(places))
    ]
    wanted.sort(key=lambda placed: -placed[0].bytes_moved)
    tried = [(case, places, _tried(case.operation, campaign)) for case, places in wanted]
    compile_ahead(lambda: _launch_all(tried), campaign.device)
    for case, places, combinations in tried:
        turn = itertools.cycle(case.argument_sets(campaign.device))
        for fields in combinations:
            if campaign.seconds_left < 0:
                return
            told = {name: _told(value) for name, value in fields.items()}
            if (case.shape, str(told)) in known:
                continue
            calls, repeats = (1, 1) if campaign.tiny else (20, 3)
            with contextlib.suppress(RuntimeError), _launched_with(fields):
                seconds = seconds_per_call(lambda: case.again(*next(turn)), campaign.device, calls, repeats)  # noqa: B023
                name = {"operation": case.operation, "shape": case.shape, "places": places, "sizes": told}
                yield {"what": "sizes", **name, "now": fields == combinations[0], "seconds": seconds}


def _is_wanted(places: Places) -> bool:
    return any("32 pixels" in place or "evaluation" in place for place in places)


def _tried(operation: str, campaign: Campaign) -> list[Fields]:
    """What there is now, first; with `tiny` one other."""
    present, combinations = _present(campaign), []
    for grid in OTHERS[operation]:
        combinations += [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    others = [fields for fields in combinations if any(getattr(present, name) != fields[name] for name in fields)]
    now = {name: getattr(present, name) for grid in OTHERS[operation] for name in grid}
    return [now, *(others[:1] if campaign.tiny else others)]


def _present(campaign: Campaign) -> launch_sizes.Sizes:
    if campaign.device.type == "cuda":
        return launch_sizes._device_sizes(campaign.device.index or 0)[0]
    return launch_sizes._INTERPRETED


def _told(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


@contextlib.contextmanager
def _launched_with(fields: Fields) -> Iterator[None]:
    """Inside it kernels take these sizes, on any device."""

    def changed(index: int) -> tuple[launch_sizes.Sizes, int]:
        known, multiprocessors = before(index)
        return dataclasses.replace(known, **fields), multiprocessors

    before, interpreted = launch_sizes._device_sizes, dataclasses.replace(launch_sizes._INTERPRETED, **fields)
    with patch.multiple(launch_sizes, _device_sizes=changed, _INTERPRETED=interpreted):
        yield


def _launch_all(tried: list[tuple[RecordedCase, Places, list[Fields]]]) -> None:
    for case, _, combinations in tried:
        arguments = case.make()
        for fields in combinations:
            with contextlib.suppress(RuntimeError), _launched_with(fields):
                case.kernel(*arguments)
