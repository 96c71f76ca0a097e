"""What the adapters of pytorch's tests share. Importing it makes `torch.testing._internal` importable."""

from __future__ import annotations

import unittest

from bench.peers.adapt import stand_in

stand_in("expecttest", TestCase=unittest.TestCase, ACCEPT=False)

from torch.testing._internal import common_modules as common_modules  # noqa: E402  (after what it imports)
from torch.testing._internal import common_optimizers as common_optimizers  # noqa: E402
