"""The recipe speedrun94 in one file: CIFAR-10 by the tricks of its speed records, to be read from top to bottom and
changed anywhere. docs/single.md says how it relates to the recipe, whose losses it has from the first step on.

    python examples/speedrun94_single.py                                  # ten epochs; --help lists every number
    python examples/speedrun94_single.py --seed 1 --steps 100             # the first hundred of their steps
    python examples/speedrun94_single.py --widths 16 32 32 --epochs 3     # narrow and short: a first look on a CPU

The images lie on the device as bytes. torch has the convolutions, `fastcifar.kernels` what stands around them: each
operation there is one launch on a GPU, and has a reference in plain torch that may be put in its place.
"""

import itertools
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import nn

import fastcifar
from fastcifar.kernels import (
    augment,
    cross_entropy_by_image,
    keep_freed_memory,
    newton_schulz,
    norm_act_pool,
    norm_act_pool_inference,
    plain_batch,
    whiten,
)

# -------------------------------------------------------------------------------------------------------- all numbers


@dataclass
class Settings:
    """The recipe speedrun94 in one file. Each of its numbers is a flag."""

    seed: int = 0
    """Names all random choices."""
    steps: int | None = None
    """Stop after so many steps; the schedule is still laid out for all epochs."""
    data: str = "cifar10"
    """A data set that `fastcifar.load_dataset` knows, or the path of your own."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda or cuda:1."""
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = "auto"
    """Of images, filters and gradients. auto: float16 on CUDA, else float32; CPUs that multiply bfloat16 are faster in
    that."""

    epochs: int = 10
    batch_size: int = 512
    """A quarter of airbench's, for four times as many updates."""
    label_smoothing: float = 0.1
    keep: float = 0.75
    """Share of the images, those with the largest losses at their last visit, that later epochs visit."""
    keep_from: int = 2
    """The first of these epochs, counted from 0."""

    crop: int = 2
    """Shift images by up to so many pixels."""
    brightness: float = 0.14
    contrast: float = 0.13
    early_crops: tuple[tuple[int, float], ...] = ((24, 0.2), (28, 0.6))
    """Sides of the crops of early epochs, and the share of the training at which they end."""

    widths: tuple[int, int, int] = (64, 256, 256)
    """Channels of the three blocks."""
    whitening_images: int = 5000
    whitening_eps: float = 5e-4
    norm_momentum: float = 0.1
    norm_eps: float = 1e-12

    lr: float = 0.16
    """Peak rate of the filters, whatever the scale of the loss."""
    momentum: float = 0.6
    head_lr: float = 0.67
    """Peak rate of the classifier, for the loss summed over a batch."""
    bias_lr: float = 0.053
    sgd_momentum: float = 0.85
    weight_decay: float = 2e-6
    """Share of classifier and biases that a step at the peak rate takes away, for each image of the batch."""

    tta_share: float = 0.25
    """Share of the test images, those that the network is least sure of, that are looked at in six views."""
    eval_batch: int = 2500


# -------------------------------------------------------------------------------------------------------- the network


