"""What the fields `freeze` and `frozen_mode` of a recipe go with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastcifar.errors import UserError, brief

if TYPE_CHECKING:
    from fastcifar.recipes.recipe import Recipe


def refuse_frozen(recipe: Recipe) -> None:
    """Raise UserError for layers that no network has, and where features computed once would not be those of each
    step."""
    recipe._require(
        "freeze", re.fullmatch("none|backbone|[1-9][0-9]{0,5}", recipe.freeze), "none, backbone or 1, 2, ..."
    )
    if recipe.frozen_mode == "eval" and recipe.freeze == "none":
        raise UserError("freeze is 'none' with frozen_mode eval; allowed: backbone or 1, 2, ...")
    if recipe.frozen_mode != "once":
        return
    augment, on = recipe.augment, next(iter(recipe.transforms), None)
    for name, value, usual in (
        ("freeze", recipe.freeze, "backbone"),
        ("augment.crop", augment.crop, 0),
        ("augment.flip", augment.flip, "none"),
        ("augment.cutout", augment.cutout, 0),
        ("augment.brightness", augment.brightness, 0),
        ("augment.contrast", augment.contrast, 0),
        ("augment.early_crops", augment.early_crops, ()),
        ("transforms", on and on.kind, None),
        ("mix.mixup", recipe.mix.mixup, 0),
        ("mix.cutmix", recipe.mix.cutmix, 0),
        ("ensemble.members", recipe.ensemble.members, 1),
        ("loading.loader", recipe.loading.loader, "resident"),
        ("compile", recipe.compile, "off"),
    ):
        if value != usual:
            allowed = "none" if usual in ((), None) else usual
            raise UserError(f"{name} is {brief(value)} with frozen_mode once; allowed: {allowed}")
