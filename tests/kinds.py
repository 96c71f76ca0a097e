"""Sections of any kind, for tests that go through several or add some."""

import contextlib
import dataclasses
from collections.abc import Iterator

from fastcifar.catalogue import DATASETS
from fastcifar.recipes import NETWORKS, OPTIMIZERS, TRANSFORMS
from fastcifar.recipes.optimizers import OptimizerConfig


def optimizer(kind: str, **fields: object) -> OptimizerConfig:
    """The section of an optimizer of this kind, with those of the `fields` that it has."""
    names = {field.name for field in dataclasses.fields(OPTIMIZERS[kind]) if field.init}
    return OPTIMIZERS[kind](**{name: value for name, value in fields.items() if name in names})


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What is registered inside is unknown afterwards."""
    before = [(kinds, dict(kinds)) for kinds in (NETWORKS, OPTIMIZERS, TRANSFORMS, DATASETS)]
    try:
        yield
    finally:
        for kinds, known in before:
            kinds._values.clear()
            kinds._values.update(known)
