"""Time the weight gradient, and where there are kernels for them the other passes, of each 3x3 convolution of
speedrun94, and of the strided ones of a narrow ResNet-18, computed in each of several ways, on a CPU.

    python -m bench.weight_gradients                           # a batch of 512 images in bfloat16: a minute
    python -m bench.weight_gradients --dtype float32 --batch 128

In each round all ways of a layer are called once, in turn. Operations are counted as those of the convolution, two for
each multiply-add, products with padding included. The ways:

    torch      torch's own
    strips     torch's, of images laid side by side: for images up to 16 pixels wide, without a stride
    shifts     a matrix product for each of the nine taps, of shifted views with the batch innermost; with transposes,
               without a stride
    kernel     fastcifar's in C++, where it has one
    product    one matrix product of as many operations, as a ceiling
    forward    torch's forward pass, to set the others beside

and where fastcifar has kernels of the other passes too, in float32:

    forward kernel, input kernel    the forward pass and the gradient of x
    input                           torch's gradient of x
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.program import add_save_option, new_parser, run_program
from bench.record import show
from bench.timing import Work, seconds_of
from fastcifar.errors import UserError
from fastcifar.kernels import (
    conv3x3,
    conv_input_gradient,
    conv_input_gradient_reference,
    conv_weight_gradient,
    conv_weight_gradient_reference,
    keep_freed_memory,
    winograd,
)
from fastcifar.kernels.conv_weight_gradient import has_kernel

_STRIP = 64  # pixels of a row, at most
_WIDEST = 16


@dataclass(frozen=True)
class Layer:
    """A convolution: channels before and after, the side of its output, its padding, 0 or 1, and its stride. Without
    padding the input has a border of zeros above and to the left of each image."""

    inputs: int
    outputs: int
    side: int
    padding: int
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.inputs} to {self.outputs} at {self.side}x{self.side}{'' if self.padding else ', bordered'}" + (
            f", stride {self.stride}" if self.stride > 1 else ""
        )


LAYERS = (
    Layer(24, 64, 30, 0),
    Layer(64, 64, 15, 1),
    Layer(64, 256, 14, 0),
    Layer(256, 256, 7, 1),
    Layer(256, 256, 6, 0),
    Layer(256, 256, 3, 1),
    Layer(16, 32, 16, 1, stride=2),
    Layer(32, 64, 8, 1, stride=2),
    Layer(64, 128, 4, 1, stride=2),
)


def main() -> int:
    parser = new_parser("bench.weight_gradients", __doc__)
    parser.add_argument("--batch", type=int, default=512, metavar="N")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    add_save_option(parser)
    arguments = parser.parse_args()
    for name in ("batch", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; allowed: 1 or more")
    keep_freed_memory()  # as the command line does
    threads, dtype, device = torch.get_num_threads(), getattr(torch, arguments.dtype), torch.device("cpu")
    command = f"python -m bench.weight_gradients --batch {arguments.batch} --dtype {arguments.dtype}"
    print(f"batch {arguments.batch}, {threads} threads, {dtype}; GFLOP/s at best, milliseconds: median, least to most")
    for layer in LAYERS:
        work, flop = ways(layer, arguments.batch, dtype)
        seconds = measure(work, arguments.rounds)
        rates = {name: flop / min(took) / 1e9 for name, took in seconds.items()}
        ms = {name: [one * 1e3 for one in took] for name, took in seconds.items()}
        spread = (
            f"{name} {statistics.median(took):.1f} ({min(took):.1f} to {max(took):.1f})" for name, took in ms.items()
        )
        record = {
            "table": None,
            "what": f"passes of a convolution, {layer}, batch {arguments.batch}, {arguments.dtype}",
            "value": "GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()),
            "n": arguments.rounds,
            "spread": "ms: " + ", ".join(spread),
            "command": command,
            "threads": threads,
            "seconds": seconds,
        }
        show(record, arguments.save, device)
    return 0


def ways(layer: Layer, batch: int, dtype: torch.dtype) -> tuple[dict[str, Work], int]:
    """Return the ways of computing a layer's weight gradient on random values, and the operations of each."""
    side = layer.side * layer.stride + 2 - 2 * layer.padding
    x = _channels_last(torch.randn(batch, layer.inputs, side, side, dtype=dtype))
    if not layer.padding:
        x[:, :, 0] = x[:, :, :, 0] = 0
    gradient = _channels_last(torch.randn(batch, layer.outputs, layer.side, layer.side, dtype=dtype))
    weight = _channels_last(torch.randn(layer.outputs, layer.inputs, 3, 3, dtype=dtype))
    pixels = batch * layer.side**2
    left = torch.randn(layer.outputs, pixels, dtype=dtype)
    right = torch.randn(pixels, 9 * layer.inputs, dtype=dtype)
    padding, border, stride = layer.padding, not layer.padding, layer.stride
    work: dict[str, Work] = {"torch": partial(conv_weight_gradient_reference, x, gradient, padding, False, stride)}
    if side <= _WIDEST and stride == 1:
        work["strips"] = partial(by_strips, x, gradient, padding)
    if stride == 1:
        work["shifts"] = partial(by_shifts, x, gradient, padding)
    if has_kernel(x, layer.outputs, stride):
        how = {"padding": padding, "border": border, "stride": stride}
        work["kernel"] = partial(conv_weight_gradient, x, gradient, **how)
    work["product"] = partial(torch.mm, left, right)
    work["forward"] = partial(torch.conv2d, x, weight, None, stride, padding)
    if stride == 1 and winograd.has_kernel(x, layer.outputs):
        work["forward kernel"] = partial(conv3x3, x, weight, padding=padding)
        work["input"] = partial(conv_input_gradient_reference, gradient, weight, padding)
        work["input kernel"] = partial(conv_input_gradient, gradient, weight, padding=padding)
    return work, 2 * pixels * weight.numel()


