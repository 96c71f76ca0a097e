"""Ghost batch norm fused with its neighbors: pooling before it, the activation and a residual sum after it."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch
from torch import nn

from fastcifar.kernels import norm_act_pool, norm_act_pool_inference


class GhostBatchNorm(nn.BatchNorm2d):
    """Batch norm over groups of `ghost_batch` consecutive images (Hoffer, Hubara and Soudry 2017), then an activation.

    Input `[N, C, H, W]` channels-last, optionally max-pooled 2x2 first; output `[N, C, H', W']`, plus `residual` if
    given. It differs from Page's on purpose: a group is a run of consecutive images (Page: every 16th image of the
    batch), and the running statistics are means over all groups throughout (Page: averaged once, then those of the
    first group). The running variance is the unbiased one, as in torch.

    With `border` the output has a row of zeros above and a column of zeros to the left, `[N, C, H' + 1, W' + 1]`.
    `pooled` input is not pooled again.

    channels: C. The other arguments are those of `ConvBN`; `ghost_batch` 0 is the whole batch, plain batch norm. A
    momentum of None is a running mean over all batches, as in torch; it counts them on the host, so that on CUDA such a
    training is not captured.

    A `torch.nn.BatchNorm2d` in all but two things: `state_dict` has no `num_batches_tracked`, which counts while
    momentum is None alone (a file may have it), and `freeze_scale` keeps the scale at 1 as long as `weight` does not
    train. Under `torch.utils.checkpoint` the running statistics move twice, as torch's do.

    Raises ValueError for a batch that `ghost_batch` does not divide, and for one value per channel in training;
    RuntimeError where `convert_sync_batchnorm` would drop its groups, pool or activation.
    """

    wide_vectors: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        ghost_batch: int = 0,
        *,
        activation: str = "none",
        celu_alpha: float = 1.0,
        pool: bool = False,
        freeze_scale: bool = False,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(channels, eps, momentum)
        self.ghost_batch = ghost_batch
        self.activation, self.celu_alpha, self.pool = activation, celu_alpha, pool
        self.freeze_scale = freeze_scale
        self.weight.requires_grad_(not freeze_scale)
        # None: what every step counts up would be another launch, and another name in saved runs.
        count = torch.tensor(0) if momentum is None else None
        self.register_buffer("num_batches_tracked", count, persistent=False)

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, border: bool = False, pooled: bool = False
    ) -> torch.Tensor:
        act = {"activation": self.activation, "alpha": self.celu_alpha}
        fused = {**act, "pool": self.pool and not pooled, "eps": self.eps, "residual": residual, "border": border}
        scale = None if self.freeze_scale and not self.weight.requires_grad else self.weight
        running = (
            None if self.running_mean is None or self.running_var is None else (self.running_mean, self.running_var)
        )
        if not self.training and running is not None:
            return norm_act_pool_inference(input, *running, self.bias, scale, **fused)
        images = input.shape[0]  # len(input) would make it a constant of an exported graph
        groups, rest = (images // self.ghost_batch, images % self.ghost_batch) if self.ghost_batch else (1, 0)
        if rest:
            raise ValueError(f"a batch of {images} images does not divide into ghost batches of {self.ghost_batch}")
        moves = self.training and self.track_running_stats
        fused |= {"running": running, "momentum": self._share()} if moves else {}
        return norm_act_pool(input, self.bias, scale, groups=groups or 1, **fused)[0]

    def _share(self) -> float:
        """Return the share of this batch's statistics in the running ones, and count it where that is their mean."""
        if self.momentum is not None:
            return self.momentum
        if self.num_batches_tracked is None:
            self.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=self.bias.device)
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked)

    def reset_running_stats(self) -> None:
        for statistic, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if statistic is not None:
                statistic.fill_(value)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        count = state_dict.pop(f"{prefix}num_batches_tracked", None)
        if count is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.copy_(count)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)

    def __setstate__(self, state: dict[str, Any]) -> None:
        weight = state["_parameters"]["weight"]
        state.setdefault("freeze_scale", not weight.requires_grad)  # it and the others are absent in older pickles
        for name, value in (("num_features", len(weight)), ("affine", True), ("track_running_stats", True)):
            state.setdefault(name, value)
        state["_buffers"].setdefault("num_batches_tracked", None)
        state["_non_persistent_buffers_set"].add("num_batches_tracked")
        super().__setstate__(state)

    def __getattr__(self, name: str) -> Any:
        # It asks for this before it puts a norm without groups, pool and activation in the place of this one.
        if name == "qconfig" and sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            raise RuntimeError(
                f"GhostBatchNorm({self.extra_repr()}) can't become a SyncBatchNorm, which would drop its groups, pool "
                "and activation; allowed: the module as it is"
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        return f"{len(self.bias)}, ghost_batch={self.ghost_batch}, activation={self.activation}, pool={self.pool}"
