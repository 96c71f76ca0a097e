"""What the adapters of pytorch's tests share. Importing it makes `torch.testing._internal` importable."""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest


def stand_in(name: str, **members: object) -> None:
    """Make a module `name` of `members` where there is none to import, and the packages above it."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        stand_in(".".join(parts[:end]), __path__=[])
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = module = types.ModuleType(name)
        module.__dict__.update(members)


stand_in("expecttest", TestCase=unittest.TestCase, ACCEPT=False)

from torch.testing._internal import common_modules as common_modules  # noqa: E402  (after what it imports)
from torch.testing._internal import common_optimizers as common_optimizers  # noqa: E402
