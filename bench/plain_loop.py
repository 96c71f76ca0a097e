"""Train a network in a plain PyTorch loop, as a course has it, and in ours, in turn.

    python -m bench.plain_loop --network resnet18                        # 2,048 images, 5 rounds: minutes on two cores
    python -m bench.plain_loop --network alexnet --images 10000 --workers 4 --device cuda --save FILE

The plain loop is a DataLoader over a Dataset that makes one image at a time with what torchvision's transforms do to an
image of Pillow's: brightness, contrast and saturation, a flip, a tensor, normalizing and, for AlexNet, the size of 70
pixels; then forward, backward, AdamW, and loss and accuracy read at every step; all in float32, in the usual memory
format. Beside it the same loop with the network's passes in bfloat16 (torch.autocast) and channels-last. Ours is the
same network, batch, optimizer and changes to the images, which are resized once; in float32, and as a recipe has it by
default. Each loop takes whichever of --workers is faster for it, by an epoch before the rounds. In each round each
trains one epoch, in turn, after one that is not measured; the loop's workers stay. The images are random.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import data as torch_data

from bench import plain_networks
from bench.program import add_save_option, new_parser, run_program
from bench.record import show
from bench.timing import seconds_of
from fastcifar.data import Dataset, resolve_device
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.recipes import Recipe, change
from fastcifar.training import Trainer

RATE, JITTER = 3e-4, 0.3
BILINEAR = 2
"""Pillow's number of it."""
OURS, OURS32 = "fastcifar", "fastcifar in float32"
PLAIN, TUNED = "a plain PyTorch loop", "the same in bfloat16 and channels-last"


@dataclass(frozen=True)
class Peer:
    """A network, for both sides."""

    plain: Callable[[int], nn.Module]
    """The plain one, by the number of classes."""
    side: int
    """Of the images that it takes."""


PEERS = {"resnet18": Peer(plain_networks.ResNet18, 32), "alexnet": Peer(plain_networks.AlexNet, 70)}


class PlainImages(torch_data.Dataset):
    """Images that are changed one by one, when they are asked for."""

    def __init__(self, dataset: Dataset, side: int) -> None:
        self.images, self.labels = dataset.train.images.numpy(), dataset.train.labels.tolist()
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) / 255 for each in (dataset.mean, dataset.std))
        self.side = side

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = jittered(self.images[index])
        if self.side != image.height:
            image = image.resize((self.side, self.side), BILINEAR)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (tensor - self.mean) / self.std, self.labels[index]


def jittered(pixels: np.ndarray) -> Any:
    """Return `pixels` `[H, W, 3]` as an image of Pillow's with another brightness, contrast and saturation, in random
    order, and every other one flipped, as torchvision's ColorJitter and RandomHorizontalFlip make it."""
    from PIL import Image, ImageEnhance, ImageOps

    image = Image.fromarray(pixels)
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    random.shuffle(changes)
    for enhance in changes:
        image = enhance(image).enhance(random.uniform(1 - JITTER, 1 + JITTER))
    return ImageOps.mirror(image) if random.random() < 0.5 else image


class PlainLoop:
    """The plain loop, ready to train."""

    def __init__(
        self, peer: Peer, dataset: Dataset, batch: int, workers: int, device: torch.device, tuned: bool
    ) -> None:
        self.device, self.tuned = device, tuned
        torch.manual_seed(0)
        self.model = peer.plain(len(dataset.classes)).to(device)
        if tuned:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.criterion = nn.CrossEntropyLoss()
        images = PlainImages(dataset, peer.side)
        how = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device.type == "cuda"}
        self.loader = torch_data.DataLoader(images, batch, shuffle=True, drop_last=True, **how)

    def train_one_epoch(self) -> tuple[float, float]:
        """Train one epoch, and return its mean loss and its accuracy."""
        self.model.train()
        losses, correct, count = 0.0, 0, 0
        for images, labels in self.loader:
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            if self.tuned:
                images = images.to(memory_format=torch.channels_last)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.tuned):
                outputs = self.model(images)
                loss = self.criterion(outputs, labels)
            loss.backward()
            self.optimizer.step()
            losses += loss.item() * len(labels)
            correct += (outputs.argmax(1) == labels).sum().item()
            count += len(labels)
        return losses / count, correct / count


