"""`shared`: a data set in memory that several processes have in common."""

from __future__ import annotations

import dataclasses

import torch

from fastcifar.data.dataset import Dataset
from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.data.split import Split
from fastcifar.errors import UserError


def shared(dataset: Dataset) -> Dataset:
    """Return `dataset` with its tensors on the CPU copied to shared memory, so that what another process is given of it
    (`torch.multiprocessing`) is no copy. Those on CUDA are given as handles as they are: the process that has them must
    outlive the others. Images on disk stay there. Raises UserError where the system has too little shared memory."""
    splits = {"train": dataset.train, "test": dataset.test, "val": dataset.val}
    try:
        return dataclasses.replace(
            dataset, **{name: split if split is None else _shared(split) for name, split in splits.items()}
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        allowed = "a larger /dev/shm (docker run --shm-size), or one process"
        raise UserError(f"the images cannot be shared by several processes: {reason}; allowed: {allowed}") from None


def _shared(split: Split) -> Split:
    labels = _in_shared_memory(split.labels)
    if isinstance(split, KeptSplit):
        store = split.store
        return KeptSplit(
            HostStore(_in_shared_memory(store.tensor())) if store.resident == "host" else store, labels, split.rows
        )
    return Split(_in_shared_memory(split.images), labels)


def _in_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    # A copy: share_memory_ moves a tensor's memory, and numpy's views of it would be left behind.
    return torch.empty_like(tensor).share_memory_().copy_(tensor) if tensor.device.type == "cpu" else tensor
