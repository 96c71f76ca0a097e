"""`fastcifar doctor`: whether this machine can train, what is missing, and what to do.

It runs where packages are missing or broken, tyro too, which reads the flags.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from fastcifar.cli.streams import wrapped
from fastcifar.doctor import STATUSES, Asked, Finding, examine
from fastcifar.errors import UserError

_NAME = 12
"""Columns of a check's name."""


def main(args: Sequence[str]) -> int:
    asked, as_json = _read(args)
    with contextlib.redirect_stdout(io.StringIO()):  # what a library prints as it is imported
        findings = examine(asked)
    if as_json:
        print(json.dumps([_entry(each) for each in findings], indent=2))
    else:
        print("\n".join(_lines(each) for each in findings))
        counts = [f"{sum(each.status == status for each in findings)} {status}" for status in STATUSES]
        print(f"\n{', '.join(counts)}")
    return max(STATUSES.index(each.status) for each in findings)


def _read(args: Sequence[str]) -> tuple[Asked, bool]:
    """Return what the flags in `args` ask for, and whether the answer is JSON. Raises UserError for others."""
    try:
        from fastcifar.cli.doctor_options import Options, parse

        options = parse(args, Options(), "fastcifar doctor")
    except UserError:
        raise
    except Exception:  # of tyro, which is missing or broken: a check says so
        return Asked(), "--json" in args
    return Asked(options.dataset, options.data_dir, options.mirror), options.json


def _entry(finding: Finding) -> dict[str, Any]:
    entry = dataclasses.asdict(finding)
    return {name: entry[name] for name in ("name", "status", "found", "advice")}


def _lines(finding: Finding) -> str:
    """Return the finding in lines as wide as the terminal, what to do under what was found."""
    indent = " " * (6 + _NAME)
    lines = [wrapped(_shown(finding.found), f"{finding.status:<6}{finding.name:<{_NAME}}", indent)]
    if finding.advice:
        lines.append(wrapped(_shown(finding.advice), f"{indent}-> ", f"{indent}   "))
    return "\n".join(lines)


def _shown(text: str) -> str:
    """Return `text` in one line, with escapes for characters that would control a terminal."""
    words = " ".join(text.split())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in words)
