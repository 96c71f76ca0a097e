"""Cold start, warm start and shrink-perturb: the weights that a training begins with.

With shrink s and perturb p (a warm start is s = 1, p = 0):

- Trained parameters become s * source + p * fresh. Fresh ones are drawn from the run's seed by the network's own
  initialization, so that each kind is perturbed on its own scale (Ash and Adams 2020).
- Running statistics become the mean (s * source + p * fresh) / (s + p): a variance must not shrink with the weights.
  Training replaces them within some tens of steps.
- Frozen parameters are not scaled: they are the source's if s > 0, else fresh. So the whitening, which the source's
  weights rely on, is kept, and is fitted to the training images only if s = 0.
- A classifier that is reset is fresh, whatever s and p are.

A term with the factor 0 is left out, not multiplied: s = 0 and p = 1 is the cold start and s = 1 and p = 0 the warm
start to the last bit. Optimizer state and averages start afresh in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from fastcifar.errors import UserError
from fastcifar.models import Network
from fastcifar.output import weights_file
from fastcifar.start import ColdStart, ShrinkPerturb, Start, WarmStart

_NAMES_SHOWN = 12


@torch.no_grad()
def initialize(model: Network, start: Start) -> None:
    """Change the freshly initialized `model`, float32 on the CPU, in place as `start` says.

    Raises UserError where the source cannot be read or its tensors do not fit. torch's counts of batches
    (num_batches_tracked) are skipped.
    """
    if isinstance(start, ColdStart):
        return
    module = model.module
    source, fresh = _read(start), _without_counts(module.state_dict())
    if start.reset_head:
        if not model.head:
            raise UserError("reset_head is true; allowed: false for a network of one's own, whose head is not known")
        source, fresh = (_without(tensors, model.head) for tensors in (source, fresh))
    _refuse_misfits(source, fresh, start.source)
    source = {name: tensor.to(fresh[name].dtype) for name, tensor in source.items()}
    _refuse_nonfinite(source, start.source)
    parameters, buffers = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    averaged, done = {name for name, _ in buffers}, set()
    for name, tensor in fresh.items():  # they share the model's memory
        if tensor.data_ptr() in done:  # tied parameters
            continue
        done.add(tensor.data_ptr())
        shrink, perturb = start.shrink, start.perturb
        if name in frozen:
            shrink, perturb = (1.0, 0.0) if keeps_frozen(start) else (0.0, 1.0)
        elif name in averaged:
            shrink, perturb = shrink / (shrink + perturb), perturb / (shrink + perturb)
        tensor.copy_(_mix(shrink, source[name], perturb, tensor))


def keeps_frozen(start: Start) -> bool:
    """Return True where frozen parameters, such as whitening filters, are the source's, not computed afresh."""
    return not isinstance(start, ColdStart) and start.shrink > 0


def _mix(shrink: float, source: torch.Tensor, perturb: float, fresh: torch.Tensor) -> torch.Tensor:
    if perturb == 0:
        return shrink * source
    return perturb * fresh if shrink == 0 else shrink * source + perturb * fresh


def _read(start: WarmStart | ShrinkPerturb) -> dict[str, torch.Tensor]:
    path = weights_file(start.source)
    try:
        tensors = load_file(path)
    except Exception as error:  # a damaged file makes safetensors and torch raise many kinds
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read the weights in {path}: {reason}; allowed: a .safetensors file") from None
    return _without_counts(tensors)


def _without_counts(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _without(tensors: dict[str, torch.Tensor], head: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{head}.")}


def _refuse_misfits(source: dict[str, torch.Tensor], fresh: dict[str, torch.Tensor], path: str | Path) -> None:
    misfits = []
    for name in sorted(source.keys() | fresh.keys()):
        theirs, ours = (list(tensors[name].shape) if name in tensors else None for tensors in (source, fresh))
        if theirs != ours:
            misfits.append(f"{name} is {theirs or 'absent'} for {ours or 'none here'}")
    if misfits:
        raise UserError(
            f"the weights in {path} do not fit the network: {_first(misfits)}; "
            "allowed: the same names and shapes, the classifier's apart where the head is reset"
        )


def _refuse_nonfinite(source: dict[str, torch.Tensor], path: str | Path) -> None:
    counts = {name: tensor.numel() - int(tensor.isfinite().sum()) for name, tensor in source.items()}
    bad = [f"{count} of {source[name].numel()} in {name}" for name, count in counts.items() if count]
    if bad:
        raise UserError(f"the weights in {path} hold NaN or infinite values, {_first(bad)}; allowed: finite ones")


def _first(places: list[str]) -> str:
    """Return the first of `places` in words, and the number of the others."""
    more = f" and {len(places) - _NAMES_SHOWN} more" if len(places) > _NAMES_SHOWN else ""
    return ", ".join(places[:_NAMES_SHOWN]) + more
