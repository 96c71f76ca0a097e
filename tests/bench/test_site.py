"""What is made while the site is built; `make docs` builds it."""

import re

import pytest

import fastcifar
from bench.site import OUTSIDE, ROOT, apart, drawing, in_site, reference
from tests.test_layout import MAY_IMPORT

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = {*DOCS, *(path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in ROOT.glob(pattern))}


@pytest.mark.parametrize(
    ("source", "link", "made"),
    [
        ("docs/a.md", "[b](b.md#c)", "[b](b.md#c)"),
        ("docs/posts/1-baseline.md", "[b](../ladder.md)", "[b](../ladder.md)"),
        ("docs/course.md", "[b](../CONTRIBUTING.md#x)", "[b](CONTRIBUTING.md#x)"),
        ("CONTRIBUTING.md", "[b](docs/course.md)", "[b](course.md)"),
        ("examples/course/README.md", "[b](../../docs/course.md)", "[b](../../course.md)"),
        ("docs/course.md", "[b](../examples/course)", "[b](examples/course/README.md)"),
        ("docs/course.md", "[b](../README.md)", "[b](index.md)"),
        ("docs/course.md", "[the rule](../setup.py)", "the rule (`setup.py`)"),
        ("docs/course.md", "[setup.py](../setup.py)", "`setup.py`"),
        ("docs/course.md", "[b](https://example.org/c.md)", "[b](https://example.org/c.md)"),
        ("docs/course.md", "[b](#here)", "[b](#here)"),
        ("docs/course.md", "```sh\n[b](../setup.py)\n```", "```sh\n[b](../setup.py)\n```"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site_or_is_a_files_name(source, link, made):
    assert in_site(link, source, PAGES) == made


def test_a_link_to_what_is_not_there_is_refused():
    with pytest.raises(FileNotFoundError, match=r"docs/a.md has a link to ../no.py, which does not exist"):
        in_site("[b](../no.py)", "docs/a.md", PAGES)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_of_pages_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    in_site(text, page, PAGES)
    within = re.findall(r"(?<!`)\]\((?!\w+:|#)([^()#\s]+)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL))
    assert [link for link in within if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [
        page for page in DOCS if not page.startswith("docs/tricks/") and page.removeprefix("docs/") not in text
    ] == []


def test_every_public_name_is_in_the_reference_once():
    shown = re.findall(r"^::: fastcifar\.(?:.*\.)?(\w+)$", "\n".join(reference().values()), re.MULTILINE)
    assert sorted(shown) == sorted(fastcifar.__all__)


def test_a_list_stands_apart_from_the_paragraph_above():
    assert apart("New:\n- one\n  more\n- two\n\nEnd.") == "New:\n\n- one\n  more\n- two\n\nEnd."


def test_a_drawing_in_a_page_takes_its_colors():
    svg = (ROOT / "docs" / "figures" / "way.svg").read_text(encoding="utf-8")
    made = drawing(svg, 'a "way"')
    assert "prefers-color-scheme" in svg and "<style>" not in made and "currentColor" in made
    assert made.startswith('<svg role="img" aria-label="a &quot;way&quot;" ')


def test_the_architecture_has_every_room_in_its_drawing_and_in_its_table():
    rooms = {*MAY_IMPORT, "kernels", "cli"}
    svg = (ROOT / "docs" / "figures" / "rooms.svg").read_text(encoding="utf-8")
    assert set(re.findall(r">([a-z_]+)</text>", svg)) == rooms
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rooms <= {room for row in rows for room in re.findall(r"`(?:fastcifar/)?(\w+)(?:\.py|/)`", row)}


def test_docstrings_have_their_arguments_as_lists():
    pytest.importorskip("griffe")
    from bench.docstrings import in_markdown

    text = "Train.\n\nlr: the rate,\n    at most 1.\na, b: two.\n\nReturns: nothing.\n\nRaises UserError."
    made = in_markdown(text, {"lr", "a", "b"})
    assert "\n- **`lr`**: the rate,\n    at most 1.\n- **`a, b`**: two.\n" in made
    assert "\n\nReturns: nothing.\n\nRaises UserError." in made
