"""A mutation run: make small faults in the kernels, recipes, reports and costs, and count those that the tests see.

    python -m tests.mutants [--seed 0] [--count 150] [--only kernels/augment]

Each mutant is one change at one place of one file, drawn from all of them by the seed. It is killed if a test of its
file fails or does not end in time. Those that survive are printed as diffs; below 80% killed the run fails.

A program of our own, because no library serves. mutmut leaves out decorated functions and classes: Triton's kernels and
the recipes' fields. cosmic-ray runs one test command for all files and all mutants there are: days here.

Not mutated: text, type hints, decorators, and what is tuned: launches of kernels (`SIZES`, warps), the defaults of a
recipe's fields, and the named recipes.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "fastcifar/recipes", "fastcifar/report", "fastcifar/costs")
TESTS = {
    "kernels": "kernels/test_launch.py kernels/test_cpu_memory.py kernels/test_dispatch.py",
    "kernels/augment": "kernels/test_augment.py",
    "kernels/compile_ahead": "kernels/test_compile_ahead.py",
    "kernels/conv_pool": "kernels/test_conv_pool.py",
    "kernels/cross_entropy": "kernels/test_cross_entropy.py",
    "kernels/flat_muon": "kernels/test_flat_muon.py",
    "kernels/flat_optimizer": "kernels/test_flat_optimizer.py",
    "kernels/mix": "kernels/test_mix.py",
    "kernels/newton_schulz": "kernels/test_newton_schulz.py",
    "kernels/norm_act_pool": "kernels/test_norm_act_pool.py kernels/test_norm_act_pool_graphs.py",
    "kernels/operators": "kernels/test_launch.py kernels/test_whiten.py",
    "kernels/whiten": "kernels/test_whiten.py",
    "fastcifar/recipes": "recipes optim/test_schedule.py cli/test_arguments.py",
    "fastcifar/report": "report",
    "fastcifar/costs": "costs",
}
"""The tests of the files whose paths begin so; the longest beginning counts."""
LEAST = 0.8
"""Share of the mutants that must be killed."""

COMPARED = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
COMPUTED = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult},
}
TUNING = {"SIZES", "_CPU_SLICE", "_POOL_VALUES", "num_warps", "num_stages", "stacklevel", "strict"}


@dataclass(frozen=True)
class Mutant:
    """A change in a file: the bytes `start` to `end` make way for `text`."""

    path: str
    start: int
    end: int
    text: str

    def apply(self, code: bytes) -> bytes:
        """Return the changed file."""
        return code[: self.start] + self.text.encode() + code[self.end :]

    def diff(self) -> str:
        """Return the change, with a line around it."""
        code = (ROOT / self.path).read_bytes()
        before, after = (text.decode().splitlines() for text in (code, self.apply(code)))
        return "\n".join(difflib.unified_diff(before, after, self.path, "mutant", n=1, lineterm=""))


def mutants_of(path: str) -> list[Mutant]:
    """Return every mutant of a file."""
    code = (ROOT / path).read_bytes()
    lines = [0]
    for line in code.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def place(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset

    return [Mutant(path, *place(node), text) for node, text in _changes(ast.parse(code))]


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Give each node that can be replaced, with its replacement."""
    match node:
        case ast.Compare(left, [operator, *rest], comparators) if type(operator) in COMPARED:
            other = ast.Compare(left, [COMPARED[type(operator)](), *rest], comparators)
            yield node, f"({ast.unparse(other)})"
        case ast.BinOp(left, operator, right) if type(operator) in COMPUTED:
            yield node, f"({ast.unparse(ast.BinOp(left, COMPUTED[type(operator)](), right))})"
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield node, f"({ast.unparse(ast.BoolOp(other, values))})"
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(bool(value)):
            yield node, str(not value)
        case ast.Constant(int(value) | float(value)):
            yield node, str(value + 1)
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield node, "return None"
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield node, "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
    for name, inner in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if name == "args" and isinstance(node, ast.Call) and ast.unparse(node.func) in ("setting", "trick"):
            continue  # the default
        for each in inner if isinstance(inner, list) else [inner]:
            if isinstance(each, ast.AST) and not _left_out(each):
                yield from _changes(each)