def random_images(count: int) -> Dataset:
    """Return so many random images of 32x32 pixels and ten classes, and a few to test on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count + 64, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count + 64,), generator=generator)
    return Dataset.from_arrays(images[:count], labels[:count], images[count:], labels[count:])


def our_recipe(network: str, batch: int) -> Recipe:
    """Return a recipe of the same work as the plain loop's epoch."""
    jitter = {f"transforms.color_jitter.{name}": JITTER for name in ("brightness", "contrast", "saturation")}
    changes = {
        **{"name": f"plain-{network}", "network": network, "epochs": 1, "batch_size": batch, "label_smoothing": 0.0},
        **{"optimizer": "AdamW", "optimizer.lr": RATE, "optimizer.weight_decay": 0.01, "ema.decay": 0.0},
        **{"schedule.knots": (0.0, 1.0), "schedule.values": (1.0, 1.0), "evaluate.tta": "none"},
        **{"augment.crop": 0, "augment.cutout": 0, "augment.flip": "random"},
    }
    return change(Recipe(), changes | jitter)


def fastest_loop(
    peer: Peer, data: Dataset, batch: int, workers: Sequence[int], device: torch.device, tuned: bool
) -> PlainLoop:
    """Return a loop with the number of workers whose second epoch is the shortest."""

    def seconds(count: int) -> float:
        loop = PlainLoop(peer, data, batch, count, device, tuned)
        loop.train_one_epoch()
        return seconds_of(loop.train_one_epoch, device)

    count = min(workers, key=seconds) if len(workers) > 1 else workers[0]
    return PlainLoop(peer, data, batch, count, device, tuned)


def measure(
    network: str,
    images: int,
    batch: int,
    workers: Sequence[int],
    rounds: int,
    device: torch.device,
    tell: Callable[[str], None],
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return for each side the images/s of each round, and its compute type or its number of workers in words."""
    peer, data = PEERS[network], random_images(images)
    seen, recipe = images - images % batch, our_recipe(network, batch)
    loops = {name: fastest_loop(peer, data, batch, workers, device, name == TUNED) for name in (PLAIN, TUNED)}
    ours = {OURS32: change(recipe, {"dtype": "float32"}), OURS: recipe}
    trainers = {name: Trainer(each, data.resize(peer.side), device) for name, each in ours.items()}
    said = {name: f"{loop.loader.num_workers} workers" for name, loop in loops.items()}
    said |= {name: str(trainer.dtype).removeprefix("torch.") for name, trainer in trainers.items()}
    rates: dict[str, list[float]] = {name: [] for name in said}
    for number in range(rounds + 1):
        for name, found in rates.items():
            if name in trainers:
                rate = trainers[name].run(number, eval_every=0).record.images_per_second
            else:
                rate = seen / seconds_of(loops[name].train_one_epoch, device)
            if number:  # the first makes what is made at a first call
                found.append(rate)
                tell(f"{name} ({said[name]}), round {number} of {rounds}: {rate:,.1f} images/s")
    return rates, said


def records(rates: dict[str, list[float]], said: dict[str, str], network: str, command: str) -> list[dict[str, Any]]:
    """Return the results as `bench.record.append` takes them, with how many times as fast ours is, by round."""
    made = []
    for name, each in rates.items():
        factors = [ours / theirs for ours, theirs in zip(rates[OURS], each, strict=True)]
        value, spread = f"{statistics.median(each):,.1f} images/s", f"{min(each):,.1f} to {max(each):,.1f} images/s"
        if name != OURS:
            value += f"; ours is {statistics.median(factors):.2f} times as fast"
            spread += f", {min(factors):.2f} to {max(factors):.2f} times"
        what = f"an epoch of {network} by {name} ({said[name]})"
        record = {"what": what, "value": value, "n": len(each), "spread": spread, "command": command, "table": "course"}
        made.append({**record, "rates": each, "factors": factors})
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.plain_loop", __doc__ or "")
    parser.add_argument("--network", default="resnet18", choices=PEERS)
    parser.add_argument("--images", type=int, default=2048, metavar="N", help="of an epoch")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the plain loops' DataLoaders")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_save_option(parser)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.workers) < 0 or not 1 <= options.batch_size <= options.images:
        raise UserError("allowed: 1 or more rounds, 0 or more workers, and images for a batch")
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError("the plain loop's images are Pillow's, which is not installed: pip install pillow") from None
    device = resolve_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the command line does, here for both sides
    sizes = (options.images, options.batch_size, options.workers, options.rounds)
    rates, said = measure(options.network, *sizes, device, print)
    command = f"python -m bench.plain_loop --network {options.network} --images {options.images}"
    command += f" --batch-size {options.batch_size} --workers {' '.join(map(str, options.workers))}"
    command += f" --rounds {options.rounds} --device {options.device}"
    for record in records(rates, said, options.network, command):
        show(record, options.save, device)
    return 0


if __name__ == "__main__":
    run_program("bench.plain_loop", main)