def measure(work: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, after one that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, call in work.items():
            took = seconds_of(call, torch.device("cpu"))
            if number:
                seconds[name].append(took)
    return seconds


def by_strips(x: Tensor, gradient: Tensor, padding: int) -> Tensor:
    """Compute `conv_weight_gradient` by torch's, of strips: images side by side, with zeros between them."""
    width = gradient.shape[3] + (1 if padding else 2)
    strips = _side_by_side(x, width)
    gradients = _side_by_side(gradient, width)
    if not padding:
        gradients = gradients[:, :, :, :-2]
    return conv_weight_gradient_reference(strips, gradients, padding, False)


def _side_by_side(x: Tensor, width: int) -> Tensor:
    """Return images as rows of as many as fit a strip, each filled up with zeros to `width`; a rest gets images of
    zeros."""
    images, channels, height, own = x.shape
    count = max(1, _STRIP // width)
    cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, width - own, 0, 0, 0, -images % count))
    strips = cells.view(-1, count, height, width, channels).transpose(1, 2)
    return strips.reshape(-1, height, count * width, channels).permute(0, 3, 1, 2)


def by_shifts(x: Tensor, gradient: Tensor, padding: int) -> Tensor:
    """Compute `conv_weight_gradient` by a product for each tap: x as `[C, rows, columns, N]` with its border, the
    gradient as `[rows, columns, N, outputs]` with zeros for the border's columns, so that a tap is a shift."""
    images, channels, height, width = x.shape
    outputs, rows, columns = gradient.shape[1:]
    wide = x.new_zeros(channels, rows + 2, columns + 2, images)
    wide[:, padding : padding + height, padding : padding + width] = x.permute(1, 2, 3, 0)
    narrow = gradient.new_zeros(rows, columns + 2, images, outputs)
    narrow[:, :columns] = gradient.permute(2, 3, 0, 1)
    terms = ((rows - 1) * (columns + 2) + columns) * images
    flat, right = wide.view(channels, -1), narrow.view(-1, outputs)[:terms]
    starts = [(tap // 3 * (columns + 2) + tap % 3) * images for tap in range(9)]
    taps = torch.stack([flat[:, start : start + terms] @ right for start in starts])
    return taps.view(3, 3, channels, outputs).permute(3, 2, 0, 1)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    run_program("bench.weight_gradients", main)
