"""The epochs of a training: their steps, and what is fixed in a captured step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastcifar.errors import UserError
from fastcifar.recipes import Recipe

_ROUNDING = 1e-6
"""Steps or epochs by which a floating-point product may exceed the whole number that is meant, as in 0.07 of 100."""

_MOST_STEPS = 10**8
"""Steps of a training: the rate of each is kept."""


@dataclass(frozen=True)
class Stage:
    """The settings that are fixed in a captured step; epochs with equal stages replay the same one."""

    size: int
    """Side of the images in pixels."""
    batch: int
    """Images in a full batch."""
    frozen: frozenset[str] = frozenset()
    """Names of the parameters that earlier stages trained and this one does not."""
    part: tuple[int, int] | None = None
    """Start and stop in the epoch's plan of a last batch that is not full; None: the next full batch."""

    @property
    def images(self) -> int:
        """Images in a batch."""
        return self.part[1] - self.part[0] if self.part else self.batch


@dataclass(frozen=True)
class Epoch:
    """One epoch, whole or, as the last may be, in part."""

    number: int
    """From 0."""
    first_step: int
    """Steps of the training before it."""
    steps: int
    images: int
    """Training images that its steps use."""
    visits: int | None
    """Training images to visit where the easiest are left out; None: all."""
    stage: Stage
    last: Stage | None = None
    """The stage of its last step where that has fewer images than a batch."""

    @property
    def end(self) -> int:
        """Steps of the training up to its end."""
        return self.first_step + self.steps

    def stage_of(self, step: int) -> Stage:
        """Return the stage of `step`, counted from the training's first."""
        return self.last if self.last and step == self.end - 1 else self.stage


class Timeline:
    """The epochs of a training of `recipe` on `images` square training images of side `size`.

    An epoch has a step for each full batch of the images that it visits, and without `drop_last` one more for those
    left over; a last epoch in part has that part of the steps, rounded up. `frozen_from[name]` is the epoch from which
    on a parameter is frozen: it is in all epochs that begin then or later. Raises UserError where the images that an
    epoch visits do not fill a batch, for images that are too small for `recipe.augment`, and for more than 100 million
    steps.
    """

    def __init__(self, recipe: Recipe, images: int, size: int, frozen_from: Mapping[str, float] | None = None) -> None:
        batch_size = recipe.batch_size  # the largest: those of early epochs are no larger
        if images < batch_size and recipe.drop_last:
            raise UserError(f"batch_size is {batch_size}; allowed: up to the {images} training images")
        recipe.augment.refuse_side(size)
        self._recipe, self._images, self._side = recipe, images, size
        self.epochs: list[Epoch] = []
        self.total_steps = 0
        for number in range(math.ceil(recipe.epochs)):
            part = min(1.0, recipe.epochs - number)
            steps = math.ceil(part * self._whole(number) - _ROUNDING)
            if not steps and self.epochs:
                break
            frozen = frozenset(name for name, start in (frozen_from or {}).items() if number >= start)
            self.epochs.append(self._epoch(number, max(1, steps), Stage(*self._sizes(number), frozen)))
            self.total_steps += self.epochs[-1].steps
            if self.total_steps > _MOST_STEPS:
                steps = f"which takes more than {_MOST_STEPS:,} steps of batch_size {batch_size}"
                raise UserError(f"epochs is {recipe.epochs}, {steps}; allowed: fewer epochs, or larger batches")

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of all images, in the smallest batches of the training."""
        return self._steps(self._images, min(epoch.stage.batch for epoch in self.epochs))

    def epochs_from(self, step: int) -> list[Epoch]:
        """Return the epochs that still have steps after `step` steps."""
        return [epoch for epoch in self.epochs if epoch.end > step]

    def steps_before(self, epochs: float) -> int:
        """Return the steps of the first `epochs` epochs, at most those of the training."""
        number = min(math.floor(epochs), len(self.epochs) - 1)
        part = math.ceil((epochs - number) * self._whole(number) - _ROUNDING)
        return min(self.epochs[number].first_step + part, self.total_steps)

    def steps_until_frozen(self, name: str) -> int:
        """Return the steps that the parameter `name` trains for: all if it is never frozen."""
        return sum(epoch.steps for epoch in self.epochs if name not in epoch.stage.frozen)

    def steps_by_stage(self) -> dict[Stage, int]:
        """Return the number of steps in each different stage."""
        steps: dict[Stage, int] = {}
        for epoch in self.epochs:
            full = epoch.steps - (epoch.last is not None)
            for stage, count in ((epoch.stage, full), (epoch.last, 1)):
                if stage and count:
                    steps[stage] = steps.get(stage, 0) + count
        return steps

    def returns(self, epoch: Epoch) -> bool:
        """Return True if weights return to their average after `epoch` (`ema.return_every`). After the last they do
        not: the average is what is evaluated."""
        every = self._recipe.ema.return_every
        return every > 0 and (epoch.number + 1) % every == 0 and epoch is not self.epochs[-1]

    def is_averaged(self, step: int) -> bool:
        """Return True if `recipe.average` averages the weights after `step` steps."""
        average = self._recipe.average
        if not average.epochs:
            return False
        start = self.steps_before(max(0.0, self._recipe.epochs - average.epochs))
        return step > start and (self.total_steps - step) % average.every == 0

    def _epoch(self, number: int, steps: int, stage: Stage) -> Epoch:
        visits = self._selected(number)
        images = min(steps * stage.batch, visits or self._images)
        over = images % stage.batch
        last = dataclasses.replace(stage, part=(images - over, images)) if over else None
        return Epoch(number, self.total_steps, steps, images, visits, stage, last)

    def _selected(self, number: int) -> int | None:
        select = self._recipe.select
        if select.keep == 1 or number < select.from_epoch:
            return None
        count = round(select.keep * self._images)
        if count < (self._recipe.batch_size if self._recipe.drop_last else 1):
            raise UserError(
                f"select.keep is {select.keep}, which leaves {count} of the {self._images} training images; allowed: "
                f"what leaves batch_size, {self._recipe.batch_size}, or more"
            )
        return count

    def _whole(self, number: int) -> int:
        """Return the steps of epoch `number` if it is not cut short."""
        return self._steps(self._selected(number) or self._images, self._sizes(number)[1])

    def _sizes(self, number: int) -> tuple[int, int]:
        """Return the side of the images of epoch `number`, and how many make a batch."""
        recipe = self._recipe
        for place, (side, share) in enumerate(recipe.augment.early_crops):
            if number < share * recipe.epochs - _ROUNDING:
                return side, next(iter(recipe.early_batches[place:]), recipe.batch_size)
        return self._side, recipe.batch_size

    def _steps(self, images: int, batch: int) -> int:
        whole, over = divmod(images, batch)
        return whole + (over > 0 and not self._recipe.drop_last)