class SpeedrunNet(nn.Module):
    """airbench's network (Jordan 2024): whitened patches, three blocks, the maximum of each channel, a classifier.

    Initial filters pass on their input where they can, so that a signal reaches the classifier from the first step on.
    """

    def __init__(self, s: Settings, classes: int) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 2 * 3 * 2 * 2, 2, bias=False).requires_grad_(False)
        channels = itertools.pairwise((self.whitening.out_channels, *s.widths))
        self.blocks = nn.ModuleList(Block(inputs, outputs, s) for inputs, outputs in channels)
        self.classifier = nn.Linear(s.widths[-1], classes, bias=False)
        self.scale = 1 / s.widths[-1]
        """The factor of the logits; the loss takes it, which saves a pass."""
        with torch.no_grad():
            self.classifier.weight /= self.classifier.weight.std()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits `[N, classes]`, before their scale, of normalized images `[N, 3, H, W]`."""
        # Of an odd side the pool of a block leaves out the last row and column. With a border of zeros above and to the
        # left of its input, the convolution before it needs no padding, and does not compute them either.
        side = images.shape[3] - 1
        x = whiten(images, self.whitening.weight, None, "gelu", border=side % 2 == 1)
        for number, block in enumerate(self.blocks):
            bordered, side = side % 2 == 1, side // 2
            x = block(x, bordered, side % 2 == 1 and number < 2)
        return self.classifier(F.max_pool2d(x, x.shape[2:]).flatten(1))


class Block(nn.Module):
    """3x3 convolution, 2x2 max-pool, batch norm, GELU, 3x3 convolution, batch norm, GELU."""

    def __init__(self, inputs: int, outputs: int, s: Settings) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, outputs, 3, bias=False) for channels in (inputs, outputs))
        self.norms = nn.ModuleList(Norm(outputs, pool, s) for pool in (True, False))
        for conv in self.convs:
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: torch.Tensor, bordered: bool, border: bool) -> torch.Tensor:
        x = self.norms[0](F.conv2d(x, self.convs[0].weight, padding=0 if bordered else 1))
        return self.norms[1](F.conv2d(x, self.convs[1].weight, padding=1), border)


class Norm(nn.Module):
    """Batch norm with a bias and no scale, after a max-pool or not, and GELU, all in one pass."""

    def __init__(self, channels: int, pool: bool, s: Settings) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean, self.var = nn.Buffer(torch.zeros(channels)), nn.Buffer(torch.ones(channels))
        self.momentum, self.fused = s.norm_momentum, {"activation": "gelu", "pool": pool, "eps": s.norm_eps}

    def forward(self, x: torch.Tensor, border: bool = False) -> torch.Tensor:
        if not self.training:
            return norm_act_pool_inference(x, self.mean, self.var, self.bias, border=border, **self.fused)
        running = {"running": (self.mean, self.var), "momentum": self.momentum}
        return norm_act_pool(x, self.bias, border=border, **running, **self.fused)[0]


def whitening_filters(data: fastcifar.Dataset, s: Settings) -> torch.Tensor:
    """Return filters `[24, 3, 2, 2]` whose outputs on 2x2 patches of the training images have no correlation and about
    unit variance, then their negatives, since GELU would hide one side (Page 2019; Jordan 2024)."""
    places = torch.arange(min(s.whitening_images, len(data.train)), device=data.train.device)
    images = plain_batch(data.train.images, places, data.mean, data.std, torch.float32)
    patches = torch.cat([F.unfold(some, 2).transpose(1, 2).flatten(0, 1).double() for some in images.split(500)])
    values, vectors = torch.linalg.eigh((patches.T @ patches / (len(patches) - 1)).cpu())
    filters = (vectors / (values + s.whitening_eps).sqrt()).T.flip(0)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    filters *= largest.sign()  # that of an eigenvector is arbitrary
    return torch.cat([filters, -filters]).view(-1, 3, 2, 2)


# ------------------------------------------------------------------------------------------------------- the optimizer


class Flat:
    """Parameters that lie in one tensor, so that an update is one operation for all of them.

    weights: of all, float32, one parameter after the other.
    compute: the same in the type that the network computes in; the parameters are views of it.
    gradients: of the loss summed over a batch; each parameter's `grad` is a view of it.
    """

    @torch.no_grad()
    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype, momentum: float) -> None:
        def place(flat: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
            return flat.as_strided(parameter.shape, parameter.stride(), flat.storage_offset())  # channels-last stays so

        self.sizes, self.momentum = [parameter.numel() for parameter in parameters], momentum
        wide = torch.promote_types(dtype, torch.float32)
        self.weights = torch.empty(sum(self.sizes), dtype=wide, device=parameters[0].device)
        for parameter, weight in zip(parameters, self.weights.split(self.sizes), strict=True):
            place(weight, parameter).copy_(parameter)
        self.compute = self.weights.to(dtype)
        self.gradients, self.velocity = torch.zeros_like(self.compute), torch.zeros_like(self.weights)
        parts = (self.compute.split(self.sizes), self.gradients.split(self.sizes))
        for parameter, weight, gradient in zip(parameters, *parts, strict=True):
            parameter.data, parameter.grad = place(weight, parameter), place(gradient, parameter)


class Muon(Flat):
    """Orthogonalized updates of filters (Jordan 2024). W is a filter as a matrix [out, height * width * in], G its
    gradient, V its momentum: V <- m V + G; W <- W sqrt(out) / |W|; W <- W - rate * orthogonalized(G + m V)."""

    def __init__(self, filters: list[nn.Parameter], dtype: torch.dtype, momentum: float) -> None:
        filters = sorted(filters, key=lambda weight: weight.shape)  # those of one shape are one batch of matrices
        self.shapes = [(len(weight), weight[0].numel()) for weight in filters]
        self.batches = [number for shape, count in Counter(self.shapes).items() for number in (count, *shape)]
        super().__init__(filters, dtype, momentum)
        self.updates = torch.empty_like(self.compute)

    def matrices(self, flat: torch.Tensor) -> list[torch.Tensor]:
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def step(self, rate: torch.Tensor) -> None:
        gradients = self.gradients.to(self.weights.dtype)
        self.velocity.mul_(self.momentum).add_(gradients)
        directions = (self.velocity * self.momentum).add_(gradients)
        for direction in self.matrices(directions):
            direction /= torch.linalg.vector_norm(direction).clamp_min(1e-12)
        # Three times X <- a X + b X X' X + c X X' X X' X: singular values from 0 to 1 come near 1.
        coefficients = (3.4445, -4.775, 2.0315)
        newton_schulz(directions.to(self.compute.dtype), self.updates, self.batches, steps=3, coefficients=coefficients)
        for weight in self.matrices(self.weights):
            weight *= len(weight) ** 0.5 / torch.linalg.vector_norm(weight).clamp_min(1e-12)
        self.weights.sub_(self.updates.to(self.weights.dtype) * rate)
        self.compute.copy_(self.weights)


class SGD(Flat):
    """Nesterov momentum: g = G + decay * w;  v <- m v + g;  w <- w - rate * (g + m v)."""

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype, momentum: float, decay: float) -> None:
        super().__init__(parameters, dtype, momentum)
        self.decay = decay

    def step(self, rate: torch.Tensor) -> None:
        change = self.gradients.to(self.weights.dtype).add(self.weights, alpha=self.decay)
        self.velocity.mul_(self.momentum).add_(change)
        self.weights.sub_(change.add_(self.velocity, alpha=self.momentum).mul_(rate))
        self.compute.copy_(self.weights)


# -------------------------------------------------------------------------------------------------------- the training


def train(s: Settings, data: fastcifar.Dataset) -> tuple[SpeedrunNet, list[float]]:
    """Train a network on `data`, print a row for each epoch, and return the network and the loss of every step, summed
    over its batch."""
    device, count = data.train.device, len(data.train)
    auto = "float16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, auto if s.dtype == "auto" else s.dtype)
    torch.backends.cudnn.benchmark = True  # the fastest convolution of each shape, looked for at its first call
    torch.manual_seed(s.seed)
    network = SpeedrunNet(s, len(data.classes)).to(device, memory_format=torch.channels_last)
    network.whitening.to(dtype)
    filters = [parameter for parameter in network.blocks.parameters() if parameter.dim() == 4]
    biases = [parameter for parameter in network.blocks.parameters() if parameter.dim() == 1]
    decay = s.weight_decay * s.batch_size
    muon = Muon(filters, dtype, s.momentum)
    head = SGD([network.classifier.weight], dtype, s.sgd_momentum, decay / s.head_lr)
    bias = SGD(biases, torch.promote_types(dtype, torch.float32), s.sgd_momentum, decay / s.bias_lr)

    visits = [round(s.keep * count) if epoch >= s.keep_from else count for epoch in range(s.epochs)]
    total_steps = sum(images // s.batch_size for images in visits)
    image_losses = torch.full((count,), torch.inf, device=device)  # each image's at its last visit
    losses: list[torch.Tensor] = []
    seconds, start = 0.0, now(device)
    network.whitening.weight.copy_(whitening_filters(data, s))
    for epoch in range(s.epochs):
        # The random choices, as tensors: which images, their crops, flips, brightness and contrast. They are drawn by
        # the library so that they are the recipe's to the last bit; any others of these shapes would do.
        hardest = image_losses.argsort(descending=True, stable=True)[: visits[epoch]].sort().values
        changes = fastcifar.Augment(crop=s.crop, flip="alternating", brightness=s.brightness, contrast=s.contrast)
        side = next((side for side, end in s.early_crops if epoch < end * s.epochs), data.train.side)
        facts = {"image_size": data.train.side, "size": side, "visited": hardest, "device": device}
        plan = fastcifar.EpochPlan.draw(count, changes, epoch, s.seed, **facts)

        first, correct = len(losses), torch.zeros((), dtype=torch.int64, device=device)
        for batch in range(min(visits[epoch] // s.batch_size, (s.steps or total_steps) - first)):
            rows = plan.rows(batch * s.batch_size, (batch + 1) * s.batch_size)
            pixels = {"mean": data.mean, "std": data.std, "out_dtype": dtype, "size": side}
            choices = {"offsets": rows.offsets, "flips": rows.flips, "jitter": rows.jitter}
            images = augment(data.train.images, rows.indices, **choices, **pixels)
            labels = data.train.labels[rows.indices]

            for part in (muon, head, bias):
                part.gradients.zero_()
            loss, right, by_image = cross_entropy_by_image(network(images), labels, s.label_smoothing, network.scale)
            loss.backward()
            rate = torch.tensor(s.lr * (1 - (len(losses) + 1) / total_steps))
            muon.step(rate)
            head.step(rate * (s.head_lr / s.lr))
            bias.step(rate * (s.bias_lr / s.lr))

            image_losses[rows.indices] = by_image.to(image_losses.dtype)
            correct += right
            losses.append(loss.detach())

        seconds += now(device) - start
        if images := (len(losses) - first) * s.batch_size:
            loss, accuracy = sum(map(float, losses[first:])) / images, int(correct) / images
            tested = evaluate(network, data.test, s, data)
            print(f"{epoch + 1:5}{loss:12.4f}{accuracy:12.2%}{tested:12.2%}{seconds:10.1f}", flush=True)
        start = now(device)
    return network, [float(loss) for loss in losses]


def now(device: torch.device) -> float:
    """Return the time in seconds at which `device` has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------------ the evaluation


