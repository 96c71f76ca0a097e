"""Networks and their layers."""

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.whitening import PatchWhitening

__all__ = ["DavidNet", "GhostBatchNorm", "PatchWhitening"]
