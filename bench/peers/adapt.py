"""A peer's program, read from its checkout, adapted in memory and executed as a module that is not `__main__`."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from bench.peers.harness import Harness
from fastcifar.errors import UserError
from fastcifar.training.device import measure_convolutions

Transform = Callable[[torch.Tensor], torch.Tensor]
Shims = Iterable[tuple[str, str]]  # pairs of a piece of their text and its replacement, everywhere in the file


def read_code(path: Path, shims: Shims) -> str:
    """Return the text of `path` with every shim applied, in order. Raises UserError where the file is missing, or lacks
    a piece of text that is to be replaced."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not the checkout these shims are for: {path.name} is missing")
    text = path.read_text(encoding="utf-8")
    for old, new in shims:
        if old not in text:
            raise UserError(f"{path} is not the version these shims are for: it lacks {old!r}")
        text = text.replace(old, new)
    return text


def load_program(
    path: Path, shims: Shims, on_cpu: Shims, harness: Harness, name: str = "", **names: object
) -> types.ModuleType:
    """Execute a peer's program as a module.

    path: its file, which is also the program's only argument: some keep the text of the file named there.
    shims: replacements; on a CPU those of `on_cpu` follow.
    harness: what the replacements call as `_harness`; on a CPU they call its `cpu_type` as `_cpu_type`.
    name: the module's (default: the file's).
    names: what else is defined in it beforehand.

    Raises what `load_module` raises.
    """
    replace_torchvision()
    sys.argv = [str(path)]
    if harness.device.type == "cpu":
        shims, names = [*shims, *on_cpu], {"_cpu_type": cpu_type(), **names}
    return load_module(path, shims, name, {"_harness": harness, **names})


def load_module(
    path: Path, shims: Shims, name: str = "", namespace: Mapping[str, object] | None = None
) -> types.ModuleType:
    """Execute `path` as the module `name` (default: its own), which later imports find, with the names of `namespace`
    in it beforehand. Raises what `read_code` raises, and whatever their code does."""
    module = types.ModuleType(name or path.stem)
    module.__file__ = str(path)
    module.__dict__.update(namespace or {})
    code = compile(read_code(path, shims), str(path), "exec")
    sys.modules[module.__name__] = module  # torch.compile looks a function's module up there
    exec(code, module.__dict__)
    return module


@functools.cache
def cpu_type() -> torch.dtype:
    """Return what a program that is float16 on a GPU computes in on this CPU, where float16 is emulated: bfloat16, or
    float32 where torch's own convolutions are faster in that."""
    with patch.dict(os.environ, FASTCIFAR_KERNELS="reference"):
        seconds = measure_convolutions()
    return min(seconds, key=lambda dtype: seconds[dtype])


class InHalf:
    """Computes in bfloat16 from float32 weights; gradients and logits are float32 too."""

    def forward(self, *inputs: object, **options: object) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(*inputs, **options).float()  # pyright: ignore[reportAttributeAccessIssue]


def in_half(network: nn.Module) -> nn.Module:
    """Return the network itself, its weights in float32 and its operations in bfloat16, as torch's mixed precision has
    it, or in float32 where that is the `cpu_type`. For programs whose weights are float16 on a GPU, of 11 bits:
    bfloat16's 8 round a small update of a weight away, and the network does not reach its accuracy. A copy of it is one
    such too."""
    if cpu_type() == torch.bfloat16:
        kind = type(network)
        network.__class__ = type(kind.__name__, (InHalf, kind), {})
    return network.float()


def half_newton_schulz(module: types.ModuleType) -> None:
    """Let the function of Muon's iterations that a program has, if any, make them in the `cpu_type`, as on a GPU in
    float16: its first argument is a list of gradients, here in float32."""
    for name in ("_zeropower_via_newtonschulz5", "_orthogonalize_newtonschulz", "_ns_all"):
        if (iterate := getattr(module, name, None)) is not None:
            narrow = lambda gradients, *rest, iterate=iterate: iterate([g.to(cpu_type()) for g in gradients], *rest)  # noqa: E731
            setattr(module, name, narrow)


def stand_in(name: str, **members: object) -> None:
    """Make a module `name` of `members`, with the spec that importers ask for, where there is none to import, and the
    packages above it."""
    package = name.rpartition(".")[0]
    if package:
        stand_in(package, __path__=[])
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = module = types.ModuleType(name)
        module.__dict__.update(members, __spec__=ModuleSpec(name, None))


def replace_torchvision(datasets: types.ModuleType | None = None) -> None:
    """Put a module in place of torchvision, installed or not, with `datasets` and the three transforms that the peers
    use: the data is ours, so that nothing is downloaded, and torchvision's transforms want PIL images."""
    torchvision = types.ModuleType("torchvision")
    torchvision.datasets = datasets or types.ModuleType("torchvision.datasets")
    torchvision.transforms = transforms = types.ModuleType("torchvision.transforms")
    transforms.Compose, transforms.ToTensor, transforms.Normalize = compose, to_tensor, normalize
    for module in (torchvision, torchvision.datasets, transforms):
        module.__spec__ = ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module


def compose(transforms: Sequence[Transform]) -> Transform:
    """Return several transforms as one."""
    return lambda image: functools.reduce(lambda result, transform: transform(result), transforms, image)


def to_tensor() -> Transform:
    """Return what makes an image uint8 `[H, W, 3]` float32 `[3, H, W]`, in 0..1."""
    return lambda image: image.permute(2, 0, 1).contiguous().float().div_(255)


def normalize(mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Return what takes the mean from images `[..., 3, H, W]` and divides them by the standard deviation, in their own
    dtype and memory format."""

    def apply(images: torch.Tensor) -> torch.Tensor:
        center, scale = (torch.as_tensor(values).to(images).view(-1, 1, 1) for values in (mean, std))
        return images.clone().sub_(center).div_(scale)

    return apply
