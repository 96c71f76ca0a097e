"""Compare this checkout with another: bit for bit what it computes on the CPU, and the time of a step.

    git worktree add ../base COMMIT
    python -m bench.golden --base ../base                      # a few recipes, in a minute or two
    python -m bench.golden --base ../base --all                # all named recipes: 8 minutes on two cores
    python -m bench.golden --base ../base --recipe speedrun96 --only steps --dtype float32
    python -m bench.golden --base ../base --only time          # a training step beside the base's, in turn

Each recipe is trained on the synthetic dataset in both checkouts at once, and the sha256 of every tensor is compared:
of the evaluated weights and statistics, the logits, every epoch's training loss and accuracies, and the test
accuracies. `steps` trains the recipe at its full widths and batch, for 20 steps or some more, in so many epochs that
all its stages occur, in its own compute type on this CPU. `quick` trains its quick form, and then, in the same trainer,
from these weights, shrunk and perturbed; in that type and in float32. What differs is named, and the exit code is 1.
In float32 `steps` of all recipes take twice as long: `--dtype float32`.

`time` must be asked for, as it needs a machine that does nothing else: davidnet and speedrun94 unless recipes are
named, in rounds in which one checkout's process steps while the other's waits: a step at each size of the images, and
from these and the number of each all steps of a training. The base is never written to.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench.program import add_save_option, new_parser, run_program
from bench.record import ROOT, commit, show
from bench.resident import ProgramError, Resident
from fastcifar.errors import UserError
from fastcifar.experiments.named.verify import shorten
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.training import resolve_dtype

SOME = ("speedrun94", "speedrun95", "warmstart-resnet18", "warmstart-mlp", "warmstart-narrow")
TIMED = ("davidnet", "speedrun94")
QUICK_IMAGES = 400
STEPS_A_ROUND = 3
_SIDE = 32

Tensors = Mapping[str, torch.Tensor]


def main() -> int:
    parser = new_parser("bench.golden", __doc__)
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="a worktree of an earlier commit")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every named recipe")
    which.add_argument("--recipe", nargs="+", choices=list(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--only", choices=("steps", "quick", "time"), help="default: steps and quick")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="compute everything in this type")
    parser.add_argument("--threads", type=int, metavar="N", help="of each process; default: 1, of time torch's number")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of time; 5 or more")
    add_save_option(parser)
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        raise UserError(f"--rounds is {arguments.rounds}; allowed: 5 or more")
    threads = arguments.threads
    if threads is None:
        threads = torch.get_num_threads() if arguments.only == "time" else 1
    if threads < 1:
        raise UserError(f"--threads is {threads}; allowed: 1 or more")
    if arguments.save and arguments.only != "time":
        raise UserError("--save is for times; allowed: with --only time")
    with Checkouts(arguments.base, threads) as checkouts:
        print(f"base: {checkouts.describe('base')}\nthis: {checkouts.describe('this')}")
        print(f"torch {torch.__version__} on the CPU, threads of each process: {threads}", flush=True)
        names = arguments.recipe or (RECIPES if arguments.all else TIMED if arguments.only == "time" else SOME)
        recipes = [RECIPES[name] for name in names_in_base(names, checkouts.recipes)]
        if arguments.only == "time":
            for recipe in recipes:
                for record in time_steps(checkouts, recipe, arguments.dtype, arguments.rounds):
                    show(record, arguments.save, "cpu")
            return 0
        parts = (arguments.only,) if arguments.only else ("quick", "steps")  # what takes seconds first
        return compare_all(checkouts, recipes, parts, arguments.dtype)


def names_in_base(names: Iterable[str], base: Sequence[str]) -> list[str]:
    """Return those of `names` that the `base` has; print the others. Raises UserError where it has none."""
    new = [name for name in names if name not in base]
    known = [name for name in names if name in base]
    if not known:
        raise UserError(f"the base has no recipe {', '.join(new)}; allowed: {', '.join(base)}")
    if new:
        print(f"not in the base, so not compared: {', '.join(new)}")
    return known


def compare_all(checkouts: Checkouts, recipes: Sequence[Recipe], parts: Sequence[str], dtype: str | None) -> int:
    """Print a line for every comparison, of each of `parts` for each recipe, and return the exit code. `dtype` is the
    compute type; None: the recipe's own, and for "quick" float32 too."""
    start, done, different = time.perf_counter(), 0, 0
    for part, recipe in itertools.product(parts, recipes):
        own = own_dtype(recipe)
        for kind in (dtype,) if dtype else (own,) if part == "steps" else dict.fromkeys(("float32", own)):
            outcome, is_equal = checkouts.compare(recipe, part, kind)
            print(f"{recipe.name} {part} {kind}: {'equal' if is_equal else 'DIFFERENT'}, {outcome}", flush=True)
            done, different = done + 1, different + (not is_equal)
    verdict = f"{different} different" if different else "all equal"
    print(f"{done} comparisons, {verdict}, in {time.perf_counter() - start:.0f} s")
    return int(different > 0)


