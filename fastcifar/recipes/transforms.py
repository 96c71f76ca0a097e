"""The section `transforms` of a recipe: random changes to a training batch that are added by their names."""

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
    """The configuration of a change to images. A subclass is a frozen dataclass of settings, one or more of which are
    tricks, all off by default; see `transform`."""

    function: ClassVar[str | Callable[..., Any]]
    """What changes the images; see `transform`."""
    draws: ClassVar[int] = 1
    """Random numbers that each image gets in each epoch."""

    @property
    def active(self) -> bool:
        """Whether any of its tricks is on."""
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

    function: of images `[B, 3, H, W]`, normalized and already changed by `augment`, in the compute type; of their
        numbers, float32 `[B, draws]`, uniform from 0 up to 1, drawn in bulk for the epoch; and of the configuration:
        as many images. Or where it is ("package.module:name"), imported at the first batch. On a GPU it is captured,
        and so may not depend on values.

    A recipe's file names it `[transforms.grey]`, a flag `--transforms.grey.share`. Raises UserError for a name that is
    taken or no Python name, and for a configuration that is on by default.
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
    """The transforms of a recipe, a section each, applied in the order in which they were registered. A recipe holds
    those that are not as by default, in a class with a field for each that `of` makes; this one has none."""

    section: ClassVar[str] = "transforms"

    def __iter__(self) -> Iterator[TransformConfig]:
        """Give those that are on."""
        for field in dataclasses.fields(self):
            config = getattr(self, field.name)
            if config.active:
                yield config

    @staticmethod
    def of(configs: Iterable[TransformConfig]) -> Transforms:
        """Return the section of these, without those that are as by default."""
        changed = {config.kind: config for config in configs if config != type(config)()}
        kinds = {kind: cls for kind, cls in TRANSFORMS.items() if kind in changed}
        return _class_of(tuple(kinds.items()))(**changed) if changed else Transforms()

    @staticmethod
    def of_all_kinds() -> type[Transforms]:
        """Return the class with a field for each registered kind."""
        return _class_of(tuple(TRANSFORMS.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Transforms.of, ([getattr(self, field.name) for field in dataclasses.fields(self)],)


@functools.cache
def _class_of(kinds: tuple[tuple[str, type[TransformConfig]], ...]) -> type[Transforms]:
    fields = [(kind, cls, dataclasses.field(default=cls())) for kind, cls in kinds]
    return dataclasses.make_dataclass("Transforms", fields, bases=(Transforms,), frozen=True)
