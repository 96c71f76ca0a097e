"""What a training begins with, from the flags of `fastcifar train`, and in words. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastcifar.errors import UserError
from fastcifar.start import ColdStart, ShrinkPerturb, Start, WarmStart, check_reset, read_start

if TYPE_CHECKING:
    from fastcifar.cli.train import Options


def start_of(options: Options) -> Start:
    """Return what the run begins with. Raises UserError for weights that are not there and contradicting flags."""
    if options.warm_start is None:
        given = {"--shrink": options.shrink, "--perturb": options.perturb, "--reset-head": options.reset_head or None}
        given |= {"--start": options.start, "--shrink-layers": options.shrink_layers, "--reset": options.reset}
        given["--fit-head"] = options.fit_head or None
        for flag, value in given.items():
            if value not in (None, ()):
                raise UserError(f"{flag} is for given weights; allowed: with --warm-start PATH")
        return ColdStart()
    if options.cold_start:
        raise UserError("--cold-start and --warm-start contradict each other; allowed: one of them")
    resets = "--reset-head" if options.reset_head else "--reset head" if "head" in options.reset else ""
    if resets and options.fit_head:
        raise UserError(f"{resets} and --fit-head contradict each other; allowed: one of them")
    how: dict[str, Any] = {"reset_head": None if options.fit_head else options.reset_head, "reset": options.reset}
    factors = {"shrink": options.shrink, "perturb": options.perturb}
    factors = {name: factor for name, factor in factors.items() if factor is not None}
    start, own = ShrinkPerturb if factors else WarmStart, factors
    if options.start is not None:
        start, own = read_start(options.start)
    check_reset(options.reset, "--reset")
    if options.start and factors:
        flags = " and ".join(f"--{name}" for name in factors)
        raise UserError(f"{flags} with --start; allowed: without it, or as in --start shrink-perturb:shrink=0.4")
    if options.shrink_layers:
        if start is not ShrinkPerturb:
            said = f"--shrink-layers is for shrink-perturb, and the start is {start.mode}"
            raise UserError(f"{said}; allowed: with --shrink, --perturb or --start shrink-perturb")
        own = {**own, "layers": options.shrink_layers}
    return start(options.warm_start, **own, **how)


def describe_start(init: Mapping[str, Any]) -> str:
    """Return how the run begins, in a few words for a line; empty for a cold start."""
    if init["mode"] == "cold":
        return ""
    mode, own = init["mode"], ("shrink", "perturb", "steps", "floor", "alpha", "batch")
    words = {WarmStart.mode: ["warm start"], ShrinkPerturb.mode: []}.get(mode, [mode])
    if mode != WarmStart.mode:
        words += [
            f"{name} {init[name]:g}" for name in own if name in init and (init[name] or name not in ("steps", "batch"))
        ]
    words += [*init.get("layers", ()), *["reset-head"] * bool(init["reset_head"])]
    words += ["reset", *init["reset"]] if init.get("reset") else []
    return " ".join(words)
