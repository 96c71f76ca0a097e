"""Parts `kernels` and `kernel-times`: each operator as the recipes' steps call it, its error against float64, then its
time beside its path in plain torch. Part `compiled`: the operations beside what torch.compile makes of their
references.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench import kernel_cases
from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import noise
from bench.campaign.recipes import main_recipes
from bench.cases import Case, in_turn, lacking_for_compile
from bench.recorded_cases import RecordedCase, record_cases
from bench.timing import best_seconds, copy_rate
from fastcifar.training import Trainer
from fastcifar.training.device import resolve_dtype
from fastcifar.training.evaluate import evaluate
from fastcifar.training.rehearse import compile_kernels, step_on_noise


def errors(campaign: Campaign) -> Iterator[Line]:
    """Compare every operator in every form with float64, in the recipes' own type and then in the others. What raises
    is a finding, and the others have their turn."""
    known = {record["shape"] for record in campaign.records("kernels", "error")}
    own = str(resolve_dtype("auto", campaign.device)).removeprefix("torch.")
    for dtype in dict.fromkeys((own, "float32", "bfloat16")):
        found, failures = cases(campaign, dtype)
        yield from failures
        for case, name in found:
            if case.shape not in known:
                known.add(case.shape)
                yield _attempt(case.operation, partial(_error, case, name))


def _error(case: RecordedCase, name: Line) -> Line:
    found = case.relative_errors()
    return {"what": "error", **name, "relative_errors": found, "worst": max(found.values(), default=0.0)}


def times(campaign: Campaign) -> Iterator[Line]:
    """Time every operator in every form, the largest tensors first, since they carry the time; then their paths in
    plain torch. What moves on a position in the epoch is timed with putting it back."""
    found, failures = cases(campaign)
    yield from failures
    ordered = sorted(found, key=lambda named: -named[0].bytes_moved)
    jobs = [(name, case, variant) for variant in ("kernel", "reference") for case, name in ordered]
    yield from _speeds(campaign, jobs)


def compiled(campaign: Campaign) -> Iterator[Line]:
    """Time the operations of `bench.kernel_cases`, and what torch.compile makes of their references."""
    tiny_cpu = campaign.tiny and campaign.device.type == "cpu"  # where it compiles for a minute
    variants = ("kernel",) if tiny_cpu or lacking_for_compile(campaign.device) else ("kernel", "compiled")
    found = kernel_cases.all_cases(campaign.device, resolve_dtype("auto", campaign.device), campaign.tiny)
    named = [({"operation": case.operation, "shape": f"{place}: {case.shape}"}, case) for place, case in found]
    yield from _speeds(campaign, [(name, case, variant) for name, case in named for variant in variants])


def _speeds(campaign: Campaign, jobs: Sequence[tuple[Line, Case, str]]) -> Iterator[Line]:
    """Time variants of cases, each under its name, that are not known yet, and their shares of the copy bandwidth."""
    known = {(record["shape"], record["variant"]) for record in campaign.records("kernels", "speed")}
    bandwidth = copy_rate(campaign.device, campaign.tiny)["rate"]

    def speed(case: Case, variant: str) -> Line:
        # Plain torch takes so much longer that all of it would take the part's time.
        calls, repeats = (1, 1) if campaign.tiny else (5, 2) if variant == "reference" else (20, 5)
        seconds = best_seconds(in_turn(case, variant, campaign.device), campaign.device, calls, repeats)
        moved = case.bytes_moved
        share = round(moved / seconds / bandwidth, 4)
        return {"what": "speed", "variant": variant, "bytes": moved, "seconds": seconds, "share_of_copy": share}

    for name, case, variant in jobs:
        if campaign.seconds_left > 0 and (name["shape"], variant) not in known:
            yield {**name, **_attempt(case.operation, partial(speed, case, variant))}


def cases(campaign: Campaign, dtype: str = "auto") -> tuple[list[tuple[RecordedCase, Line]], list[Line]]:
    """Return what a step of each stage and an evaluation of each recipe call in this compute type, each form once; and
    a finding for each that raises. A case comes with its name: operation, shape, and `places`, by recipe and stage, or
    evaluation, how often it is called there."""
    found: dict[str, tuple[RecordedCase, Line]] = {}
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
                unseen = {"operation": case.operation, "shape": case.shape, "places": {}}
                _, known = found.setdefault(case.shape, (case, unseen))
                known["places"][f"{name}, {place}"] = case.calls
    return list(found.values()), failures


def _pieces(trainer: Trainer) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a step of each stage, and an evaluation; each is to be run before the next is asked for."""
    for number, stage in enumerate(trainer.timeline.steps_by_stage()):
        yield f"stage {number} of {stage.size} pixels", step_on_noise(trainer, stage)
    yield "evaluation", partial(evaluate, trainer.evaluated, trainer.dataset.test, trainer.recipe.evaluate)


def _attempt(name: str, measure: Callable[[], Line]) -> Line:
    try:
        return measure()
    except RuntimeError as error:
        return _finding(name, error)


def _finding(name: str, error: RuntimeError) -> Line:
    traceback.print_exception(error)
    return {"what": "finding", "program": name, "found": str(error).partition("\n")[0]}
