"""The recipe speedrun94 in one file: CIFAR-10 by the tricks of its speed records, to be read from top to bottom and
changed anywhere. In float32 on a CPU its losses are those of the recipe to the last bit (docs/single.md).

    python examples/speedrun94_single.py                                  # eleven epochs; --help lists every number
    python examples/speedrun94_single.py --seed 1 --steps 100             # the first hundred of their steps
    python examples/speedrun94_single.py --widths 16 32 32 --epochs 3     # narrow and short: a first look on a CPU

Each operation of `fastcifar.kernels` has a reference in plain torch, which may be put in its place."""

import itertools
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import nn

import fastcifar.kernels as kernels
from fastcifar import Augment, Dataset, EpochPlan, UserError, load_dataset


# -------------------------------------------------------------------------------------------------------- all numbers
@dataclass
class Settings:
    """The recipe speedrun94 in one file. Each of its numbers is a flag."""

    seed: int = 0  # Names all random choices.
    steps: int | None = None  # Stop after so many steps of the schedule, which is that of all epochs.
    data: str = "cifar10"  # A data set that fastcifar.load_dataset knows, or the path of your own.
    device: str = "auto"  # auto (CUDA if there is one), cpu, cuda or cuda:1.
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"  # auto: float16 on CUDA, else float32.
    epochs: int = 11
    batch_size: int = 1024  # Half of airbench's, for twice as many updates.
    label_smoothing: float = 0.09
    keep: float = 0.65  # Share of the images, those with the largest losses, that later epochs visit.
    keep_from: int = 2  # The first of these epochs, counted from 0.
    crop: int = 2  # Shift images by up to so many pixels.
    brightness: float = 0.14  # Add up to so much to normalized pixels.
    contrast: float = 0.13  # Multiply them by 1 - contrast to 1 + contrast.
    early_sizes: tuple[tuple[int, float], ...] = ((24, 0.2), (28, 0.6))  # Sides, and up to which share of the epochs.
    widths: tuple[int, int, int] = (64, 256, 256)  # Channels of the three blocks.
    whitening_images: int = 5000
    whitening_eps: float = 5e-4
    norm_momentum: float = 0.4434
    lr: float = 0.19  # Peak rate of the filters, whatever the scale of the loss.
    momentum: float = 0.655
    norm_every: int = 2  # Filters have their norm restored at every other step,
    norm_growth: int = 15  # and by the end every 17 steps.
    head_lr: float = 0.5415  # Peak rate of the classifier, for the loss summed over a batch.
    bias_lr: float = 0.0573
    sgd_momentum: float = 0.825  # Of classifier and biases.
    weight_decay: float = 1.0418e-6  # Share of a weight that a step at the peak rate takes, for each image of a batch;
    # of a filter `lr` times as much.
    tta_share: float = 0.25  # Share of the test images, the least sure ones, that are looked at in six views.
    eval_batch: int = 2500


