"""Weights of a file, from anywhere, for a network: read once and whole, checked by name before one of them is used."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fastcifar.errors import Notice, UserError
from fastcifar.host import TORCH
from fastcifar.input import MOST_HEADER, opened, weights_file
from fastcifar.models import Network
from fastcifar.output import read_json, run_files, user_path
from fastcifar.training import torch_file

_PREFIXES = ("module.", "_orig_mod.", "net.", "model.")
"""What DataParallel, torch.compile and Lightning modules write before all names."""
_NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Where checkpoints keep their state_dict. Averages (ema) are never taken unasked."""
_DEEPEST = 3
COUNTS = "num_batches_tracked"
_NAMES_SHOWN = 12
_LONGEST = 200
"""Characters of a reason that an error shows."""


@TORCH.applied()
def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights in a file, or in the folder of a saved run, into `module`, whose modes stay as they are.

    module: any module, or a `Network`.
    path: .safetensors, or what torch.save made of a state_dict (.pt, .pth, a .ckpt of Lightning), of which
        `torch.load(weights_only=True)` reads tensors alone. The state_dict may lie under `state_dict`,
        `model_state_dict`, `model` or `net`; prefixes that all names share and the module lacks, such as `module.`, are
        taken off, which a `Notice` says. Numbers are converted to the module's dtypes. torch's counts of batches
        (num_batches_tracked) may be absent.

    Raises UserError, before anything is changed, for a file that is damaged or claims more than it holds, and for
    names, shapes, dtypes or values (NaN, infinite) that do not fit.
    """
    module = module.module if isinstance(module, Network) else module
    file = weights_file(path)
    tensors, sha256 = read_weights(file)
    refuse_another(path, file, sha256)
    put_weights(module, tensors, path)


def put_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Load `tensors` into `module`. Raises UserError, which names `path`, where they do not fit."""
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise UserError(f"{name} has no shape yet; allowed: weights for it after a first forward pass")
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    module.load_state_dict(fitted(tensors, state, path), strict=False)


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors in a file of weights by their names, on the CPU, and the sha256 of the bytes they were read
    from. Raises UserError for a file that holds anything else, or claims more than it holds."""
    try:
        with opened(file, "the weights in") as opened_file:
            size = os.fstat(opened_file.fileno()).st_size
            data = opened_file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"it changed while it was read: {len(data):,} bytes for {size:,}")
        if int.from_bytes(data[:8], "little") <= MOST_HEADER:
            tensors = safetensors.torch.load(data)
        else:
            tensors = torch_file.load(data, lambda found: _state_dict(found, file))
        if not tensors:
            raise ValueError("it holds no tensors")
    except UserError:
        raise
    except Exception as error:  # a damaged file makes safetensors, zipfile and torch raise many kinds
        what = "" if isinstance(error, ValueError) else "it is damaged: "
        reason = what + (str(error)[:_LONGEST] or type(error).__name__)
        allowed = "a whole .safetensors file, or one of torch.save(model.state_dict(), PATH)"
        raise UserError(f"cannot read the weights in {file}: {reason}; allowed: {allowed}") from None
    return tensors, hashlib.sha256(data).hexdigest()


def refuse_another(path: str | os.PathLike[str], file: Path, sha256: str) -> None:
    """Raise UserError where `path` is a saved run whose record says another sha256 of its `file` of weights."""
    record, weights = run_files(user_path(path, "the source of weights"))
    if weights == file and record.is_file():
        recorded = read_json(record, "the record").get("weights_sha256")
        if recorded not in (None, sha256):
            raise UserError(
                f"{file} is damaged, or of another run: its sha256 is not the one in {record}; "
                "allowed: the file that was written with it"
            )


def fitted(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    left_out: tuple[str, ...] = (),
    hint: str = "",
) -> dict[str, torch.Tensor]:
    """Return `tensors`, by the names and in the dtypes of a network's, `expected`.

    path: where they are from, for errors.
    left_out: what names begin with that are neither needed nor taken.
    hint: what else is allowed where names or shapes differ.

    Raises UserError unless names and shapes are the same (but for torch's counts of batches), types are such that can
    be converted, and values are finite.
    """
    source = without_prefixes(tensors, expected, path)
    source = {name: tensor for name, tensor in source.items() if _needed(name, tensor, expected)}
    expected = {name: tensor for name, tensor in expected.items() if name in source or not name.endswith(COUNTS)}
    source, expected = (
        {name: tensor for name, tensor in each.items() if not name.startswith(left_out)} for each in (source, expected)
    )
    misfits = []
    for name in sorted(source.keys() | expected.keys()):
        theirs, ours = (str(list(each[name].shape)) if name in each else None for each in (source, expected))
        if theirs != ours:
            misfits.append(f"{name} is {theirs or 'absent'} for {ours or 'none here'}")
    if misfits:
        raise UserError(
            f"the weights in {path} do not fit the network: {_first(misfits)}; allowed: the same names and shapes{hint}"
        )
    pairs = {name: (tensor.dtype, expected[name].dtype) for name, tensor in source.items()}
    others = [
        f"{name} is {theirs} for {ours}"
        for name, (theirs, ours) in pairs.items()
        if not (_converts(theirs, ours) or name.endswith(COUNTS))
    ]
    if others:
        said = _first(others).replace("torch.", "")
        raise UserError(f"the weights in {path} are of another type than the network's: {said}; allowed: the same kind")
    found = {name: tensor.to(expected[name].dtype) for name, tensor in source.items()}
    counts = {name: _bad(tensor, expected[name]) for name, tensor in found.items()}
    bad = {name: f"{count} of {found[name].numel()} in {name}" for name, count in counts.items() if count}
    large = [name for name in bad if found[name].dtype != source[name].dtype and source[name].double().isfinite().all()]
    if len(large) < len(bad):
        said = _first([said for name, said in bad.items() if name not in large])
        raise UserError(f"the weights in {path} hold NaN or infinite values, {said}; allowed: finite ones")
    if large:
        said = _first([f"{bad[name]} for {found[name].dtype}".replace("torch.", "") for name in large])
        raise UserError(f"the weights in {path} hold values that are too large, {said}; allowed: those of its range")
    return found


def _needed(name: str, tensor: torch.Tensor, expected: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a network takes a tensor of a file: not counts of batches that it has not, or that are no whole
    numbers, as a conversion of all tensors to float16 makes of large ones."""
    if not name.endswith(COUNTS):
        return True
    ours = expected.get(name)
    if ours is None or tensor.is_complex():
        return False
    return tensor.dtype == ours.dtype or bool((tensor.double() == tensor.to(ours.dtype).double()).all())


def _bad(tensor: torch.Tensor, ours: torch.Tensor) -> int:
    """Return how many values are not finite, nor the network's own there, as in a mask for attention."""
    good = tensor.isfinite()
    if not good.all() and not ours.is_meta:
        good |= tensor == ours.to(tensor.device)
    return tensor.numel() - int(good.sum())


def _converts(theirs: torch.dtype, ours: torch.dtype) -> bool:
    return theirs == ours or (theirs.is_floating_point and ours.is_floating_point)


def without_prefixes(
    tensors: Mapping[str, torch.Tensor], expected: Iterable[str], path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """Return `tensors` without as many shared prefixes as give most names of `expected`, and say which with a
    `Notice`."""
    best, taken, prefixes, names, expected = dict(tensors), "", "", dict(tensors), set(expected)
    while prefix := next((each for each in _PREFIXES if names and all(name.startswith(each) for name in names)), ""):
        prefixes += prefix
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
        if len(names.keys() & expected) > len(best.keys() & expected):
            best, taken = names, prefixes
    if taken:
        warnings.warn(
            f"the names of the weights in {path} begin with {taken!r}, which is taken off", Notice, stacklevel=2
        )
    return best


def _state_dict(found: Any, file: Path) -> list[str]:
    """Return the keys that lead to the state_dict in what `torch_file` describes. Raises ValueError where there is
    none, or several."""
    if not isinstance(found, dict):
        raise ValueError("it holds no state_dict")
    paths = _paths(found)
    if len(paths) != 1:
        there = ", ".join([repr(".".join(path)) for path in paths] or map(repr, found)) or "nothing"
        raise ValueError(f"it holds {there}, of which {'each may be' if paths else 'none is'} the state_dict")
    for key in paths[0]:
        averages = [name for name in found if "ema" in str(name).lower().split("_")]
        if averages:
            said = f"{file} holds {averages[0]!r} beside {key!r}, and the latter is taken"
            warnings.warn(said, Notice, stacklevel=2)
        found = found[key]
    others = [
        key for key, value in found.items() if not isinstance(value, torch_file.Described) or type(key) is not str
    ]
    if others:
        raise ValueError(f"{others[0]!r} is no tensor with a name, which a state_dict holds alone")
    return paths[0]


def _paths(found: Any, depth: int = 0) -> list[list[str]]:
    """Return the keys that lead to each dictionary with tensors in `found`, which itself is one only where none is
    nested: checkpoints keep other tensors beside their state_dict."""
    if not isinstance(found, dict) or depth > _DEEPEST:
        return []
    nested = [[key, *path] for key in _NESTED for path in _paths(found.get(key), depth + 1)]
    return nested or [[]] * any(isinstance(value, torch_file.Described) for value in found.values())


def _first(places: list[str]) -> str:
    """Return the first of `places` in words, and the number of the others."""
    more = f" and {len(places) - _NAMES_SHOWN} more" if len(places) > _NAMES_SHOWN else ""
    return ", ".join(places[:_NAMES_SHOWN]) + more
