"""Muon: momentum, orthogonalized matrix by matrix before it is applied (Jordan 2024,
kellerjordan.github.io/posts/muon), over flat buffers and alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch

from fastcifar.errors import UserError, brief
from fastcifar.kernels import muon_direction, muon_update
from fastcifar.kernels import newton_schulz as iterate
from fastcifar.kernels.flat_muon import FIELDS, row_factors
from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.newton_schulz import COEFFICIENTS, orthogonalize, polar_express
from fastcifar.optim.optimizer import GroupOptimizer
from fastcifar.optim.standalone import StandaloneOptimizer, require_settings, scalar
from fastcifar.recipes import Recipe
from fastcifar.recipes.declare import checked
from fastcifar.recipes.optimizers.muon import MuonConfig


class FlatMuon(GroupOptimizer[MuonConfig]):
    """Muon for the convolution filters and SGD with Nesterov momentum for all else, over flat buffers
    (airbench94_muon).

    Filters are matrices W [out, in * height * width], G the gradient, V the momentum, m = `momentum`, s the schedule:
        V <- m V + G;  W <- W * sqrt(out) / |W| in the steps of `norm_every`;  W <- (1 - s * filter_decay) W;
        W <- W - s * lr * orthogonalized(G + m V)
    `newton_schulz` orthogonalizes, in the network's compute dtype; with `row_momentum` rows are evened out after it, as
    in `kernels.muon_update`. All else, with m = `sgd_momentum` and the peak rate
    r = `head_lr` for matrices, `bias_lr` for biases and scales:
        g = dloss/dw + weight_decay / r * w;  v <- m v + g;  w <- w - s * r * (g + m v)
    So each decay is the share of a weight that a step at the peak rate removes, `weight_decay` before momentum.
    """

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        normalizing = normalizing_steps(self.config, total_steps)
        self._normalizing = torch.tensor(normalizing, device=flat.statistics.device)
        if self.config.overlap and recipe.compile == "off":  # a compiled network's backward pass is one piece
            flat.divide()
        self._above, self._below = ([_Filters(flat, group, above) for group in flat.groups] for above in (True, False))
        parts = [*self._above, *self._below]
        rows = [sum(filters.layout[1::FIELDS]) for filters in parts]
        self._row_squares = flat.statistics.new_zeros(sum(rows)) if self.config.row_momentum else None
        if self._row_squares is not None:
            for filters, squares in zip(parts, self._row_squares.split(rows), strict=True):
                filters.row_squares = squares
        least, steps = self.config.polar_express, self.config.ns_steps
        self._coefficients = polar_express(steps, least) if least else list(self.config.ns_coefficients)
        self._side_stream = torch.cuda.Stream(self.count.device) if self.count.is_cuda else None
        self._copied: torch.Event | None = None
        self._stepped_above = False

    def reset(self) -> None:
        """Start again at step 0, even where a step was broken off."""
        super().reset()
        self._stepped_above = False
        if self._row_squares is not None:
            self._row_squares.zero_()

    def _further_state(self) -> dict[str, torch.Tensor]:
        return {} if self._row_squares is None else {"row_squares": self._row_squares}

    @torch.no_grad()
    def step_above(self, copy_gradients: Callable[[], None] = lambda: None) -> None:
        """Update the filters above the first block; on CUDA in a stream of their own, while the backward pass goes on:
        the iteration is a chain of small products, which leave most of a GPU idle."""
        with self._in_side_stream():
            copy_gradients()
            if self._side_stream is not None:
                self._copied = self._side_stream.record_event()
            for group, rates, filters in zip(self.flat.groups, self.rates, self._above, strict=True):
                self._step_filters(group, rates, filters)
        self._stepped_above = True

    @torch.no_grad()
    def step(self) -> None:
        """Update all groups and averages from their gradients."""
        if not self._stepped_above:
            self.step_above()
        self._stepped_above = False
        if self._copied is not None:  # all else above the first block is updated in this stream
            torch.cuda.current_stream(self.count.device).wait_event(self._copied)
        super().step()

    def _in_side_stream(self) -> contextlib.AbstractContextManager:
        if self._side_stream is None:
            return contextlib.nullcontext()
        self._side_stream.wait_stream(torch.cuda.current_stream(self.count.device))
        return torch.cuda.stream(self._side_stream)

    def finish_step(self) -> None:
        """End a step once both streams have read its count."""
        if self._side_stream is not None:
            torch.cuda.current_stream(self.count.device).wait_stream(self._side_stream)
        super().finish_step()

    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        self._step_filters(group, rates, self._below[self.flat.groups.index(group)])
        config = self.config
        rate = config.head_lr if group.name == "weights" else config.bias_lr
        for run in group.runs(lambda parameter: parameter.dim() != 4):
            self.sgd(
                *(group, rates, run),
                lr_factor=rate / config.lr,
                momentum=config.sgd_momentum,
                weight_decay=config.weight_decay / rate,
                form="torch",
            )

    def _step_filters(self, group: FlatGroup, rates: torch.Tensor, filters: _Filters) -> None:
        config = self.config
        if not (filters.layout and group.trains):
            return
        buffers = (group.weights, group.grads, group.velocity)
        norms = muon_direction(*buffers, filters.directions, filters.layout, momentum=config.momentum)
        iterate(
            *(filters.directions, filters.updates, filters.shapes),
            steps=config.ns_steps,
            coefficients=self._coefficients,
        )
        muon_update(
            group.weights,
            filters.updates,
            None if group.compute is group.weights else group.compute,
            group.ema if self.recipe.ema.decay else None,
            *(norms, rates, self._normalizing, self.count, filters.layout),
            decay=config.filter_decay / config.lr,
            row_squares=filters.row_squares,
            row_momentum=config.row_momentum,
            **self.average_settings(),
        )


class _Filters:
    """The filters of `group` above the first block of `flat`, or the others, as batches for Newton-Schulz.

    A batch holds the matrices of one shape. The flat buffers `directions` and `updates`, in the compute dtype, hold the
    batches of `shapes` (see `kernels.newton_schulz`); `layout` is the place of each filter (see `muon_direction`). In
    memory a filter is [out, height, width, in]; the order of columns makes no difference to Muon. `row_squares`: see
    `muon_update`.
    """

    row_squares: torch.Tensor | None = None

    def __init__(self, flat: FlatModel, group: FlatGroup, above: bool) -> None:
        starts: dict[tuple[int, int], list[int]] = {}
        for parameter, span in zip(group.parameters, group.spans, strict=True):
            if parameter.dim() == 4 and flat.is_above(parameter) == above:
                starts.setdefault((len(parameter), parameter[0].numel()), []).append(span.start)
        self.layout: list[int] = []
        self.shapes: list[int] = []
        size = 0
        for (rows, columns), alike in starts.items():
            for start in alike:
                self.layout += [start, rows, columns, size, columns]
                size += rows * columns
            self.shapes += [len(alike), rows, columns]
        like = {"dtype": flat.dtype, "device": group.weights.device}
        self.directions, self.updates = (torch.zeros(size, **like) for _ in range(2))


class Muon(StandaloneOptimizer):
    """Muon for parameters of two or more dimensions, taken as matrices [size of the first, all others].

    V <- momentum V + G; W <- W * sqrt(rows) / |W| every `norm_every` steps; W <- (1 - lr * weight_decay) W;
    W <- W - lr * factor * orthogonalized(G + momentum V). Biases and scales need another optimizer.

    lr: a number, or a tensor of one element; the host waits for one on a GPU, as with torch.optim.Muon.
    nesterov: False orthogonalizes V in place of G + momentum V.
    ns_steps, ns_coefficients: those of `newton_schulz`, which takes matrices of equal shape together; see
        `polar_express` for coefficients that differ from step to step.
    norm_every: 0: never.
    dtype: of Newton-Schulz; by default the parameters' own. bfloat16 is enough and fast.
    adjust_lr_fn: the factor, by torch.optim.Muon's names: "none", 1, as in airbench; "original",
        sqrt(max(1, rows / columns)), as in Jordan's Muon and by default in torch's; "match_rms_adamw",
        0.2 * sqrt(max(rows, columns)), as in Moonlight (Liu 2025), for rates and decays of AdamW.
    maximize: go uphill.
    row_momentum: above 0, each row of the orthogonalized update is divided by the root of the running mean, with this
        momentum, of its mean square, and the whole is scaled to the norm that it had (NorMuon, Li et al. 2025: 0.95).

    There is no other form of a step: no `foreach`, `fused` or `differentiable`. Raises UserError for a setting out of
    range, or a parameter that is no matrix of real numbers.
    """

    added: ClassVar = {"adjust_lr_fn": "none", "maximize": False, "row_momentum": 0.0}

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        ns_coefficients: Sequence[float] = COEFFICIENTS,
        norm_every: int = 0,
        dtype: torch.dtype | None = None,
        adjust_lr_fn: str = "none",
        *,
        maximize: bool = False,
        row_momentum: float = 0.0,
    ) -> None:
        require_settings("Muon", momentum, lr=lr, weight_decay=weight_decay, ns_steps=ns_steps, norm_every=norm_every)
        for name, value in (("ns_steps", ns_steps), ("norm_every", norm_every)):
            checked(f"{name} of Muon", value, int)
        if not isinstance(ns_coefficients, Sequence):
            raise UserError(f"ns_coefficients of Muon are {brief(ns_coefficients)}; allowed: numbers, three for a step")
        if not 0 <= row_momentum < 1:
            raise UserError(f"row_momentum of Muon is {row_momentum!r}; allowed: 0 up to, not including, 1")
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        settings |= {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "norm_every": norm_every, "dtype": dtype}
        settings |= {"adjust_lr_fn": adjust_lr_fn, "maximize": maximize, "row_momentum": row_momentum}
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters as torch does. Raises UserError for one that is no matrix of real numbers."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        for parameter in group["params"]:
            if parameter.dim() < 2:
                raise UserError(f"a parameter of Muon has shape {list(parameter.shape)}; allowed: 2 or more dimensions")
            if not parameter.is_floating_point():
                raise UserError(f"a parameter of Muon is {parameter.dtype}; allowed: a real floating type")
        if (name := group["adjust_lr_fn"]) not in ADJUSTMENTS:
            raise UserError(f"adjust_lr_fn of Muon is {name!r}; allowed: {', '.join(ADJUSTMENTS)}")
        if (count := len(group["ns_coefficients"])) not in (3, 3 * group["ns_steps"]):
            allowed = f"3, or 3 for each of {group['ns_steps']} steps"
            raise UserError(f"ns_coefficients of Muon are {count} numbers; allowed: {allowed}")
        self.param_groups.append(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Update every parameter that has a gradient; return the loss of `closure` if one is given. Raises RuntimeError
        for a sparse gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group, pairs in self.trained():
            directions = [self._direction(*pair, group).flatten(1) for pair in pairs]
            updates = orthogonalize(directions, group["ns_steps"], group["ns_coefficients"], group["dtype"])
            rate, adjust = scalar(group["lr"]), ADJUSTMENTS[group["adjust_lr_fn"]]
            for (parameter, _), update in zip(pairs, updates, strict=True):
                if group["norm_every"] and self.state[parameter]["step"] % group["norm_every"] == 0:
                    parameter.mul_(norm_factor(parameter))
                if group["row_momentum"]:
                    squares = self.state[parameter].setdefault("row_squares", parameter.new_zeros(len(parameter)))
                    update = update * row_factors(update, squares, group["row_momentum"])
                parameter.mul_(1 - rate * group["weight_decay"])
                alpha = rate * adjust(*update.shape)
                # a tensor without dimensions is a number to torch, if not to its types
                parameter.sub_(update.view_as(parameter), alpha=alpha)  # pyright: ignore[reportArgumentType]
        return loss

    def _direction(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Update momentum and step count; return the matrix to orthogonalize."""
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["step"], state["momentum_buffer"] = 0, torch.zeros_like(parameter)
        state["step"] += 1
        velocity = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient.add(velocity, alpha=momentum) if group["nesterov"] else velocity


ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "none": lambda rows, columns: 1.0,
    "original": lambda rows, columns: max(1, rows / max(1, columns)) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}
"""The factors of a matrix's update that `Muon` may have."""


def norm_factor(weight: torch.Tensor) -> torch.Tensor:
    """Return the factor that gives a weight of R rows the norm sqrt(R), a tensor without dimensions, in float32 or
    wider."""
    wide = torch.promote_types(weight.dtype, torch.float32)  # a norm may be beyond float16, as 1e-12 is
    return len(weight) ** 0.5 / torch.linalg.vector_norm(weight, dtype=wide).clamp_min(1e-12)


def normalizing_steps(config: MuonConfig, total_steps: int) -> list[bool]:
    """Return True for each step that normalizes the filters: `norm_every` steps after the last one, and up to
    `norm_growth` more towards the end."""
    flags, last = [], 0
    for step in range(1, total_steps + 1):
        interval = config.norm_every + int(config.norm_growth * step / total_steps)
        flags.append(config.norm_every > 0 and step - last >= interval)
        last = step if flags[-1] else last
    return flags
