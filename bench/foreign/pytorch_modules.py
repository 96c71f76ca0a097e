"""Adapter of pytorch's test/test_modules.py: our modules in place of torch's in `module_db`.

Each case is an entry of its own, of a subclass that has its name, so that a test fails for one case and not for all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import make_tensor

import fastcifar
from bench.foreign.pytorch import common_modules as theirs
from fastcifar.kernels import cross_entropy
from fastcifar.models.blocks import ACTIVATIONS
from fastcifar.models.convolution import Conv3x3

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Reference = Callable[..., torch.Tensor]


def add(
    name: str,
    cls: type[nn.Module],
    *arguments: Any,
    images: tuple[tuple[int, ...], ...],
    reference: Reference | None = None,
    errors: tuple[tuple[int, ...], ...] = (),
    differs: bool = False,
    twice: bool = True,
    **settings: Any,
) -> None:
    """Add a case to `module_db`.

    name: the case's and its class's.
    cls, arguments, settings: the module under test, and what it is made with.
    images: shapes of the inputs.
    reference: what the outputs equal: a function of the module, its parameters and the inputs.
    errors: shapes of inputs that are refused in training.
    differs: evaluation is not training.
    twice: check second derivatives, too.
    """
    made = type(name, (cls,), {"__module__": __name__})
    globals()[name] = made  # for pickle

    def inputs(info: Any, device: Any, dtype: torch.dtype, requires_grad: bool, **_: Any) -> list[theirs.ModuleInput]:
        given = [make_tensor(shape, device=device, dtype=dtype, requires_grad=requires_grad) for shape in images]
        call = (theirs.FunctionInput(*arguments, **settings), theirs.FunctionInput(*given))
        return [theirs.ModuleInput(*call, desc=name, reference_fn=reference)]

    def refused(info: Any, device: Any, dtype: torch.dtype, training: bool, **_: Any) -> list[theirs.ErrorModuleInput]:
        found = []
        for shape in errors if training else ():
            given = make_tensor(shape, device=device, dtype=dtype)
            call = (theirs.FunctionInput(*arguments, **settings), theirs.FunctionInput(given))
            at = {"error_on": theirs.ModuleErrorEnum.FORWARD_ERROR, "error_regex": ""}
            found.append(
                theirs.ErrorModuleInput(theirs.ModuleInput(*call), error_type=(ValueError, RuntimeError), **at)
            )
        return found

    CASES.append(
        theirs.ModuleInfo(
            made,
            module_inputs_func=inputs,
            module_error_inputs_func=refused if errors else None,
            train_and_eval_differ=differs,
            module_memformat_affects_out=cls not in (fastcifar.GlobalMaxPool, fastcifar.Head, fastcifar.MLP),
            dtypes=DTYPES,
            supports_gradgrad=twice,
        )
    )


def normed(
    module: fastcifar.GhostBatchNorm, parameters: list[torch.Tensor], x: torch.Tensor, *residual: torch.Tensor
) -> torch.Tensor:
    """Return what torch makes of `module`, in float64: of the images, and a residual where there is one."""
    dtype, x = x.dtype, x.double()
    x = F.max_pool2d(x, 2) if module.pool else x
    scale, bias, eps = module.weight.double(), module.bias.double(), module.eps
    if module.training:
        groups = x.split(module.ghost_batch or max(1, len(x)))
        x = torch.cat([F.batch_norm(group, None, None, scale, bias, True, 0.0, eps) for group in groups])
    else:
        x = F.batch_norm(x, module.running_mean.double(), module.running_var.double(), scale, bias, False, 0.0, eps)
    act = partial(F.celu, alpha=module.celu_alpha) if module.activation == "celu" else ACTIVATIONS[module.activation]
    return (act(x) + sum(residual)).to(dtype)


def convolved(module: nn.Conv2d, parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, module.weight, module.bias, padding=module.padding)


class Loss(nn.Module):
    """`fastcifar.kernels.cross_entropy` in the form of torch's CrossEntropyLoss, of labels that are classes."""

    def __init__(self, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(logits, labels, self.label_smoothing)[0]
        return loss / len(logits) if self.reduction == "mean" else loss


def losses(info: Any, *, requires_grad: bool, **where: Any) -> list[theirs.ModuleInput]:
    """Return those of torch's cases that ours takes: logits `[B, K]` and one label each, summed or their mean."""
    taken = {"reduction", "label_smoothing"}
    return [
        case
        for case in theirs.module_inputs_torch_nn_CrossEntropyLoss(info, requires_grad=requires_grad, **where)
        if case.constructor_input.kwargs.keys() <= taken
        and case.constructor_input.kwargs["reduction"] != "none"
        and [argument.dim() for argument in case.forward_input.args] == [2, 1]
    ]


def loss_errors(info: Any, **where: Any) -> list[theirs.ErrorModuleInput]:
    """Return torch's cases of what is refused, whatever the error's type and words."""
    found = theirs.module_error_inputs_torch_nn_CrossEntropyLoss(info, **where)
    for error in found:
        error.error_type, error.error_regex = (ValueError, TypeError, RuntimeError, IndexError), ""
    return [error for error in found if not error.module_error_input.constructor_input.kwargs]


CASES: list[theirs.ModuleInfo] = []
SQUARE = ((4, 3, 6, 6),)
for name, arguments, settings in (
    ("GhostBatchNorm", (3,), {"errors": ((1, 3, 1, 1), (4, 2, 6, 6), (4, 3, 6))}),
    ("GhostBatchNormMomentum", (3,), {"momentum": 0.8, "eps": 1e-3}),
    ("GhostBatchNormGroups", (3, 2), {"errors": ((3, 3, 4, 4),)}),
    ("GhostBatchNormPool", (3,), {"pool": True}),
    ("GhostBatchNormFrozen", (3,), {"freeze_scale": True}),
    ("GhostBatchNormResidual", (3,), {"images": SQUARE * 2, "activation": "celu", "celu_alpha": 0.3}),
    ("GhostBatchNormEmpty", (3,), {"images": ((0, 3, 6, 6),)}),
    *((f"GhostBatchNorm{act.title()}", (3,), {"activation": act}) for act in ("celu", "relu", "gelu", "silu")),
    ("GhostBatchNormPoolSilu", (3, 2), {"activation": "silu", "pool": True}),
):
    add(
        name,
        fastcifar.GhostBatchNorm,
        *arguments,
        **{"images": SQUARE, "reference": normed, "differs": True, **settings},
    )
for name, arguments, settings in (
    ("ConvBN", (3, 4), {}),
    ("ConvBN1x1", (3, 4), {"kernel_size": 1}),
    ("ConvBNPool", (3, 4, True), {}),
    ("ConvBNAverage", (3, 4, True), {"pooling": "avg", "activation": "gelu"}),
    ("ConvBNBias", (3, 4), {"norm": False, "activation": "silu"}),
):
    add(name, fastcifar.ConvBN, *arguments, images=SQUARE, differs=settings.get("norm", True), **settings)
add("ConvResBlock", fastcifar.ConvResBlock, 3, 4, images=SQUARE, differs=True)
for name, side in (("Conv3x3", 6), ("Conv3x3Narrow", 4), ("Conv3x3Narrowest", 2)):
    add(name, Conv3x3, 3, 4, images=((3, 3, side, side),), reference=convolved)
add("PatchWhitening", fastcifar.PatchWhitening, images=SQUARE, reference=convolved)
add("PatchWhiteningBias", fastcifar.PatchWhitening, 3, 2, bias=True, negatives=True, images=SQUARE, reference=convolved)
add("GlobalMaxPool", fastcifar.GlobalMaxPool, images=SQUARE, reference=lambda m, p, x: x.amax((2, 3)))
add("Head", fastcifar.Head, 6, 3, images=((4, 6),), reference=lambda m, p, x: F.linear(x, m.weight) / 16)
network = {"images": ((2, 3, 32, 32),), "twice": False}
davidnet = fastcifar.DavidNetConfig(widths=(4, 4, 4, 4), ghost_batch=2)
add("DavidNet", fastcifar.DavidNet, davidnet, 4, **network, differs=True)
add("ResNet18", fastcifar.ResNet18, fastcifar.ResNet18Config(width=2), 4, **network, differs=True)
add("SpeedrunNet", fastcifar.SpeedrunNet, fastcifar.SpeedrunConfig(widths=(4, 4, 4)), 4, **network, differs=True)
add("MLP", fastcifar.MLP, fastcifar.MLPConfig(hidden=(5,)), 4, **network)
CASES.append(theirs.ModuleInfo(Loss, module_inputs_func=losses, module_error_inputs_func=loss_errors, dtypes=DTYPES))
theirs.module_db[:] = CASES

NETWORKS = ("DavidNet", "ResNet18", "SpeedrunNet", "MLP")
REASONS = {
    "*::test_factory_kwargs_*: TypeError: *unexpected keyword argument 'device'": (
        "gives device and dtype to constructors; ours take torch.device(...) and .to()"
    ),
    "*::test_memory_format_*: AssertionError: False is not true": (
        "asks for results in the memory format of the images; ours are channels-last"
    ),
    "*::test_memory_format_PatchWhitening*_float16: AssertionError: Tensor-likes are not close!": (
        "torch's own float16 convolution rounds by the memory format"
    ),
    **dict.fromkeys(
        (f"*::test_forward_GhostBatchNorm{case}_*16: AssertionError: Tensor-likes*" for case in ("Residual", "Gelu")),
        "compares with float64: half precision is rounded after the norm and after the sum, as torch's own is",
    ),
    "*::test_forward_Loss_*16: AssertionError: The values for attribute 'dtype' do not match*": (
        "asks for the loss in half precision; ours is float32"
    ),
    "*::test_gradgrad_*: RuntimeError: fastcifar::* has a first derivative alone*": (
        "takes second derivatives, which the fused operators refuse"
    ),
}


def is_ours(item: pytest.Item) -> bool:
    """Return whether to run a test: `module_db` has ours alone, but a network's numerical gradients take minutes, and
    those of its blocks tell as much."""
    return not any(f"_grad_{network}_" in item.name for network in NETWORKS)
