"""Part `kernels`: each fused operation right against float64, then fast beside its reference and torch.compile's."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from bench import kernel_cases
from bench.campaign.campaign import Campaign, Record, seconds_per_call
from bench.campaign.environment import copy_rate
from bench.kernel_cases import FILTERS, NETWORKS, VARIANTS, WEIGHTS, Case, lacking_for_compile
from fastcifar.training.device import resolve_dtype


def kernels(campaign: Campaign) -> Iterator[Record]:
    """Correctness of all cases first, then speed: one variant of all cases after the other, the largest tensors first,
    since they carry the time. What an earlier call has found is not sought again."""
    cases = sorted(_cases(campaign), key=lambda placed: -placed[1].bytes_moved)
    named = [({"operation": case.operation, "shape": f"{place}: {case.shape}"}, case) for place, case in cases]
    known = campaign.records("kernels")

    def is_known(name: Record, variant: str | None = None) -> bool:
        """Whether the case's errors, or the seconds of its variant, have been found."""
        mine = (record for record in known if name.items() <= record.items())
        return any("seconds" in record.get(variant, ()) if variant else "worst" in record for record in mine)

    for name, case in named:
        if not is_known(name):
            errors = case.relative_errors()
            yield {"what": "error", **name, "relative_errors": errors, "worst": max(errors)}
    bandwidth = copy_rate(campaign)["rate"]
    compiles = not lacking_for_compile(campaign.device) and not (campaign.tiny and campaign.device.type == "cpu")
    for variant in VARIANTS if compiles else ("kernel", "reference"):
        for name, case in named:
            if campaign.seconds_left < 0:
                return
            if not is_known(name, variant):
                speed = _speed(campaign, case, variant, bandwidth)
                yield {"what": "speed", **name, "bytes": case.bytes_moved, variant: speed}


def _cases(campaign: Campaign) -> Iterator[tuple[str, Case]]:
    """The networks' places and the operation there."""
    tiny, where = campaign.tiny, (campaign.device, resolve_dtype("auto", campaign.device))
    for name, network in NETWORKS.items():
        batch, groups = (8, 2) if tiny else (network.batch, network.groups)
        for place, layer in network.layers.items():
            layer = dataclasses.replace(layer, channels=layer.channels // 16) if tiny else layer
            yield f"{name} {place}", kernel_cases.norm_act_pool(layer, batch, groups, network.activation, *where)
        yield name, kernel_cases.augment(batch, 256 if tiny else 50_000, *where)
        yield name, kernel_cases.cross_entropy(batch, *where)
    yield "davidnet", kernel_cases.flat_sgd(10_000 if tiny else WEIGHTS, *where)
    yield "speedrun", kernel_cases.flat_muon(FILTERS[:2] if tiny else FILTERS, *where)


def _speed(campaign: Campaign, case: Case, variant: str, bandwidth: float) -> Record:
    """Seconds of a variant and its share of the copy bandwidth."""
    turn = itertools.cycle(case.argument_sets(campaign.device))
    operation = case.variant(variant)
    try:
        calls = 2 if campaign.tiny else 20
        seconds = seconds_per_call(lambda: case.use(operation, *next(turn)), campaign.device, calls)
    except Exception as error:  # a compiler that fails on one reference must not end the part
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
    return {"seconds": seconds, "share_of_copy": round(case.bytes_moved / seconds / bandwidth, 4)}
