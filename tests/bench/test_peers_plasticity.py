"""What plasticity is measured by, against its authors' code in their checkouts."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.peers.adapt import load_module
from fastcifar.diagnose.plasticity import dormant_units, effective_rank, singular_values, srank

CHECKOUTS = Path(os.getenv("FASTCIFAR_PEERS", "."))
pytestmark = pytest.mark.skipif(
    "FASTCIFAR_PEERS" not in os.environ, reason="FASTCIFAR_PEERS names no folder of checkouts"
)
REDO = [("from interventions.node_reset.reset_base import ResetBase", "ResetBase = object")]
ANALYSIS = [
    (f"{line}\n", "")
    for line in (
        "from tqdm import tqdm",
        "from torchvision import transforms",
        "from scipy.linalg import svd",
        "from mlproj_manager.problems import CifarDataSet",
        "from mlproj_manager.util.data_preprocessing_and_transformations import ToTensor, Normalize",
        "from lop.nets.torchvision_modified_resnet import ResNet, build_resnet18",
    )
] + [("net: ResNet", "net: object")]


@pytest.mark.parametrize("shape", [(7, 20), (5, 20, 3, 4)])
def test_dormant_units_are_those_of_fires_redo(shape):
    theirs = load_module(CHECKOUTS / "FIRE/vision/interventions/node_reset/redo.py", REDO, "fires_redo")
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).relu() * torch.logspace(-4, 1, 20).view(-1, *[1] * (len(shape) - 2))
    for threshold in (0.025, 0.1, 1.0):
        mask = theirs.get_redo_masks({"a": x, "logits": x}, threshold)["a"]
        assert 0 < mask.sum() < 20 and torch.equal(dormant_units(x, threshold), mask)


def test_ranks_are_those_of_loss_of_plasticity():
    theirs = load_module(
        CHECKOUTS / "loss-of-plasticity/lop/incremental_cifar/post_run_analysis.py", ANALYSIS, "lops_analysis"
    )
    random = np.random.default_rng(0)
    for columns in (3, 12, 40):
        features = torch.from_numpy(random.normal(size=(30, columns)) @ np.diag(np.logspace(0, -5, columns)))
        singular = singular_values(features)
        assert effective_rank(singular) == pytest.approx(theirs.compute_effective_rank(singular), rel=1e-12)
        assert srank(singular) == theirs.compute_stable_rank(singular)
