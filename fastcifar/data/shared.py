"""`shared`: a data set in memory that several processes have in common."""

from __future__ import annotations

import dataclasses

import torch

from fastcifar.data.dataset import Dataset
from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.data.split import Split


def shared(dataset: Dataset) -> Dataset:
    """Return `dataset` with its tensors on the CPU copied to shared memory, so that what another process is given of it
    (by `torch.multiprocessing`) is no copy. Those on CUDA stay as they are, and are given as handles: the process that
    has them must outlive the others. Images on disk stay there. Raises torch's RuntimeError where the system has too
    little shared memory."""
    splits = {"train": dataset.train, "test": dataset.test, "val": dataset.val}
    return dataclasses.replace(dataset, **{name: _shared(split) for name, split in splits.items() if split is not None})


def _shared(split: Split) -> Split:
    labels = _in_shared_memory(split.labels)
    if not isinstance(split, KeptSplit):
        return Split(_in_shared_memory(split.images), labels)
    store = split.store
    if store.resident == "host":
        store = HostStore(_in_shared_memory(store.tensor()))
    return KeptSplit(store, labels, split.rows)


def _in_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    # A copy: share_memory_ moves a tensor's memory, and numpy's views of it would be left behind.
    return torch.empty_like(tensor).share_memory_().copy_(tensor) if tensor.device.type == "cpu" else tensor
