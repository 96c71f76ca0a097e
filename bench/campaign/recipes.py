"""The recipes that the campaign measures, at the size asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bench.campaign.campaign import Campaign
from fastcifar.recipes import RECIPES, Recipe, change, quick


def _of_batch(size: int, lr: float) -> dict[str, Any]:
    """Return the changes that give speedrun94 batches of another size, with Muon's rate `lr`.

    The hyper-parameters are those of fulcrum's e1, whose batches are of 1536 images: its rates for the summed loss and
    its decay, written here for the mean over the batch.
    """
    return {
        "batch_size": size,
        "label_smoothing": 0.09,
        "network.norm_momentum": 1 - 0.5566,
        "optimizer.lr": lr,
        "optimizer.momentum": 0.655,
        "optimizer.weight_decay": 1.0418e-6 * size,
        "optimizer.filter_decay": lr * 1.0418e-6 * size,
        "optimizer.bias_lr": 0.0573 * size,
        "optimizer.head_lr": 0.5415 * size,
        "optimizer.sgd_momentum": 0.825,
        "optimizer.ns_coefficients": [3.4576, -4.7391, 2.0843],
        "optimizer.norm_every": 2,
        "optimizer.norm_growth": 15,
    }


NEXT: Mapping[str, Any] = {**_of_batch(1024, lr=0.19), "augment.early": "resize", "select.keep": 0.65}
"""What may become of speedrun94, by the screen on an H100 (bench/results/accelerator.md): 13% fewer operations."""
OTHER_SEARCH = "speedrun94-unsearched" if RECIPES["speedrun94"].cudnn_search else "speedrun94-searched"
"""speedrun94 with cuDNN's search for the fastest convolutions where the recipe is without, and the other way round."""
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "speedrun94": ("speedrun94", {}),
    "davidnet": ("davidnet", {}),
    "speedrun94-1024": ("speedrun94", _of_batch(1024, lr=0.19)),
    "speedrun94-1536": ("speedrun94", _of_batch(1536, lr=0.2255)),
    "speedrun94-next": ("speedrun94", NEXT),
    "speedrun94-next-longer": ("speedrun94", {**NEXT, "epochs": 11}),
    "speedrun94-next-75": ("speedrun94", {**NEXT, "select.keep": 0.75}),
    "speedrun94-next-55": ("speedrun94", {**NEXT, "select.keep": 0.55}),
    "speedrun94-in-turn": ("speedrun94", {"optimizer.overlap": False}),
    OTHER_SEARCH: ("speedrun94", {"cudnn_search": not RECIPES["speedrun94"].cudnn_search}),
    "davidnet-searched": ("davidnet", {"cudnn_search": True}),
    "davidnet-alternating": ("davidnet", {"augment.flip": "alternating", "evaluate.tta": "flip-crop"}),
    "speedrun95": ("speedrun95", {}),
    "speedrun96": ("speedrun96", {}),
    "warmstart-resnet18": ("warmstart-resnet18", {"epochs": 2}),
    "warmstart-mlp": ("warmstart-mlp", {"epochs": 2}),
}
"""`VARIANTS[name]`: a recipe and its changes, by dotted names. speedrun94's own batches are small and may not fill a
GPU: in larger ones it reached as much on held-out images (bench/results/speedrun94-search.jsonl)."""
REST = ("speedrun95", "speedrun96", "warmstart-resnet18", "warmstart-mlp")
"""Recipes that the smoke trains once, the last two briefly. warmstart-narrow's optimizer, torch's, is not captured."""
MAIN = ("speedrun94", "davidnet")  # recipes whose convolutions and kernels are measured one by one


def get_recipe(name: str, tiny: bool) -> Recipe:
    """Return the recipe of that name in `VARIANTS`; with `tiny` narrow, of one epoch and of batches of 32."""
    base, changes = VARIANTS[name]
    recipe = change(RECIPES[base], {"name": name, **changes}, name)
    return shrink(recipe) if tiny else recipe


def main_recipes(campaign: Campaign) -> dict[str, Recipe]:
    """Return the recipes in `MAIN`, by name."""
    return {name: get_recipe(name, campaign.tiny) for name in MAIN}


def shrink(recipe: Recipe) -> Recipe:
    """Return `recipe` as `--quick` has it, and smaller still."""
    narrow, _ = quick(recipe)
    return dataclasses.replace(narrow, epochs=1, batch_size=32)