@torch.inference_mode()
def evaluate(
    network: SpeedrunNet, split: fastcifar.Split, s: Settings, data: fastcifar.Dataset, tta: bool = False
) -> float:
    """Return the share of right answers; with `tta` by the mean of six views where the network is unsure."""

    def look(places: torch.Tensor, shift: int = 0, flip: bool = False) -> torch.Tensor:
        images = plain_batch(split.images, places, data.mean, data.std, network.whitening.weight.dtype, shift, flip)
        return (network(images) * network.scale).float()

    network.eval()
    logits = torch.cat([look(places) for places in torch.arange(len(split), device=split.device).split(s.eval_batch)])
    if tta:
        sure = logits.softmax(1).amax(1)
        unsure = sure.topk(round(s.tta_share * len(split)), largest=False, sorted=False).indices
        for places in unsure.split(s.eval_batch):
            mean = 0.25 * logits[places] + 0.25 * look(places, flip=True)
            for shift, flip in itertools.product((-1, 1), (False, True)):  # by a pixel, the border reflected
                mean += 0.125 * look(places, shift, flip)
            logits[places] = mean
    network.train()
    return float((logits.argmax(1) == split.labels).float().mean())


def main(s: Settings) -> None:
    data = fastcifar.load_dataset(s.data, device=s.device)
    if data.train.device.type == "cpu":
        keep_freed_memory()
    print("epoch  train loss   train acc    test acc   seconds")
    network, _ = train(s, data)
    print(f"test accuracy with test-time augmentation: {evaluate(network, data.test, s, data, tta=True):.2%}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings))
    except fastcifar.UserError as error:
        raise SystemExit(f"error: {error}") from None
