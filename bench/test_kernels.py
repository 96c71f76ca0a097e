"""Each fused operation against its reference and against what `torch.compile` makes of the reference.

At DavidNet's sizes, Muon and whitening at the speedrun network's; `norm_act_pool` with a small batch on a CPU, unless
`--full` asks for more. What is called is in `bench/kernel_cases.py`.
"""

import pytest
import torch

from bench import kernel_cases
from bench.kernel_cases import DAVIDNET, FILTERS, WEIGHTS

HALF = torch.float16 if torch.cuda.is_available() else torch.bfloat16
BATCH, GHOST_BATCH = 512, 32
"""Images in a batch of what takes milliseconds anywhere, and in a group that is normalized by itself."""
SMALL_BATCH = 64  # images in a batch of `norm_act_pool`, which takes seconds on a CPU
LAYERS = [f"norm_act_pool-{place}" for place in DAVIDNET]
NAMES = ["augment", "cross_entropy", "flat_muon", "flat_sgd", *LAYERS, "whiten"]
BESIDE = {name: pytest.mark.reference("product" if name in ("cross_entropy", "whiten") else "copy") for name in NAMES}
COMPILED = ("augment", "cross_entropy", "flat_sgd", "norm_act_pool-layer1", "norm_act_pool-layer1-residual", "whiten")
"""Names that are compiled without `--full`: of the layers one with a pool and one with a residual. Others take ten
seconds each, Muon a minute."""
UNSTABLE = pytest.mark.unstable("what the compiler makes of it differs from one start to the next")


def make(name: str, full: bool, device: torch.device) -> kernel_cases.OperationCase:
    """Return the case of that name in `NAMES`."""
    operation, _, place = name.partition("-")
    batch = BATCH if full else SMALL_BATCH
    sizes = {
        "augment": (BATCH, 50_000 if full else 5_000),
        "flat_muon": (FILTERS,),
        "flat_sgd": (WEIGHTS,),  # smaller buffers lie in a cache, or not, as it happens: times differ by 15%
        "norm_act_pool": (DAVIDNET.get(place), batch, batch // GHOST_BATCH, "celu"),
    }
    return getattr(kernel_cases, operation)(*sizes.get(operation, (BATCH,)), device, HALF)


@pytest.mark.parametrize("variant", ["reference", "kernel", pytest.param("compiled", marks=UNSTABLE)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in BESIDE.items()])
def test_kernel(measure, device, full, name, variant):
    if variant == "compiled" and name not in COMPILED and not full:
        pytest.skip("it compiles for long: with --full")
    measure(make(name, full, device), variant)
