"""Part `sizes`: the operators of the recipes' steps launched with other block sizes and warps than
kernels/launch_sizes.py has for this device, to say what belongs there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from unittest.mock import patch

from bench.campaign.campaign import Campaign, Record
from bench.campaign.kernels import Places, cases
from bench.campaign.timing import seconds_per_call
from bench.recorded_cases import RecordedCase
from fastcifar.kernels import compile_ahead, launch_sizes

Fields = dict[str, int]
"""Fields of `launch_sizes.Sizes` with their values."""

_NORM = {"norm_rows": (64, 128, 256), "norm_channels": (32, 64), "norm_warps": (4, 8)}
_FILTERS = {"muon_block": (1024, 2048, 4096), "muon_warps": (4, 8)}
OTHERS: dict[str, tuple[dict[str, Sequence[int]], ...]] = {
    "norm_act_pool": ({**_NORM, "norm_programs": (2, 3, 4, 6)},),
    "norm_act_pool_backward": ({**_NORM, "norm_gradient_programs": (1, 2, 3, 4)},),
    "norm_act_pool_inference": (_NORM,),
    "augment": ({"augment_block": (512, 1024, 2048, 4096), "augment_warps": (2, 4, 8)},),
    "whiten": ({"whiten_pixels": (32, 64, 128, 256), "whiten_warps": (1, 2, 4, 8)},),
    "flat_sgd": ({"flat_block": (1024, 2048, 4096), "flat_warps": (4, 8)},),
    "muon_direction": (_FILTERS,),
    "muon_update": (_FILTERS,),
    "newton_schulz": (
        {"matrix_tile": (32, 64, 128), "matrix_depth": (32, 64), "matrix_warps": (4, 8)},
        {"square_depth": (16, 32, 64), "square_warps": (4, 8)},
    ),
}
"""By operator grids of the fields that it is launched with: each combination is tried."""


def sizes(campaign: Campaign) -> Iterator[Record]:
    """The seconds of each operator, in each form of a step of the largest crops and of an evaluation, with what there
    is now, and then with every combination of `OTHERS`; the largest tensors first. What cannot be launched is left
    out."""
    found, failures = cases(campaign)
    yield from failures
    known = {(record["shape"], *sorted(record["sizes"].items())) for record in campaign.records("sizes", "sizes")}
    wanted = [(case, places) for case, places in found if case.operation in OTHERS and _is_wanted(places)]
    wanted.sort(key=lambda placed: -placed[0].bytes_moved)
    tried = [(case, places, _tried(case.operation, campaign)) for case, places in wanted]
    compile_ahead(lambda: _launch_all(tried), campaign.device)
    for case, places, combinations in tried:
        turn = itertools.cycle(case.argument_sets(campaign.device))
        for fields in combinations:
            if campaign.seconds_left < 0:
                return
            if (case.shape, *sorted(fields.items())) in known:
                continue
            calls, repeats = (1, 1) if campaign.tiny else (20, 3)
            with contextlib.suppress(RuntimeError), _launched_with(fields):
                seconds = seconds_per_call(lambda: case.again(*next(turn)), campaign.device, calls, repeats)  # noqa: B023
                name = {"operation": case.operation, "shape": case.shape, "places": places, "sizes": fields}
                yield {"what": "sizes", **name, "now": fields == combinations[0], "seconds": seconds}


def _is_wanted(places: Places) -> bool:
    return any("32 pixels" in place or "evaluation" in place for place in places)


def _tried(operation: str, campaign: Campaign) -> list[Fields]:
    """What there is now, first; with `tiny` one other."""
    present, combinations = _present(campaign), []
    for grid in OTHERS[operation]:
        combinations += [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    others = [fields for fields in combinations if fields.items() - present.items()]
    names = {name for grid in OTHERS[operation] for name in grid}
    now = {name: value for name, value in present.items() if name in names}
    return [now, *(others[:1] if campaign.tiny else others)]


def _present(campaign: Campaign) -> Fields:
    is_cuda = campaign.device.type == "cuda"
    found = launch_sizes._device_sizes(campaign.device.index or 0)[0] if is_cuda else launch_sizes._INTERPRETED
    return dataclasses.asdict(found)


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