class Checkouts:
    """The base and this checkout, `workers["base"]` and `workers["this"]`: processes of `bench.golden_worker`. Raises
    UserError where `base` is no checkout or its fastcifar cannot be imported."""

    def __init__(self, base: Path, threads: int) -> None:
        self.folders = {"base": base.resolve(), "this": ROOT}
        self._scratch = tempfile.TemporaryDirectory(prefix="fastcifar-golden-")
        self.workers: dict[str, Resident] = {}
        try:
            scratch = Path(self._scratch.name)
            views = {side: make_view(checkout, scratch / side) for side, checkout in self.folders.items()}
            environment = {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
            for side, view in views.items():
                self.workers[side] = Resident(side, "bench.golden_worker", [view], environment)
            self.facts = {
                side: worker.ask({"checkout": str(self.folders[side]), "threads": threads})
                for side, worker in self.workers.items()
            }
        except BaseException:
            self.close()
            raise

    @property
    def recipes(self) -> list[str]:
        """The names of the base's recipes."""
        return self.facts["base"]["recipes"]

    def describe(self, side: str) -> str:
        """Return the commit, and the files that its process imported."""
        return f"commit {commit(self.folders[side])}, {', '.join(self.facts[side]['files'])}"

    def compare(self, recipe: Recipe, part: str, dtype: str) -> tuple[str, bool]:
        """Train on both sides at once; returns the outcome in words, and whether all bits are equal."""
        request = {"recipe": recipe.name, "part": part, "dtype": dtype, "train_size": QUICK_IMAGES}
        if part == "steps":
            request["epochs"], request["train_size"] = shorten(recipe, _SIDE)

        def tensors_of(side: str) -> dict[str, torch.Tensor] | ProgramError:
            out = Path(self._scratch.name) / f"{side}.pt"
            try:
                self.workers[side].ask({**request, "out": str(out)})
                return torch.load(out, weights_only=True)
            except ProgramError as error:
                return error

        with ThreadPoolExecutor(len(self.workers)) as pool:
            base, this = pool.map(tensors_of, ("base", "this"))
        failures = [error for error in (base, this) if isinstance(error, ProgramError)]
        for error in failures:
            print(error.traceback, file=sys.stderr)
        if failures:
            return "; ".join(map(str, failures)), False
        if apart := difference(base, this):
            return apart, False
        return f"{this['steps']} steps, {len(this)} tensors, sha256 {digest(this)}", True

    def close(self) -> None:
        """End both processes."""
        for worker in self.workers.values():
            worker.close()
        self._scratch.cleanup()

    def __enter__(self) -> Checkouts:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def make_view(checkout: Path, folder: Path) -> Path:
    """Make `folder` and return it, with links through which Python imports the fastcifar of `checkout`, its kernels
    too: an installation in place would give another checkout's. Raises UserError where `checkout` is none."""
    for needed in ("fastcifar/__init__.py", "kernels/__init__.py"):
        if not (checkout / needed).is_file():
            raise UserError(f"{checkout} has no {needed}; allowed: the folder of a git worktree of fastcifar")
    package = folder / "fastcifar"
    package.mkdir(parents=True)
    for entry in (checkout / "fastcifar").iterdir():
        if entry.name not in ("__pycache__", "kernels"):
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(checkout / "kernels")
    return folder


def time_steps(checkouts: Checkouts, recipe: Recipe, dtype: str | None, rounds: int) -> list[dict[str, object]]:
    """Time `rounds` rounds of `STEPS_A_ROUND` steps on noise of every stage on each side, after one that does not
    count, each side being first in turn. Returns results as `bench.record.append` takes them: a step of each size of
    the images that both have, and all steps of the training, by each side's own recipe of that name."""
    dtype = dtype or own_dtype(recipe)
    request = {
        "recipe": recipe.name,
        "part": "time",
        "dtype": dtype,
        "train_size": shorten(recipe, _SIDE)[1],
        "steps": STEPS_A_ROUND,
    }
    stages: dict[str, list[list[dict[str, float]]]] = {"base": [], "this": []}
    order = ["base", "this"]
    for _ in range(rounds + 1):
        for side in order:
            stages[side].append(checkouts.workers[side].ask(request)["stages"])
        order.reverse()
    rounds_of = {side: answers[1:] for side, answers in stages.items()}
    by_size = {
        side: {stage["size"]: [each[place]["seconds"] for each in answers] for place, stage in enumerate(answers[0])}
        for side, answers in rounds_of.items()
    }
    whole = {
        side: [sum(stage["steps"] * stage["seconds"] for stage in each) for each in answers]
        for side, answers in rounds_of.items()
    }
    before = commit(checkouts.folders["base"])

    def result(what: str, this: list[float], base: list[float]) -> dict[str, object]:
        ratios = [one / other for one, other in zip(this, base, strict=True)]
        return {
            "table": None,
            "what": f"{what} of `{recipe.name}` in {dtype} against commit {before}",
            "value": f"{statistics.median(ratios):.3f} of its time",
            "n": rounds,
            "spread": f"{min(ratios):.3f} to {max(ratios):.3f}",
            "command": f"python -m bench.golden --base DIR --only time --recipe {recipe.name} --dtype {dtype}",
            "base": before,
            "seconds": this,
            "base_seconds": base,
        }

    sizes = [size for size in by_size["this"] if size in by_size["base"]]
    steps = [
        result(f"training step at {size:g} pixels", by_size["this"][size], by_size["base"][size]) for size in sizes
    ]
    return [*steps, result("all steps of a training", whole["this"], whole["base"])]


def difference(base: Tensors, this: Tensors) -> str | None:
    """Return how many tensors differ, which is the first and by how much; None where all bits are equal."""
    if lacking := [name for name in (*base, *this) if name not in base or name not in this]:
        side = "the base" if lacking[0] in base else "this checkout"
        return f"{len(lacking)} tensors are on one side alone: first {lacking[0]}, in {side}"
    apart = {name: _apart(base[name], this[name]) for name in base if _sha256(base[name]) != _sha256(this[name])}
    if not apart:
        return None
    first, most = next(iter(apart)), max(apart, key=apart.__getitem__)
    return (
        f"{len(apart)} of {len(base)} tensors: first {first}, by up to {apart[first]:.3g}; "
        f"most {most}, by up to {apart[most]:.3g}"
    )


def _apart(base: torch.Tensor, this: torch.Tensor) -> float:
    """Return the largest absolute difference; infinite where one is not a number, and for other shapes or dtypes."""
    if base.shape != this.shape or base.dtype != this.dtype:
        return math.inf
    base, this = base.double(), this.double()
    return torch.where(base == this, 0.0, (base - this).abs()).nan_to_num(nan=math.inf).amax().item()


def digest(tensors: Tensors) -> str:
    """Return the sha256 of all tensors and their names, in the names' order."""
    lines = (f"{name} {_sha256(tensors[name])}\n" for name in sorted(tensors))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(tensor: torch.Tensor) -> str:
    """Return the sha256 of dtype, shape and bytes."""
    hashed = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    hashed.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()


def own_dtype(recipe: Recipe) -> str:
    """Return the compute type that the recipe has on this CPU."""
    return str(resolve_dtype(recipe.dtype, torch.device("cpu"))).removeprefix("torch.")


if __name__ == "__main__":
    run_program("bench.golden", main)
