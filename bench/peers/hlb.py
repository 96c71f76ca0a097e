"""tysam-code/hlb-CIFAR10, the first of the family of small VGG-like networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.peers.adapt import Shims, cpu_type, in_half, load_program
from bench.peers.harness import WHITENING_IMAGES, WITH_TTA, Harness

SHIMS: Shims = [
    ("if not os.path.exists(hyp['misc']['data_location']):", "if False:"),
    ("torch.load(hyp['misc']['data_location'])", "_normalized()"),
    ("torch.cuda.Event(", "_harness.Event("),
    ("              current_steps += 1\n", "              current_steps += 1\n              _harness.step_done()\n"),
]
ON_CPU: Shims = [
    ("'device': 'cuda'", "'device': 'cpu'"),
    ("device='cuda'", "device='cpu'"),
    ("net.half()", "_in_half(net)"),
    ("torch.cuda.synchronize()", "_harness.synchronize()"),
]


def load(checkout: Path, harness: Harness) -> Callable[[int], None]:
    """Load their program; the function trains once from a seed, by their own code."""
    dtype = cpu_type() if harness.device.type == "cpu" else torch.float16
    names = {"_normalized": lambda: normalized(harness, dtype), "_in_half": in_half}
    module = load_program(checkout / "main.py", SHIMS, ON_CPU, harness, "hlb_cifar10", **names)
    everything = module.data  # its training images are padded already

    def train(seed: int) -> None:
        module.data = everything
        if harness.limit is not None:
            count = max(WHITENING_IMAGES, (harness.limit + 1) * harness.batch_size)
            module.data = {**everything, "train": {key: value[:count] for key, value in everything["train"].items()}}
        harness.accuracies[WITH_TTA] = module.main()

    return train


def normalized(harness: Harness, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """Return the `data.pt` that they make on a first run: images `[N, 3, 32, 32]` of mean 0 and standard deviation 1
    over the training images, in `dtype`, and labels as one-hot vectors in that of the logits."""
    splits = {"train": harness.dataset.train, "eval": harness.dataset.test}
    images = {key: split.images.permute(0, 3, 1, 2).float() / 255 for key, split in splits.items()}
    std, mean = torch.std_mean(images["train"], dim=(0, 2, 3), keepdim=True)
    images = {key: ((values - mean) / std).to(dtype).contiguous() for key, values in images.items()}
    logits = dtype if dtype == torch.float16 else torch.float32
    return {key: {"images": images[key], "targets": F.one_hot(splits[key].labels).to(logits)} for key in splits}
