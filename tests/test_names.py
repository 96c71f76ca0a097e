"""Few files know a network, an optimizer, a data set or a trick by name, so that adding one changes few."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["davidnet", "speedrun", "muon", "cutout", "cifar10", "cifar100"])
def test_a_name_stands_in_few_files(name):
    files = {path.resolve() for folder in ("fastcifar", "kernels") for path in (ROOT / folder).rglob("*.py")}
    files = {path for path in files if path.parent != ROOT / "fastcifar/recipes/named"}  # which put them together
    word = re.compile(rf"\b{name}\b")
    found = [str(path.relative_to(ROOT)) for path in files if word.search(path.read_text(encoding="utf-8"))]
    assert 1 <= len(found) <= 4, sorted(found)
