"""The suites: where each one's files lie in its checkout, and the adapter that it runs with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import UserError


@dataclass(frozen=True)
class Suite:
    """One project's tests of one kind."""

    folder: str  # among the checkouts; their tests are run from there
    files: tuple[str, ...]  # under it; those that are not there are left out
    adapter: str  # the module that puts ours in place of theirs

    def found(self, checkouts: Path) -> list[str]:
        """Return those of its files that are there."""
        return [file for file in self.files if (checkouts / self.folder / file).is_file()]


SUITES = {
    "pytorch-optim": Suite("pytorch/test", ("test_optim.py",), "bench.foreign.pytorch_optim"),
    "pytorch-modules": Suite("pytorch/test", ("test_modules.py",), "bench.foreign.pytorch_modules"),
    "pytorch_optimizer": Suite(
        "pytorch_optimizer",
        (
            "tests/test_create_optimizer.py",
            "tests/test_general_optimizer_parameters.py",
            "tests/test_gradients.py",
            "tests/test_load_modules.py",
            "tests/test_optimizers.py",
            "tests/test_wrapper_optimizers.py",
        ),
        "bench.foreign.pytorch_optimizer",
    ),
}


def choose(checkouts: Path, only: str | None) -> list[str]:
    """Return the suites to run: those named in `only`, by commas; None: those whose files are there. Raises UserError
    for an unknown name, and where no file is there."""
    names = list(SUITES) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in SUITES:
            raise UserError(f"suite is {name!r}; allowed: {', '.join(SUITES)}")
    found = [name for name in names if SUITES[name].found(checkouts)]
    if not found or (only is not None and found != names):
        files = ", ".join(f"{SUITES[name].folder}/{SUITES[name].files[0]}" for name in names)
        raise UserError(f"{checkouts} lacks the tests; allowed: a folder with {files}")
    return found
