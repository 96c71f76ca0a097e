"""The public modules, narrow, their twins of torch's own layers, and how far two results are apart."""

import copy
import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

import fastcifar
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.network import Linear
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from tests.small import ALEXNET, NARROW

IMAGES = (3, 32, 32)

# The modules, each with the shape of what it takes.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ConvBN": (lambda: fastcifar.ConvBN(3, 8, pool=True, ghost_batch=4, freeze_scale=False), (3, 8, 8)),
    "ConvResBlock": (lambda: fastcifar.ConvResBlock(4, 8, ghost_batch=4, activation="gelu"), (4, 8, 8)),
    "GhostBatchNorm": (lambda: fastcifar.GhostBatchNorm(6, 4, activation="silu", pool=True), (6, 6, 6)),
    "GlobalMaxPool": (fastcifar.GlobalMaxPool, (5, 4, 4)),
    "Head": (lambda: fastcifar.Head(6, 3, scale=1 / 4), (6,)),
    "PatchWhitening": (lambda: fastcifar.PatchWhitening(3, 2, padding=0, negatives=True, bias=True), (3, 8, 8)),
    "AlexNet": (lambda: fastcifar.AlexNet(ALEXNET), (3, 64, 64)),
    "DavidNet": (lambda: fastcifar.DavidNet(NARROW), IMAGES),
    "LeNet": (lambda: fastcifar.LeNet(fastcifar.LeNetConfig(channels=(4, 6), hidden=(8, 8))), IMAGES),
    "MLP": (lambda: fastcifar.MLP(fastcifar.MLPConfig(hidden=(8,))), IMAGES),
    "MyrtleNet": (lambda: fastcifar.MyrtleNet(fastcifar.MyrtleConfig(widths=(4, 4, 8, 8))), IMAGES),
    "ResNet18": (lambda: fastcifar.ResNet18(fastcifar.ResNet18Config(width=4)), IMAGES),
    "SpeedrunNet": (lambda: fastcifar.SpeedrunNet(SpeedrunConfig(widths=(4, 4, 8), whitening_bias_epochs=1)), IMAGES),
    "WideResNet": (lambda: fastcifar.WideResNet(fastcifar.WideResNetConfig(depth=10, widen=1)), IMAGES),
}


def make(name: str, batch: int = 8) -> tuple[nn.Module, torch.Tensor]:
    """The module with some running statistics, scales and biases that are not those of a fresh one, and its input."""
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module, x = build(), torch.randn(batch, *shape)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, fastcifar.GhostBatchNorm):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.bias.normal_(0, 0.3)
                if norm.weight.requires_grad:
                    norm.weight.uniform_(0.5, 1.5)
    return module, x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class PlainNorm(nn.Module):
    """What a `GhostBatchNorm` computes, of torch's functions and in the same parameters."""

    def __init__(self, norm: fastcifar.GhostBatchNorm) -> None:
        super().__init__()
        self.norm = [norm]  # a list, so that it is no module of this one
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        (norm,) = self.norm
        x = F.max_pool2d(x, 2) if norm.pool else x
        if self.training:
            groups = x.split(norm.ghost_batch or len(x))
            x = torch.cat(
                [F.batch_norm(part, None, None, self.weight, self.bias, True, 0, norm.eps) for part in groups]
            )
        else:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, norm.eps)
        if norm.activation == "sum_relu":
            return F.relu(x if residual is None else x + residual)
        act = {"celu": functools.partial(F.celu, alpha=norm.celu_alpha), "none": lambda x: x}
        x = act.get(norm.activation, getattr(F, norm.activation, None))(x)
        return x if residual is None else x + residual


def plain(module: nn.Module) -> nn.Module:
    """A copy of `module` with torch's own layers in place of ours."""
    module = copy.deepcopy(module)
    for name, child in [("", module), *module.named_modules()]:
        new = None
        if isinstance(child, fastcifar.GhostBatchNorm):
            new = PlainNorm(child)
        elif isinstance(child, Conv3x3):
            shape = {"stride": child.stride, "padding": 1, "bias": False}
            new = skip_init(nn.Conv2d, child.in_channels, child.out_channels, 3, **shape)
            new.weight = child.weight
        elif isinstance(child, Linear):
            new = skip_init(nn.Linear, child.in_features, child.out_features)
            new.weight, new.bias = child.weight, child.bias
        if new is not None:
            new.train(child.training)
            if not name:
                return new
            module.set_submodule(name, new)
    return module


def gradients(module: nn.Module, x: torch.Tensor, call: Callable = lambda module, x: module(x)) -> list[torch.Tensor]:
    """The output, the input's gradient and those of all parameters that train."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = call(module, x)
    weights = torch.linspace(-1, 2, out.numel()).view(out.shape).to(out.dtype)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *parameters])]


def running(module: nn.Module) -> list[torch.Tensor]:
    """The running statistics, which a pass in training mode changes."""
    return [buffer for name, buffer in module.named_buffers() if "running" in name]


def distances(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    """How far each tensor is from the wanted one, as a share of its size: single entries of a sum may cancel."""
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in wanted]
    norm = torch.linalg.vector_norm
    pairs = [(one.double(), other.double()) for one, other in zip(found, wanted, strict=True)]
    return [(norm(one - other) / norm(other).clamp_min(1e-12)).item() for one, other in pairs]


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-4) -> None:
    assert max(distances(found, wanted), default=0) <= tolerance


def assert_no_worse(found: list[torch.Tensor], theirs: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """What we round is as near to the unrounded values as what plain torch rounds, over all tensors: for a single one
    it is chance."""
    ours, plains = (distances(rounded, wanted) for rounded in (found, theirs))
    assert sum(ours) <= 2 * sum(plains) + 0.01 * len(ours)
