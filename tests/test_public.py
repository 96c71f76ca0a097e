"""The public names, for programs and for type checkers, and the files of an installed fastcifar."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import fastcifar
from tests.dist import package_files, wheel_files

ROOT = Path(__file__).parents[1]
IMPORTS = [
    (node.module, alias)
    for block in ast.parse((ROOT / "fastcifar/__init__.py").read_text(encoding="utf-8")).body
    if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
    for node in block.body
    for alias in node.names
]
NAMES = [
    (home, name)
    for home, alias in IMPORTS
    for name in (import_module(home).__all__ if alias.name == "*" else [alias.name])
]


def test_programs_and_type_checkers_find_the_same_names():
    found = {name: getattr(fastcifar, name) for name in fastcifar.__all__}
    assert found == {name: getattr(import_module(home), name) for home, name in NAMES}
    assert {"train", "Dataset", "UserError", "random_crop"} <= found.keys()
    assert dir(fastcifar) == sorted(found)


def test_each_public_name_has_one_path_and_is_handed_on():
    assert len(NAMES) == len({name for _, name in NAMES})
    # `import X` alone does not hand X on where a package says that it is typed, `import *` does (PEP 484).
    assert [alias.name for _, alias in IMPORTS if alias.asname != alias.name] == ["*"]


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'fastcifar' has no attribute 'Nothing'"):
        _ = fastcifar.Nothing


def test_a_wheel_holds_the_package_with_the_kernels_and_nothing_else(wheel):
    assert wheel_files(wheel) == package_files()
