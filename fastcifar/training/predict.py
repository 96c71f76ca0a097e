"""`predict`: what a network takes images for."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import nn

from fastcifar.data import Split
from fastcifar.data.arrays import images_from
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.recipes import EvaluateConfig
from fastcifar.training.evaluate import evaluate
from fastcifar.training.run import Run, load_run

_PLAIN = EvaluateConfig(tta="none")


@TORCH.applied()
def predict(
    model: Run | nn.Module | str | PathLike[str],
    images: Split | torch.Tensor | ArrayLike,
    how: EvaluateConfig | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the probability of each class for each image, float32 `[N, classes]` on the CPU; `.argmax(1)` are the
    classes.

    model: a run, the folder of one, or a network.
    images: a split, as `data.test`, or images as `Dataset.from_arrays` takes them, as uint8 `[N, H, W, 3]`.
    how: the test-time augmentation; None: a run's own, of a network none.
    mean, std: normalize the images, 0 to 255 units; by default those that the model was trained with.

    Raises UserError for what is no run, for images that are none, and where it is unknown how to normalize.
    """
    if isinstance(model, str | PathLike):
        recipe, model, _ = load_run(Path(model))
        how = how or recipe.evaluate
    elif isinstance(model, Run):
        how, model = how or model.recipe.evaluate, model.model
    if not isinstance(model, nn.Module):
        raise UserError(f"model is of type {type(model).__name__}; allowed: a run, the folder of one, or a network")
    if not isinstance(images, Split):
        pixels = images_from(images, "images")
        images = Split(pixels, torch.full((len(pixels),), -1))
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    images = images if images.device == device else images.to(device)
    return evaluate(model, images, how or _PLAIN, mean=mean, std=std).logits.softmax(1)
