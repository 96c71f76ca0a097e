"""Make the tables of results in README.md and docs/ from `bench/results/`, so that no figure is typed by hand.

    python -m bench.tables            # rewrites the tables
    python -m bench.tables --check    # exit code 1 where they are not those that the results make

Each table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. `bench.record` says what a result is. One that
names no table is a line of the table `measurements`; those of a GPU are made of `bench/results/h100`. Pages of `KEPT`
have the tables that an experiment's folder `bench/results/.../NAME` keeps, README.md those of `bench.headline`.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

from bench.headline import gpu_results, headline
from bench.program import new_parser
from bench.record import ROOT, missing_keys
from fastcifar.escape import in_markdown, shown

DEFAULT = "measurements"
PAGES = {
    **{"reliability": "docs/reliability.md", "transfer": "docs/transfer.md", "course": "docs/course.md"},
    **{"tutorial": "docs/transfer.md", "course-sweeps": "examples/course/README.md"},
}
"""The page of a table, where that is not docs/results.md."""
KEPT = {"posts": "docs/posts/*.md", "warm-start": "docs/warm-start.md"}
"""The pages that show the tables which the experiments in a folder of bench/results keep."""
_MARKED = re.compile(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def read_results(folder: Path) -> list[dict]:
    """Return the results in the folder's .jsonl files, in order. Raises ValueError for a line that lacks a key."""
    results = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            result = json.loads(line)
            if missing := missing_keys(result):
                raise ValueError(f"{path.name} line {number} lacks {', '.join(missing)}")
            results.append(result)
    return results


def cells(result: dict) -> dict[str, str]:
    """Return heading to cell of a result's line in its table; the cells are Markdown."""
    measured = {"measured": "what", "result": "value", "n": "n", "spread": "spread"}
    row = result.get("row") or {heading: result[key] for heading, key in measured.items()}
    return {**row, "with": f"`{result['command']}`"}


def table(results: list[dict]) -> str:
    """Return the results of one table as Markdown, under a line for each hardware; a cell that is missing is a dash."""
    lines = []
    for hardware in dict.fromkeys(result["hardware"] for result in results):
        rows = [cells(result) for result in results if result["hardware"] == hardware]
        headings = list(dict.fromkeys(heading for row in rows for heading in row))
        lines += [f"On {in_markdown(hardware)}:", "", _line(headings), _line(["---"] * len(headings))]
        lines += [_line([row.get(heading, "-") for heading in headings]) for row in rows]
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def _line(texts: list[object]) -> str:
    return "| " + " | ".join(shown(text).replace("|", "\\|") for text in texts) + " |"


def with_tables(text: str, results: list[dict]) -> str:
    """Return the text with its tables made anew. Raises ValueError where it has no place for a table, and where it has
    one without results."""
    by_table: dict[str, list[dict]] = {}
    for result in results:
        by_table.setdefault(result.get("table", DEFAULT), []).append(result)
    by_table.pop(None, None)
    places = _MARKED.findall(text)
    for name in by_table.keys() - set(places):
        raise ValueError(f"the page has no <!-- begin {name} --> ... <!-- end {name} --> for the results")
    for name in set(places) - by_table.keys():
        raise ValueError(f"the page has a table {name}, and no result is for it")
    return _MARKED.sub(lambda m: f"<!-- begin {m[1]} -->\n{table(by_table[m[1]])}\n<!-- end {m[1]} -->", text)


def with_kept_tables(text: str, folder: Path) -> str:
    """Return the text with the tables and remarks of NAME/table.md in `folder` between the markers NAME. Raises
    FileNotFoundError where there is none."""

    def kept(match: re.Match[str]) -> str:
        tables = (folder / match[1] / "table.md").read_text(encoding="utf-8").partition("\n")[2].strip()
        titled = re.sub(r"^### (.*)$", r"\1:", tables, flags=re.MULTILINE)
        return f"<!-- begin {match[1]} -->\n{titled}\n<!-- end {match[1]} -->"

    return _MARKED.sub(kept, text)


def with_headline(text: str, results: list[dict], campaigns: Path) -> str:
    """Return the text with the tables of `headline` between its markers."""
    tables = headline(results, campaigns)
    return _MARKED.sub(lambda m: f"<!-- begin {m[1]} -->\n{tables}\n<!-- end {m[1]} -->", text)


def by_page(results: list[dict]) -> dict[str, list[dict]]:
    """Return `results[page]` of the results that are in a table."""
    found: dict[str, list[dict]] = {}
    for result in results:
        found.setdefault(PAGES.get(result.get("table", DEFAULT), "docs/results.md"), []).append(result)
    return found


def outside_tables(text: str) -> str:
    """Return the text without what stands between markers."""
    return _MARKED.sub("", text)


def main() -> int:
    parser = new_parser("bench.tables", __doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    folder = ROOT / "bench" / "results"
    results = read_results(folder)
    shown = by_page([*results, *gpu_results(folder / "h100")])
    making = {ROOT / name: partial(with_tables, results=found) for name, found in shown.items()}
    making[ROOT / "README.md"] = partial(with_headline, results=results, campaigns=folder / "h100")
    for name, pattern in KEPT.items():
        kept = partial(with_kept_tables, folder=folder / name)
        making |= dict.fromkeys(ROOT.glob(pattern), kept)
    stale = []
    for page, make in making.items():
        old = page.read_text(encoding="utf-8")
        new = make(old)
        stale += [page] * (new != old)
        if not check:
            page.write_text(new, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