def _left_out(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.Assign([ast.Name(name)]) | ast.keyword(name):
            return name in TUNING
    return False


def tests_of(path: str) -> tuple[str, ...]:
    """Return the arguments of pytest for the tests of a file."""
    room = max((beginning for beginning in TESTS if path.startswith(beginning)), key=len)
    return tuple(f"tests/{test}" for test in TESTS[room].split())


class Copy:
    """A copy of the checkout, in which one mutant at a time is tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=ignore)
        if not (folder / "fastcifar/kernels").exists():
            (folder / "fastcifar/kernels").symlink_to("../kernels")

    def run(self, tests: tuple[str, ...], limit: float, mutant: Mutant | None = None) -> str:
        """Return what became of a mutant: "survived" the tests, "killed" by one, or "too slow" for so many seconds."""
        file = self.folder / (mutant.path if mutant else "pyproject.toml")
        before = file.read_bytes()
        quiet = ("-x", "-q", "--no-header", "--hypothesis-seed=0", "-p", "no:cacheprovider")
        # Without compiled files: a mutant may be as long and as old as the one before.
        own = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        file.write_bytes(mutant.apply(before) if mutant else before)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *quiet, *tests],
            cwd=self.folder,
            env={**os.environ, **own},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return "killed" if process.wait(limit) else "survived"
        except subprocess.TimeoutExpired:
            return "too slow"
        finally:
            if process.returncode is None:  # with the processes that the tests started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            file.write_bytes(before)


def main() -> int:
    """Test a sample of mutants, print the survivors and return the exit status."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=150, help="mutants to test; 0: all")
    options.add_argument("--only", default="", help="the beginning of the paths to mutate")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = options.parse_args()

    files = sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    files = [path for path in files if path.startswith(options.only) and "/named/" not in path]
    known = [mutant for path in files for mutant in mutants_of(path)]
    sample = random.Random(options.seed).sample(known, min(options.count or len(known), len(known)))
    print(f"{len(sample)} of {len(known)} mutants, seed {options.seed}", flush=True)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        free: SimpleQueue[Copy] = SimpleQueue()
        for number in range(options.processes):
            free.put(Copy(Path(folder) / str(number)))

        def run(tests: tuple[str, ...], limit: float, mutant: Mutant | None = None) -> tuple[str, float]:
            copy = free.get()
            try:
                start = time.monotonic()
                return copy.run(tests, limit, mutant), time.monotonic() - start
            finally:
                free.put(copy)

        def seconds_of(tests: tuple[str, ...]) -> float:
            outcome, seconds = run(tests, 600)
            if outcome != "survived":
                raise SystemExit(f"these tests fail without a mutant: {' '.join(tests)}")
            return seconds

        def survives(mutant: Mutant) -> bool:
            tests = tests_of(mutant.path)
            outcome, seconds = run(tests, 30 + 3 * usual[tests], mutant)
            line = (ROOT / mutant.path).read_bytes()[: mutant.start].count(b"\n") + 1
            print(f"{outcome:8} {seconds:4.0f} s {mutant.path}:{line}", flush=True)
            return outcome == "survived"

        rooms = sorted({tests_of(mutant.path) for mutant in sample})
        usual = dict(zip(rooms, pool.map(seconds_of, rooms), strict=True))
        survivors = [mutant for mutant, alive in zip(sample, pool.map(survives, sample), strict=True) if alive]
    for mutant in sorted(survivors, key=lambda mutant: (mutant.path, mutant.start)):
        print(f"\n{mutant.diff()}")
    killed = len(sample) - len(survivors)
    print(f"\nkilled {killed} of {len(sample)} ({killed / len(sample):.1%}); allowed: {LEAST:.0%} or more")
    return int(killed < LEAST * len(sample))


if __name__ == "__main__":
    sys.exit(main())
