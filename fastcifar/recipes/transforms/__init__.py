"""The section `transforms` of a recipe: random changes to a training batch, registered by name.

`fastcifar.recipes` imports the built-in kinds, so that they go before those of plug-ins, always in one order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from fastcifar.errors import UserError
from fastcifar.recipes.declare import Checked, Kind, check_kind, declaration, register
from fastcifar.registry import Registry


@dataclass(frozen=True)
class TransformConfig(Kind):
    """The configuration of a change to images. A subclass is a frozen dataclass of settings, with one or more tricks,
    all off by default; see `transform`."""

    function: ClassVar[str | Callable[..., Any]]
    """The function that changes the images; see `transform`."""
    draws: ClassVar[int] = 1
    """Random numbers per image and epoch."""
    of_pixels: ClassVar[bool] = False
    """The function takes images before they are normalized: float32, of 0 to 255."""

    @property
    def active(self) -> bool:
        """True if any of its tricks is on."""
        return any(
            getattr(self, field.name) != each.off
            for field in dataclasses.fields(self)
            for each in declaration(field).tricks
        )


TRANSFORMS: Registry[type[TransformConfig]] = Registry("transform")
TransformConfig.kinds = TRANSFORMS

Config = TypeVar("Config", bound=TransformConfig)


def transform(kind: str, function: str | Callable[..., Any]) -> Callable[[type[Config]], type[Config]]:
    """Register the decorated configuration, a frozen dataclass, as the transform `kind`.

        @fastcifar.transform("grey", "my_package.grey:grey")
        @dataclass(frozen=True)
        class GreyConfig(fastcifar.TransformConfig):
            share: float = fastcifar.trick(0.0, off=0.0, at_least=0, at_most=1, source="Krizhevsky 2012")
            \"\"\"Share of the images that lose their color.\"\"\"

    function: `function(images, numbers, config)` returns as many images, or its place, "package.module:name", imported
        at the first batch. `images` are `[B, 3, H, W]`, normalized and changed by `augment`, in the compute type; with
        `of_pixels` float32 of 0 to 255, and what it returns is normalized. `numbers` are float32 `[B, draws]`, uniform
        from 0 up to 1, drawn in bulk for the epoch. On a GPU the function is captured, so it must not depend on values.

    A recipe's file names it `[transforms.grey]`, a flag `--transforms.grey.share`. Raises UserError if `kind` is taken
    or no Python name, and if the configuration is on by default.
    """

    def add(cls: type[Config]) -> type[Config]:
        if not kind.isidentifier():
            raise UserError(f"the transform's name is {kind!r}; allowed: a Python name, such as color_jitter")
        check_kind(TransformConfig, kind, cls)
        if cls().active:
            raise UserError(f"the transform {kind} is on by default; allowed: tricks whose default is their off value")
        cls.section = f"transforms.{kind}"
        return register(TransformConfig, kind, function=function)(cls)

    return add


@dataclass(frozen=True)
class Transforms(Checked):
    """The transforms of a recipe, a section each, applied in the order in which they were registered. `of` makes a
    subclass with a field for each one that differs from its default."""

    section: ClassVar[str] = "transforms"

    def __iter__(self) -> Iterator[TransformConfig]:
        """Give the transforms that are on."""
        for field in dataclasses.fields(self):
            config = getattr(self, field.name)
            if config.active:
                yield config

    @staticmethod
    def of(configs: Iterable[TransformConfig]) -> Transforms:
        """Return the section of those `configs` that differ from their defaults."""
        changed = {config.kind: config for config in configs if config != type(config)()}
        kinds = {kind: cls for kind, cls in TRANSFORMS.items() if kind in changed}
        return _class_of(tuple(kinds.items()))(**changed) if changed else Transforms()

    @staticmethod
    def of_all_kinds() -> type[Transforms]:
        """Return a class with a field for each registered kind."""
        return _class_of(tuple(TRANSFORMS.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Transforms.of, ([getattr(self, field.name) for field in dataclasses.fields(self)],)


@functools.cache
def _class_of(kinds: tuple[tuple[str, type[TransformConfig]], ...]) -> type[Transforms]:
    fields = [(kind, cls, dataclasses.field(default=cls())) for kind, cls in kinds]
    return dataclasses.make_dataclass("Transforms", fields, bases=(Transforms,), frozen=True)