# -------------------------------------------------------------------------------------------------------- the network
class SpeedrunNet(nn.Module):
    """airbench's network (Jordan 2024): whitened patches, three blocks, the maximum of each channel, a classifier."""

    def __init__(self, s: Settings, classes: int) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(*channels, s) for channels in itertools.pairwise((24, *s.widths)))
        self.classifier = nn.Linear(s.widths[-1], classes, bias=False)
        self.scale = 1 / s.widths[-1]  # of the logits; the loss applies it, which saves a pass
        with torch.no_grad():
            self.classifier.weight *= 1 / self.classifier.weight.std()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits `[N, classes]`, before their scale, of normalized images `[N, 3, H, W]`."""
        # Where a side is odd, a block's pool leaves out the last row and column. With a border of zeros above and to
        # the left of its input, the convolution before the pool needs no padding and does not compute them either.
        side = images.shape[3] - 1
        x = kernels.whiten(images, self.whitening.weight, None, "gelu", border=side % 2 == 1)
        for block in self.blocks:
            bordered, side = side % 2 == 1, side // 2
            x = block(x, bordered, border=side % 2 == 1 and block is not self.blocks[-1])
        return self.classifier(F.max_pool2d(x, x.shape[2:]).flatten(1))


class Block(nn.Module):
    """3x3 convolution, 2x2 max-pool, batch norm, GELU, 3x3 convolution, batch norm, GELU."""

    def __init__(self, inputs: int, outputs: int, s: Settings) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, outputs, 3, bias=False) for channels in (inputs, outputs))
        self.norm1, self.norm2 = Norm(outputs, s, pool=True), Norm(outputs, s)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])  # at first as many filters pass on what comes in

    def forward(self, x: torch.Tensor, bordered: bool, border: bool) -> torch.Tensor:
        x = self.norm1(kernels.conv3x3(x, self.conv1.weight, padding=0 if bordered else 1, border=bordered))
        return self.norm2(kernels.conv3x3(x, self.conv2.weight, padding=1), border)


class Norm(nn.Module):
    """Batch norm with a bias and no scale, after a 2x2 max-pool if `pool`, and GELU, all in one pass."""

    def __init__(self, channels: int, s: Settings, pool: bool = False) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean, self.var = nn.Buffer(torch.zeros(channels)), nn.Buffer(torch.ones(channels))
        self.momentum, self.fused = s.norm_momentum, {"activation": "gelu", "pool": pool, "eps": 1e-12}

    def forward(self, x: torch.Tensor, border: bool = False) -> torch.Tensor:
        if not self.training:
            return kernels.norm_act_pool_inference(x, self.mean, self.var, self.bias, border=border, **self.fused)
        running = {"running": (self.mean, self.var), "momentum": self.momentum}
        return kernels.norm_act_pool(x, self.bias, border=border, **running, **self.fused)[0]


def whitening_filters(data: Dataset, s: Settings) -> torch.Tensor:
    """Return filters `[24, 3, 2, 2]` whose outputs on 2x2 patches of the training images have no correlation and about
    unit variance, then their negatives, since GELU would hide one side (Page 2019; Jordan 2024)."""
    images, side = min(s.whitening_images, len(data.train)), data.train.side
    sums = torch.zeros(2, 2, 3 * side, 3 * side, dtype=torch.float64, device=data.train.device)
    for places in torch.arange(images, device=sums.device).split(500):
        pixels = kernels.plain_batch(data.train.images, places, data.mean, data.std, torch.float32)
        row = len(places)  # of pixels: the first of all images, then the second, ...; no patch is laid out
        rows = pixels.permute(2, 0, 3, 1).reshape(side * row, -1)
        sums[0, 0] += rows.T @ rows - rows[-row:].T @ rows[-row:]
        sums[1, 1] += rows.T @ rows - rows[:row].T @ rows[:row]
        sums[0, 1] += rows[:-row].T @ rows[row:]
    moment = torch.zeros(2, 2, 6, 6, dtype=torch.float64, device=sums.device)
    for left in range(0, 3 * (side - 1), 3):
        moment += sums[:, :, left : left + 6, left : left + 6]
    moment[1, 0] = moment[0, 1].T
    moment = moment.view(2, 2, 2, 3, 2, 3).permute(3, 0, 2, 5, 1, 4).reshape(12, 12) / (images * (side - 1) ** 2 - 1)
    values, vectors = torch.linalg.eigh(moment.cpu())
    filters = vectors.T.flip(0) / (values.flip(0)[:, None] + s.whitening_eps).sqrt()
    filters *= filters.gather(1, filters.abs().argmax(1, keepdim=True)).sign()  # that of an eigenvector is arbitrary
    return torch.cat([filters, -filters]).view(24, 3, 2, 2)


# ------------------------------------------------------------------------------------------------------ the optimizers
class Flat:
    """Parameters that lie in one tensor, so that an update is one operation for all: `weights` in float32, `compute` in
    the type that the network computes in, of which they are views, as their `grad` is of `gradients`."""

    @torch.no_grad()
    def __init__(self, parameters: list[torch.Tensor], dtype: torch.dtype, momentum: float) -> None:
        self.sizes, self.momentum = [parameter.numel() for parameter in parameters], momentum
        self.weights = torch.empty(sum(self.sizes), device=parameters[0].device)
        self.compute, self.gradients = self.weights.to(dtype), torch.zeros_like(self.weights, dtype=dtype)
        self.velocity = torch.zeros_like(self.weights)
        flats = (flat.split(self.sizes) for flat in (self.weights, self.compute, self.gradients))
        for parameter, *parts in zip(parameters, *flats, strict=True):
            form = parameter.shape, parameter.stride()  # filters are channels-last
            weight, compute, gradient = (part.as_strided(*form, part.storage_offset()) for part in parts)
            weight.copy_(parameter)
            parameter.data, parameter.grad = compute.copy_(weight), gradient


class Muon(Flat):
    """Orthogonalized updates of filters (Jordan 2024). W is a filter as a matrix [out, height * width * in], G its
    gradient, V its momentum: V <- m V + G; at times W <- W sqrt(out) / |W|; W <- (1 - rate * decay) W; W <- W - rate *
    orthogonalized(G + m V)."""

    def __init__(self, filters: list[torch.Tensor], dtype: torch.dtype, momentum: float) -> None:
        filters = sorted(filters, key=lambda weight: weight.shape)  # those of one shape are one batch of matrices
        self.shapes = [(len(weight), weight[0].numel()) for weight in filters]
        self.batches = [number for shape, count in Counter(self.shapes).items() for number in (count, *shape)]
        super().__init__(filters, dtype, momentum)
        self.updates = torch.empty_like(self.compute)

    def matrices(self, flat: torch.Tensor) -> list[torch.Tensor]:
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def step(self, rate: torch.Tensor, decay: float, normalize: bool) -> None:
        gradients = self.gradients.float()
        self.velocity.mul_(self.momentum).add_(gradients)
        directions = (self.velocity * self.momentum).add_(gradients)
        for direction in self.matrices(directions):
            direction /= torch.linalg.vector_norm(direction).clamp_min(1e-12)
        # Three times X <- a X + b (X X') X + c (X X')² X, which brings singular values from 0 to 1 near 1.
        how = {"steps": 3, "coefficients": (3.4576, -4.7391, 2.0843)}
        kernels.newton_schulz(directions.to(self.compute.dtype), self.updates, self.batches, **how)
        for weight in self.matrices(self.weights):
            norm = torch.linalg.vector_norm(weight).clamp_min(1e-12)
            weight *= (len(weight) ** 0.5 / norm if normalize else 1) * (1 - rate * decay)
        self.weights.sub_(self.updates.float() * rate)
        self.compute.copy_(self.weights)


class SGD(Flat):
    """Nesterov momentum: g = G + decay * w; v <- m v + g; w <- w - rate * (g + m v)."""

    def step(self, rate: torch.Tensor, decay: float) -> None:
        change = self.gradients.float().add(self.weights, alpha=decay)
        self.velocity.mul_(self.momentum).add_(change)
        self.weights.sub_(change.add_(self.velocity, alpha=self.momentum).mul_(rate))
        self.compute.copy_(self.weights)


# -------------------------------------------------------------------------------------------------------- the training
def train(s: Settings, data: Dataset) -> tuple[SpeedrunNet, list[float]]:
    """Train a network and print a row for each epoch. Return it, and the loss of every step, summed over its batch."""
    device, count, size = data.train.device, len(data.train), s.batch_size
    dtype = getattr(torch, s.dtype if s.dtype != "auto" else "float32" if device.type == "cpu" else "float16")
    torch.manual_seed(s.seed)
    network = SpeedrunNet(s, len(data.classes)).to(device)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's annotations lack it)
    muon = Muon([each for each in network.blocks.parameters() if each.dim() == 4], dtype, s.momentum)
    biases = SGD([each for each in network.blocks.parameters() if each.dim() == 1], torch.float32, s.sgd_momentum)
    head = SGD([network.classifier.weight], dtype, s.sgd_momentum)

    visits = [round(s.keep * count) if epoch >= s.keep_from else count for epoch in range(s.epochs)]
    total_steps = sum(images // size for images in visits)
    if not 0 < size <= min(visits):
        raise UserError(f"batch_size is {size}; allowed: 1 to {min(visits)}, the images that an epoch visits")
    image_losses = torch.full((count,), torch.inf, device=device)  # each image's at its last visit
    changes = Augment(crop=s.crop, flip="alternating", brightness=s.brightness, contrast=s.contrast, early="resize")
    print("epoch  train loss   train acc    test acc   seconds")
    losses, normalized, seconds, start = [], 0, 0.0, time.perf_counter()
    network.whitening.to(dtype).weight.copy_(whitening_filters(data, s))
    for epoch in range(s.epochs):
        # All random choices of the epoch: which images, their shifts, flips, brightness and contrast. The library draws
        # them, so that they are the recipe's; any other tensors of these shapes would do. Early images are rescaled.
        hardest = image_losses.argsort(descending=True, stable=True)[: visits[epoch]].sort().values
        side = next((side for side, end in s.early_sizes if epoch < end * s.epochs - 1e-6), data.train.side)
        drawn = {"image_size": data.train.side, "size": side, "visited": hardest, "device": device}
        plan = EpochPlan.draw(count, changes, epoch, s.seed, **drawn)

        first, correct = len(losses), torch.zeros((), dtype=torch.int64, device=device)
        images = min(visits[epoch] // size, (total_steps if s.steps is None else s.steps) - first) * size
        for place in range(0, images, size):
            rows = plan.rows(place, place + size)
            labels = data.train.labels[rows.indices]
            choices = {"offsets": rows.offsets, "flips": rows.flips, "jitter": rows.jitter}
            pixels = {"mean": data.mean, "std": data.std, "out_dtype": dtype, "crop": data.train.side, "size": side}
            logits = network(kernels.augment(data.train.images, rows.indices, **choices, **pixels))
            for part in (muon, biases, head):
                part.gradients.zero_()
            loss, right, by_image = kernels.cross_entropy_by_image(logits, labels, s.label_smoothing, network.scale)
            loss.backward()
            step = len(losses) + 1
            rate = torch.tensor(s.lr * (1 - step / total_steps))  # down to 0; float32, as in the recipe
            normalize = step - normalized >= s.norm_every + int(s.norm_growth * step / total_steps)
            normalized = step if normalize else normalized
            muon.step(rate, s.weight_decay * size, normalize)
            for part, lr in ((biases, s.bias_lr), (head, s.head_lr)):
                part.step(rate * (lr / s.lr), decay=s.weight_decay * size / lr)
            image_losses[rows.indices] = by_image
            correct += right
            losses.append(loss.detach())
        if images > 0:
            loss, accuracy = sum(map(float, losses[first:])) / images, int(correct) / images  # waits for a GPU
            seconds += time.perf_counter() - start
            row = f"{epoch + 1:5}{loss:12.4f}{accuracy:12.2%}{evaluate(network, data, s):12.2%}{seconds:10.1f}"
            print(row, flush=True)
            start = time.perf_counter()
    return network, [float(loss) for loss in losses]


# ------------------------------------------------------------------------------------------------------ the evaluation
@torch.inference_mode()
def evaluate(network: SpeedrunNet, data: Dataset, s: Settings, tta: bool = False) -> float:
    """Return the share of right answers to the test images; with `tta` by six views where the network is unsure."""
    labels, pixels = data.test.labels, (data.mean, data.std, network.whitening.weight.dtype)

    def look(places: torch.Tensor, shift: int = 0, flip: bool = False) -> torch.Tensor:
        images = kernels.plain_batch(data.test.images, places, *pixels, shift, flip)
        return (network(images) * network.scale).float()

    network.eval()
    logits = torch.cat([look(places) for places in torch.arange(len(labels), device=labels.device).split(s.eval_batch)])
    if tta:
        sure = logits.softmax(1).amax(1)
        for places in sure.topk(round(s.tta_share * len(labels)), largest=False).indices.split(s.eval_batch):
            mean = 0.25 * logits[places] + 0.25 * look(places, flip=True)
            for shift, flip in itertools.product((-1, 1), (False, True)):  # by a pixel, the border reflected
                mean += 0.125 * look(places, shift, flip)
            logits[places] = mean
    network.train()
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def main(s: Settings) -> None:
    data = load_dataset(s.data, device=s.device)
    torch.backends.cudnn.benchmark = data.train.device.type == "cuda"  # look for the fastest convolution of each shape
    if data.train.device.type == "cpu":
        kernels.keep_freed_memory()
        kernels.compile_cpp()
    network, _ = train(s, data)
    print(f"test accuracy with test-time augmentation: {evaluate(network, data, s, tta=True):.2%}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
