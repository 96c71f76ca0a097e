"""What a code host reads: how to cite, the templates of issues, the list of changes."""

import re
from datetime import date
from pathlib import Path

import pytest

import fastcifar

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def read_yaml(path: str) -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML, which comes with the extra 'docs', is not installed")
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_citation_has_what_its_schema_requires_and_names_this_version():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["type"] == "software"
    assert [author["name"] for author in citation["authors"]] == ["The fastcifar developers"]
    assert (citation["title"], citation["license"]) == ("fastcifar", "MIT")
    assert citation["version"] == fastcifar.__version__
    assert isinstance(citation["date-released"], date)
    assert f'version="{fastcifar.__version__}"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_a_report_of_a_fault_asks_for_what_the_doctor_says():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {path.stem: read_yaml(str(path.relative_to(ROOT))) for path in folder.glob("*.yml")}
    assert forms.pop("config") == {"blank_issues_enabled": False}
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids) > 0
        assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in form["body"])
    doctor = next(field for field in forms["bug"]["body"] if field["id"] == "doctor")
    assert "fastcifar doctor --json" in doctor["attributes"]["label"] and doctor["validations"]["required"]


def test_changes_are_listed_as_keep_a_changelog_has_them():
    releases = re.findall(r"^## (.*)", CHANGELOG, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    kinds = re.findall(r"^### (.*)", CHANGELOG, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
