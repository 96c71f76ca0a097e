"""Flat buffers and the optimisers that work on them."""

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.sgd import SGD

__all__ = ["SGD", "FlatGroup", "FlatModel"]
