"""The README's table of measurements, made from `bench/results/*.jsonl` so that no figure is typed by hand.

    python -m bench.tables            # rewrites the table in README.md
    python -m bench.tables --check    # exit code 1 where the README's is not the one that the results make

A line of a results file is a JSON object: `what` was measured, its `value` as shown, `n`, `spread`, `hardware`,
`versions`, `commit`, `date`, the `command` that reproduces it, and whatever else belongs to it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin measurements -->", "<!-- end measurements -->"
KEYS = ("what", "value", "n", "spread", "hardware", "versions", "commit", "date", "command")


def read_results(folder: Path) -> list[dict]:
    """Every result in the folder's .jsonl files, in their order. Raises ValueError for a line that lacks a key."""
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            result = json.loads(line)
            missing = [key for key in KEYS if key not in result]
            if missing:
                raise ValueError(f"{path.name} line {number} lacks {', '.join(missing)}")
            results.append(result)
    return results


def table(results: list[dict]) -> str:
    """The results as Markdown, a table for each hardware."""
    lines = []
    for hardware in dict.fromkeys(result["hardware"] for result in results):
        lines += [f"On {hardware}:", "", "| measured | result | n | spread | with |", "| --- | --- | --- | --- | --- |"]
        for result in results:
            if result["hardware"] == hardware:
                lines.append(
                    f"| {result['what']} | {result['value']} | {result['n']} | {result['spread']} "
                    f"| `{result['command']}` |"
                )
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def with_table(readme: str, results: list[dict]) -> str:
    """The README's text with its table made anew. Raises ValueError where it has no place for one."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = with_table(old, read_results(ROOT / "bench" / "results"))
    if check:
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
