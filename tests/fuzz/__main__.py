"""Fuzz the parsers: give them inputs that are wrong or hostile, and report what none of them may do.

    python -m tests.fuzz                              # list the targets
    python -m tests.fuzz NAME ... --seconds 60        # fuzz them; --all: every one, each for so long
    python -m tests.fuzz NAME build/fuzz/NAME-HASH    # run one input, such as a finding

`tests/fuzz/engine.py` says what a target is and what a finding is. Each is written to build/fuzz/, and the program ends
with 1 if there are any. A seed (`--seed`) gives the same cases each time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: a worker that is forked must have no threads

from tests.fuzz import engine


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; or one target and the file to give it")
    parser.add_argument("--all", action="store_true", help="all targets")
    parser.add_argument("--seconds", type=float, help="seconds for each target (default: 60)")
    parser.add_argument("--cases", type=int, help="cases for each target, in place of seconds")
    parser.add_argument(
        "--quick", action="store_true", help="as many cases as the test suite runs, not as many seconds"
    )
    parser.add_argument("--seed", type=int, default=0, help="gives the same cases each time (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, for several targets or for one (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), metavar="DIR", help="default: build/fuzz")
    given = parser.parse_args()
    known = engine.names()
    if not given.names and not given.all:
        print("\n".join(known))
        return 0
    names, data = (known if given.all else given.names), None
    if len(names) == 2 and names[1] not in known and Path(names[1]).is_file():
        names, data = names[:1], Path(names[1]).read_bytes()
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no target {', '.join(unknown)}; allowed: {', '.join(known)}")
    seconds = given.seconds or (float("inf") if given.cases or given.quick else 60.0)
    run = partial(fuzzed, given=given, seconds=seconds, data=data, jobs=given.jobs if len(names) == 1 else 1)
    with ExitStack() as stack:
        each = map
        if len(names) > 1 and given.jobs > 1:  # processes, each with a target at a time: they fork, and have no threads
            each = stack.enter_context(ProcessPoolExecutor(given.jobs, multiprocessing.get_context("fork"))).map
        reports = []
        for report in each(run, names):
            reports.append(report)
            print(report, flush=True)
            for finding in report.findings:
                where = f"{finding.get('file', report.target)}: case {finding['case']} of seed {finding['seed']}"
                print(f"\n{where}\n{finding['what']}\n", flush=True)
    if given.json:
        engine.write_table(reports, given.json)
    return 1 if any(each.findings for each in reports) else 0


def fuzzed(name: str, given: argparse.Namespace, seconds: float, data: bytes | None, jobs: int) -> engine.Report:
    """Fuzz one target as the command line says, or give it `data` alone."""
    target = engine.Target.load(name)
    if data is not None:
        return engine.fuzz(target, cases=1, data=data)
    cases = given.cases or (target.cases if given.quick else sys.maxsize)
    return engine.fuzz(target, seed=given.seed, seconds=seconds, cases=cases, jobs=jobs, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
