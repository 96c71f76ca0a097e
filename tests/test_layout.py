"""The rooms of the package import one way, and `kernels` under one name only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD = {"by_class", "catalogue", "errors", "escape", "input", "interval", "machine", "output", "phases"}
STANDARD |= {"launch", "locks", "recipes", "record", "registry", "signals", "start", "transfer"}
"""The rooms that import nothing but the standard library."""
LOWER = STANDARD | {"host", "kernels", "screen"}
MAY_IMPORT = {
    "errors": {"errors", "escape"},
    "by_class": {"by_class"},
    "registry": {"errors", "registry"},
    "locks": {"errors", "locks"},
    "output": {"errors", "escape", "locks", "output"},
    "input": {"errors", "input", "output"},
    "phases": {"phases"},
    "launch": {"errors", "launch", "machine"},
    "signals": {"signals", "training"},  # training for its types alone
    "machine": {"machine"},
    "host": {"errors", "host"},
    "interval": {"errors", "interval"},
    "escape": {"escape"},
    "screen": {"escape", "record", "screen"},  # record for its types alone
    "recipes": {"errors", "escape", "output", "recipes", "registry"},
    "record": {"by_class", "data", "errors", "output", "recipes", "record"},  # data for its types alone
    "catalogue": {"catalogue", "data", "errors", "registry"},  # data for its types alone
    "start": {"errors", "input", "recipes", "start"},
    "transfer": {"errors", "input", "output", "recipes", "record", "transfer"},
    "data": LOWER | {"data"},
    "models": LOWER | {"models"},
    "transforms": LOWER | {"transforms"},
    "corruptions": LOWER | {"corruptions"},
    "optim": LOWER | {"optim"},
    "plasticity": LOWER | {"models", "optim", "plasticity"},
    "training": LOWER | {"data", "models", "optim", "plasticity", "training"},
    "costs": LOWER | {"data", "models", "optim", "training", "costs"},
    "report": {"by_class", "errors", "escape", "output", "recipes", "record", "report"},
    "diagnose": LOWER | {"data", "models", "optim", "plasticity", "training", "report", "diagnose"},
    "track": LOWER | {"training", "track"},
    "doctor": LOWER | {"data", "training", "doctor"},
    "experiments": LOWER
    | {"data", "models", "optim", "training", "costs", "report", "diagnose", "track", "experiments"},
}
"""The rooms that each room of `fastcifar` may import; `cli`, `__init__` and `__main__` may import everything."""


def imports(path):
    """Return the names that a file imports, in functions too; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the full name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path):
    return path.relative_to(ROOT / "fastcifar").parts[0].removesuffix(".py")


FILES = sorted((ROOT / "fastcifar").rglob("*.py"))
PYTHON = [*FILES, *(path for folder in ("kernels", "bench", "tests") for path in (ROOT / folder).rglob("*.py"))]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in MAY_IMPORT], ids=name_of)
def test_rooms_import_one_way(path):
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fastcifar.")}
    assert used <= MAY_IMPORT[room(path)]


def test_every_room_has_its_rule():
    assert {room(path) for path in FILES} <= {*MAY_IMPORT, "cli", "__init__", "__main__"}


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in STANDARD], ids=name_of)
def test_recipes_need_the_standard_library_only(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert tops - {"fastcifar", "tomli", "tomllib"} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=name_of)
def test_kernels_import_from_fastcifar_only_themselves(path):
    used = [name for name in imports(path) if name.split(".")[0] == "fastcifar"]
    assert all(name.startswith("fastcifar.kernels") for name in used)


def test_nothing_imports_kernels_at_the_top_level():
    assert [name_of(path) for path in PYTHON if "kernels" in {name.split(".")[0] for name in imports(path)}] == []


def test_only_the_command_line_imports_tyro():
    assert {room(path) for path in FILES if "tyro" in {name.split(".")[0] for name in imports(path)}} <= {"cli"}


def test_the_library_imports_where_tyro_and_platformdirs_are_absent():
    code = (
        "import sys\n"
        "sys.modules.update(tyro=None, platformdirs=None)\n"  # an import of either now raises ImportError
        "import fastcifar.training, fastcifar.data, fastcifar.models, fastcifar.optim, fastcifar.costs.flops\n"
        "import fastcifar.experiments, fastcifar.report\n"
        "from fastcifar import train\n"
        "from fastcifar.data import load_dataset\n"
        "load_dataset('synthetic')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
