"""Parts `kernels` and `kernel-times`: each operator as the recipes' steps call it, right against float64, then fast
beside its path in plain torch. Part `compiled`: the operations beside what torch.compile makes of their references.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import traceback
from collections.abc import Callable, Iterator
from functools import partial

from bench import kernel_cases
from bench.campaign.campaign import Campaign, Line
from bench.campaign.ceilings import copy_rate
from bench.campaign.images import noise
from bench.campaign.recipes import main_recipes
from bench.campaign.timing import seconds_per_call
from bench.kernel_cases import FILTERS, NETWORKS, WEIGHTS, Case, lacking_for_compile
from bench.recorded_cases import RecordedCase, record_cases, reference_path
from fastcifar.training import Trainer
from fastcifar.training.device import resolve_dtype
from fastcifar.training.evaluate import evaluate
from fastcifar.training.rehearse import compile_kernels, step_on_noise

Places = dict[str, int]
"""By recipe and stage, or evaluation, how often it calls an operator in this form."""


def errors(campaign: Campaign) -> Iterator[Line]:
    """The error of every operator in every form, in the recipes' own type and then in the others. What raises is a
    finding, and the others have their turn."""
    known = {record["shape"] for record in campaign.records("kernels", "error")}
    for dtype in ("auto", "float32", *(["bfloat16"] if campaign.device.type == "cuda" else [])):
        found, failures = cases(campaign, dtype)
        yield from failures
        for case, places in found:
            if case.shape not in known:
                known.add(case.shape)
                yield _attempt(case.operation, partial(_error, case, places))


def times(campaign: Campaign) -> Iterator[Line]:
    """The seconds of every operator in every form, the largest tensors first, since they carry the time; then of their
    paths in plain torch. What moves on a position in the epoch is timed with putting it back."""
    known = {(record["shape"], record["variant"]) for record in campaign.records("kernels", "speed")}
    found, failures = cases(campaign)
    yield from failures
    ordered = sorted(found, key=lambda placed: -placed[0].bytes_moved)
    bandwidth = copy_rate(campaign)["rate"]
    for variant, path in (("kernel", contextlib.nullcontext()), ("reference", reference_path())):
        with path:
            for case, places in ordered:
                if campaign.seconds_left > 0 and (case.shape, variant) not in known:
                    speed = partial(_speed, campaign, variant, case, case.again, bandwidth)
                    yield {**_name(case, places), **_attempt(case.operation, speed)}


def cases(campaign: Campaign, dtype: str = "auto") -> tuple[list[tuple[RecordedCase, Places]], list[Line]]:
    """What a step of each stage and an evaluation of each recipe call in this compute type, each form once, and where;
    and a finding for each that raises."""
    found: dict[str, tuple[RecordedCase, Places]] = {}
    failures: list[Line] = []
    for name, recipe in main_recipes(campaign).items():
        recipe = dataclasses.replace(recipe, dtype=dtype)
        trainer = Trainer(recipe, noise(campaign, recipe.batch_size), campaign.device)
        if campaign.device.type == "cuda":
            compile_kernels(trainer)  # else one would compile after the other
        for place, run in _pieces(trainer):
            try:
                recorded = record_cases(run)
            except RuntimeError as error:
                failures.append(_finding(f"{name}, {place}", error))
                continue
            for case in recorded:
                _, places = found.setdefault(case.shape, (case, {}))
                places[f"{name}, {place}"] = case.calls
    return list(found.values()), failures


def _attempt(name: str, measure: Callable[[], Line]) -> Line:
    try:
        return measure()
    except RuntimeError as error:
        return _finding(name, error)


def _finding(name: str, error: RuntimeError) -> Line:
    traceback.print_exception(error)
    return {"what": "finding", "program": name, "found": str(error).partition("\n")[0]}


def _error(case: RecordedCase, places: Places) -> Line:
    found = case.relative_errors()
    return {
        "what": "error",
        **_name(case, places),
        "relative_errors": found,
        "worst": max(found.values(), default=0.0),
    }


def _pieces(trainer: Trainer) -> Iterator[tuple[str, Callable[[], object]]]:
    """A step of each stage, and an evaluation; each to be run before the next is asked for."""
    for number, stage in enumerate(trainer.timeline.steps_by_stage()):
        yield f"stage {number} of {stage.size} pixels", step_on_noise(trainer, stage)
    yield "evaluation", partial(evaluate, trainer.evaluated, trainer.dataset.test, trainer.recipe.evaluate)


def compiled(campaign: Campaign) -> Iterator[Line]:
    """Seconds of the operations that are written down by hand, forward and backward together, and of what torch.compile
    makes of their references."""
    tiny_cpu = campaign.tiny and campaign.device.type == "cpu"  # where it compiles for a minute
    compiles = not lacking_for_compile(campaign.device) and not tiny_cpu
    known = {(record["shape"], record["variant"]) for record in campaign.records("kernels", "speed")}
    bandwidth = copy_rate(campaign)["rate"]
    for place, case in _cases_by_hand(campaign):
        name = {"operation": case.operation, "shape": f"{place}: {case.shape}"}
        for variant in ("kernel", "compiled") if compiles else ("kernel",):
            if campaign.seconds_left > 0 and (name["shape"], variant) not in known:
                call = partial(case.use, case.variant(variant))
                yield {**name, **_speed(campaign, variant, case, call, bandwidth)}


def _cases_by_hand(campaign: Campaign) -> Iterator[tuple[str, Case]]:
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


def _name(case: RecordedCase, places: Places) -> Line:
    return {"operation": case.operation, "shape": case.shape, "places": places}


def _speed(
    campaign: Campaign, variant: str, case: RecordedCase | Case, call: Callable[..., object], bandwidth: float
) -> Line:
    """Seconds of a variant and its share of the copy bandwidth."""
    turn = itertools.cycle(case.argument_sets(campaign.device))
    # Plain torch takes so much longer that all of it would take the part's time.
    calls, repeats = (1, 1) if campaign.tiny else (5, 2) if variant == "reference" else (20, 5)
    seconds = seconds_per_call(lambda: call(*next(turn)), campaign.device, calls, repeats)
    share = round(case.bytes_moved / seconds / bandwidth, 4)
    return {"what": "speed", "variant": variant, "bytes": case.bytes_moved, "seconds": seconds, "share_of_copy": share}
