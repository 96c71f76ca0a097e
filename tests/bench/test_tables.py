"""The README's figures are those of the committed results."""

import json
from pathlib import Path

import pytest

from bench.tables import KEYS, read_results, table, with_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, read_results(ROOT / "bench" / "results")) == readme


def test_a_changed_result_changes_the_table(tmp_path):
    result = dict.fromkeys(KEYS, "x") | {"value": "94.00%"}
    (tmp_path / "a.jsonl").write_text(json.dumps(result) + "\n")
    assert "94.00%" in table(read_results(tmp_path))


def test_a_result_without_its_n_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({key: 1 for key in KEYS if key != "n"}))
    with pytest.raises(ValueError, match=r"a.jsonl line 1 lacks n"):
        read_results(tmp_path)


def test_a_readme_without_a_place_for_the_table_is_refused():
    with pytest.raises(ValueError, match="the README has no <!-- begin"):
        with_table("text", [])
