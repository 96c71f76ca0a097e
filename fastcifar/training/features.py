"""`FrozenFeatures`: what the classifier takes, computed once for every image, where all below it is frozen."""

from __future__ import annotations

import torch

from fastcifar.data import Dataset, Split
from fastcifar.errors import UserError
from fastcifar.kernels import plain_batch
from fastcifar.models import Network
from fastcifar.models.modes import in_evaluation
from fastcifar.training.evaluate import Evaluation, scores


class FrozenFeatures:
    """The features of all images of `dataset` on its device, in the compute type: `of[split]`, float `[N, F]`.

    network: whose classifier is trained; the rest of it, in evaluation mode, gives the features.
    batch: the images of a training step; the training images' tensor has as many rows at least, for steps on others.
    passes: images that pass the network at once.

    Raises UserError for images that do not lie on the device.
    """

    def __init__(self, network: Network, dataset: Dataset, dtype: torch.dtype, batch: int, passes: int) -> None:
        if dataset.train.resident != "device":
            raise UserError(f"frozen_mode is once, and resident is {dataset.train.resident}; allowed: device, or eval")
        self._network, self._dataset, self._dtype, self._passes = network, dataset, dtype, passes
        splits = {"train": dataset.train, "test": dataset.test, "val": dataset.val}
        self._splits = {name: split for name, split in splits.items() if split is not None}
        width = self._passed(dataset.train, torch.zeros(1, dtype=torch.int64, device=dataset.train.device)).shape[1]
        rows = {name: max(len(split), batch if name == "train" else 0) for name, split in self._splits.items()}
        how = {"dtype": dtype, "device": dataset.train.device}  # a captured step reads this very memory
        self.of = {name: torch.zeros(count, width, **how) for name, count in rows.items()}

    def compute(self) -> None:
        """Compute all features, by the present weights."""
        for name, split in self._splits.items():
            for indices in torch.arange(len(split), device=split.device).split(self._passes):
                self.of[name][indices] = self._passed(split, indices)

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the features of the training images at `indices`."""
        return self.of["train"][indices]

    def logits(self, features: torch.Tensor, *, scaled: bool = False) -> torch.Tensor:
        """Return what the classifier makes of `features`, before `logit_scale`: the network's place in a step."""
        return self._network.get_submodule(self._network.head)(features)

    def evaluate(self, evaluated: Network, split: Split) -> Evaluation | None:
        """Return the scores of the classifier of `evaluated`, without test-time augmentation; None for images whose
        features are not here."""
        name = next((name for name, each in self._splits.items() if each is split), None)
        if name is None:
            return None
        with in_evaluation(evaluated), torch.no_grad():
            features = self.of[name][: len(split)]
            logits = evaluated.get_submodule(evaluated.head)(features).float() * evaluated.logit_scale
            found = scores(logits, split.labels, int(split.labeled.sum()))
        return Evaluation(*found, logits.to("cpu", copy=True), *found, logits.to("cpu", copy=True))

    def _passed(self, split: Split, indices: torch.Tensor) -> torch.Tensor:
        images, places = split.at(indices)
        mean, std = self._dataset.mean, self._dataset.std
        with in_evaluation(self._network), torch.no_grad():
            batch = plain_batch(images, places, mean, std, self._dtype, 0, False)
            return self._network.features(batch.contiguous(memory_format=torch.channels_last)).to(self._dtype)
