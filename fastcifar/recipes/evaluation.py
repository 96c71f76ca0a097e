"""The section `evaluate` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import Checked, setting, trick


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """The evaluation of the trained network."""

    section: ClassVar[str] = "evaluate"

    tta: Literal["none", "flip", "flip-crop"] = trick(
        "flip",
        off="none",
        source="Page 2019",
        why="The views of an image err in different ways; the mean of their logits errs less.",
    )
    """Test-time augmentation. flip: the mean logits of each image and its mirror image (Page 2019). flip-crop: of these
    and of both shifted by a pixel to the upper left and to the lower right, the border reflected (Jordan 2024)."""
    tta_shifted: float = setting(0.5, at_least=0, at_most=1)
    """Weight of the four shifted views together; the two others share the rest (airbench: 1/2; hiverge's equal weights:
    2/3). Only read with tta flip-crop."""
    tta_share: float = setting(1.0, at_least=0, at_most=1)
    """Share of the images that get these views: those whose plain view has the lowest top probability (hiverge 2025:
    0.25). The others keep the logits of their plain view."""
    batch_size: int = setting(1000, at_least=1, unit="images")
    """Images per evaluation batch; changes the result by rounding alone."""
