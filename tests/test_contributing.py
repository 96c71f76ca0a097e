"""The pages of CONTRIBUTING.md, followed as they are written: in a copy of this checkout each block becomes a file, or
changes one, and each command is run."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import README, blocks
from tests.test_extension import CommandLine

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
PAGES = dict(re.findall(r"^## (Add .*?)\n(.*?)(?=^## |\Z)", GUIDE.read_text(encoding="utf-8"), re.M | re.S))
PYTEST = "python -m pytest -q "
COMMANDS = [block.splitlines() for text in PAGES.values() for language, block in blocks(text) if language == "sh"]
"""The lines of each block: one may need what those above it made."""
SEQUENCES = [lines for block in COMMANDS if (lines := [line for line in block if not line.startswith(PYTEST)])]


def follow(text: str, folder: Path) -> list[Path]:
    """Return the files that are made or changed in `folder` by the blocks whose first line names one."""
    changed = []
    for language, block in blocks(text):
        name, _, code = block.partition("\n")
        if not name.startswith("# "):
            continue
        path = folder / name.removeprefix("# ")
        if language == "diff":
            content = path.read_text(encoding="utf-8")
            for hunk in code.split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                old, new = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
                assert content.count(old) == 1, f"{path} has {content.count(old)} places for\n{hunk}"
                content = content.replace(old, new)
        else:
            assert not path.exists(), f"{path} is there already"
            content = code
        path.write_text(content, encoding="utf-8")
        changed.append(path)
    return changed


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout in which all pages were followed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("fastcifar", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    kernels = folder / "fastcifar" / "kernels"
    if not kernels.exists():  # as setup.py maps it
        kernels.symlink_to("../kernels")
    return folder


@pytest.fixture(scope="module")
def followed(checkout):
    """The files that the pages make or change in `checkout`; the README has the plug-in that one of them speaks of."""
    texts = [README.read_text(encoding="utf-8"), *PAGES.values()]
    return [path for text in texts for path in follow(text, checkout)]


@pytest.fixture(scope="module")
def environment(checkout):
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def fastcifar(followed, checkout, environment):
    """The command line of the copy."""
    commands = CommandLine(checkout, environment)
    assert Path(commands.package).is_relative_to(checkout)
    yield commands
    commands.close()


@pytest.fixture
def python(followed, checkout, environment):
    """Runs Python in the copy."""

    def run(*words):
        done = subprocess.run([sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("lines", SEQUENCES, ids="; ".join)
def test_each_command_of_a_page_works(lines, fastcifar, python):
    for line in lines:
        program, *words = shlex.split(line)
        {"fastcifar": fastcifar, "python": python}[program](*words)


def test_the_tests_that_pages_name_pass(python):
    for line in itertools.chain.from_iterable(COMMANDS):
        if line.startswith(PYTEST):
            python(*shlex.split(line)[1:])


def test_what_the_pages_make_is_in_the_projects_style(followed, python):
    pytest.importorskip("ruff")
    python("-m", "ruff", "check", *followed)
    python("-m", "ruff", "format", "--check", *followed)


@pytest.mark.parametrize("document", [GUIDE, ROOT / "docs" / "architecture.md"], ids=lambda path: path.name)
def test_every_path_that_is_named_is_there(document, followed, checkout):
    named = re.findall(r"`((?:bench|docs|fastcifar|kernels|tests)/[\w./]*)", document.read_text(encoding="utf-8"))
    assert named
    missing = {path for path in named if not (ROOT / path).exists() and not (checkout / path).exists()}
    assert missing == set()
