"""The pages that show how something is done, followed as they are written: in a copy of this checkout each block
becomes a file, or changes one, and each command is run."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastcifar as library
from fastcifar.data.synthetic import make_synthetic
from tests.pages import MEASURING, OWN, PROGRAMS, README, blocks
from tests.test_extension import CommandLine

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "adding.md", ROOT / "docs" / "architecture.md"]
PAGES = [page.read_text(encoding="utf-8") for page in (*GUIDES[:2], OWN, PROGRAMS, MEASURING)]
PYTEST = "python -m pytest -q "
COMMANDS = [block.splitlines() for text in PAGES for language, block in blocks(text) if language == "sh"]
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
    """The files that the pages make or change in `checkout`."""
    return [path for text in PAGES for path in follow(text, checkout)]


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
        run = python if program == "python" and not words[0].endswith(".py") else fastcifar  # programs need no start
        run(*words)


def test_the_tests_that_pages_name_pass(python):
    lines = [line for line in itertools.chain.from_iterable(COMMANDS) if line.startswith(PYTEST)]
    chosen = [line for line in lines if " -k " in line]
    files = [line.removeprefix(PYTEST) for line in lines if line not in chosen]
    for line in (*chosen, PYTEST + " ".join(files)):
        python(*shlex.split(line)[1:])


def test_what_the_pages_make_is_in_the_projects_style(followed, python):
    pytest.importorskip("ruff")
    python("-m", "ruff", "check", *followed)
    python("-m", "ruff", "format", "--check", *followed)


@pytest.mark.parametrize(
    "program", [text for language, text in blocks(README.read_text(encoding="utf-8")) if language == "python"]
)
def test_the_readmes_program_works(program, monkeypatch, tmp_path):
    """On few images and a narrow network."""
    train, small = library.train, {"network.widths": (4, 4, 8, 8), "batch_size": 64, "epochs": 2}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: make_synthetic(512, 64))
    monkeypatch.setattr(library, "train", lambda *given, **named: train(*given, **{**named, **small}))
    exec(compile(program, str(README), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_every_path_that_is_named_is_there(document, followed, checkout):
    named = re.findall(r"`((?:bench|docs|fastcifar|kernels|tests)/[\w./]*)", document.read_text(encoding="utf-8"))
    assert named
    missing = {path for path in named if not (ROOT / path).exists() and not (checkout / path).exists()}
    assert missing == set()
