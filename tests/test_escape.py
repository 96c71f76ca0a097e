"""Texts of files and flags read back from where they were put as what they are, and do nothing there."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastcifar.escape import code_in_markdown, in_file_name, in_markdown, shown, shown_lines

markdown_it = pytest.importorskip("markdown_it")
MARKDOWN = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "a|b\\|c\\\\|d",
    "`x` ``y` | $z$",
    "<b>&amp;</b> <!-- & -->",
    "[link](http://a.b) ![x](y) <http://a.b> www.a.b",
    "__init__ *x* _y_ a_b ~~z~~ # #",
    "line\nbreak\r\x1b[31mred\x1b[0m\x07",
    "\u202eturned\u200b\u2066 \ud800 \x00 \x85 \u2028",
    "\\",
    "- # 1.",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(), st.text("|\\`*_[]<>&#~$!()- ab", max_size=12))
quick = settings(max_examples=60)


def read(tokens):
    """Return the text of inline tokens, and the kinds of those that are no plain text."""
    return "".join(t.content for t in tokens), {t.type for t in tokens} - {"text", "text_special"}


@quick
@given(texts)
@example("a\\")
def test_a_cell_reads_as_its_text_and_as_nothing_else(text):
    table = f"| a | b |\n| :-- | --: |\n| {in_markdown(text)} | 2 |\n"
    cells = [t for t in MARKDOWN.parse(table) if t.type == "inline"]
    assert [t.content for t in cells[:2] + cells[3:]] == ["a", "b", "2"]
    assert read(cells[2].children) == (shown(text).strip(" "), set())


@quick
@given(texts)
def test_a_heading_reads_as_its_text(text):
    tokens = MARKDOWN.parse(f"# x {in_markdown(text)}\n")
    assert [t.type for t in tokens] == ["heading_open", "inline", "heading_close"]
    assert read(tokens[1].children) == (f"x {shown(text)}".rstrip(" "), set())


@quick
@given(texts)
def test_code_reads_as_its_text(text):
    _, code, _ = MARKDOWN.parseInline(f"x {code_in_markdown(f'a{text}')} y")[0].children
    assert (code.type, code.content) == ("code_inline", shown(f"a{text}"))


@quick
@given(st.text())
def test_a_shown_text_is_one_line_that_can_be_written_anywhere(text):
    line = shown(text)
    assert line.isprintable()
    line.encode("utf-8")
    assert (line == text) == text.isprintable()
    assert shown_lines(f"{text}\n{text}").count("\n") == 2 * text.count("\n") + 1


def test_what_is_shown_escaped_and_cut():
    assert shown("a\x1b[2J\r\n\u202eb\u200b\ud800") == r"a\x1b[2J\r\n\u202eb\u200b\ud800"
    assert shown("größer, 日本 😀") == "größer, 日本 😀"
    assert (shown("x" * 99, 5), shown("12345", 5)) == ("xxxx…", "12345")


@quick
@given(st.text(), st.text(max_size=3))
def test_the_name_of_a_file_is_one(text, other):
    names = [in_file_name(each) for each in (text, 300 * text + other, 300 * text + other + "x")]
    for name in names:
        assert re.fullmatch(r"[\w+-][\w.+-]*", name) and len(name.encode()) <= 80
        assert (Path("runs") / name).parent == Path("runs")
    assert names[1] != names[2]
