"""The count of a whole training against torch's own counter, which watches that training being run.

Torch's counter does not see what the count is of:

- Products inside of fastcifar's operators (whitening, Newton-Schulz). Once it takes our formulas for them, once it
  watches their paths in plain torch. That of Newton-Schulz multiplies squares nine times in three steps, the kernels,
  which are counted, eleven times.
- A GPU's path. A CPU convolves narrow images as strips, with more zeros: not in this test. And it convolves DavidNet's
  images by the whitening, where a GPU composes filters: that is subtracted.

It sees the fitting of the whitening, which `count_recipe` leaves out: subtracted too.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastcifar import train
from fastcifar.costs.flops import count_recipe
from fastcifar.data import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.models import build_model
from fastcifar.recipes import change, get_recipe


class Opened(TorchDispatchMode):
    """A mode in which fastcifar's operators are run so that the modes around it see their insides."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "fastcifar":
            return func(*args, **(kwargs or {}))
        return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))


def flop_by_torch(recipe, data, opened):
    """Return the FLOP of a training and its evaluation on `data`, as torch counts them."""
    with FlopCounterMode(display=False) as whole, Opened() if opened else contextlib.nullcontext():
        train(recipe, data, device="cpu", eval_every=0)
    with FlopCounterMode(display=False) as fit:
        build_model(recipe, 10, data.mean, data.std).fit_whitening(data.train.images)
    on_a_cpu_alone = whole.get_flop_counts().get("DavidNet.whitening", {})
    return whole.get_total_flops() - fit.get_total_flops() - sum(on_a_cpu_alone.values())


SMALL = {
    "davidnet": {"network.widths": (16, 32, 32, 32), "epochs": 2},
    "speedrun94": {"network.widths": (16, 32, 32), "epochs": 4},  # three sides of images, the easiest left out
}


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_a_whole_training_is_counted_as_by_torch(name, opened, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    monkeypatch.setattr("fastcifar.models.convolution.needs_plain_torch", lambda: True)
    recipe = change(get_recipe(name), {"batch_size": 32, "dtype": "float32", **SMALL[name]})
    count = count_recipe(recipe, train_images=96, test_images=24)
    assert count.training_flop + count.evaluation_flop == pytest.approx(
        flop_by_torch(recipe, make_synthetic(train_size=96, test_size=24), opened), rel=2e-3
    )


@pytest.mark.parametrize("side", [28, 64, 224])
@pytest.mark.parametrize("name", SMALL)
def test_images_of_other_sides_are_counted_as_by_torch(name, side, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    monkeypatch.setattr("fastcifar.models.convolution.needs_plain_torch", lambda: True)
    short = {
        "batch_size": 8,
        "dtype": "float32",
        "network.ghost_batch": 0,
        **SMALL[name],
        "epochs": 1,
        "evaluate.tta_share": 1,
    }
    recipe = change(get_recipe(name), short)
    images = torch.randint(256, (10, side, side, 3), dtype=torch.uint8)
    data = Dataset.from_arrays(images[:8], range(8), images[8:], [8, 9])
    count = count_recipe(recipe, train_images=8, test_images=2, side=side)
    assert count.stages[-1].stage.size == (24 if name == "speedrun94" else side)
    expected = flop_by_torch(recipe, data, opened=False)
    assert count.training_flop + count.evaluation_flop == pytest.approx(expected, rel=2e-3)
