"""Tables and figures of results."""

import contextlib
import io
import itertools
import math
import re
import sys
import warnings
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.report import Figure, Line, Table, counted, percent, points, seconds, summarize
from fastcifar.report.figures import _apart

TABLE = Table("Found (n=2)", ("start", "test accuracy"), (("cold", "56.20%"), ("warm [x]", "51.70%")))


def test_a_table_in_markdown_has_its_title_heads_and_rows():
    assert TABLE.markdown().splitlines() == [
        "### Found (n=2)",
        "",
        "| start | test accuracy |",
        "| :-- | --: |",
        "| cold | 56.20% |",
        r"| warm \[x\] | 51.70% |",
    ]


def test_a_shown_table_has_the_same_texts(capsys):
    TABLE.show()
    out = capsys.readouterr().out
    assert all(text in out for text in ("Found (n=2)", "test accuracy", "56.20%", "warm [x]"))


def test_a_single_bar_is_drawn(tmp_path):
    line = Line([1.5], [0], 0, "mean", intervals=[(1.0, 2.0)], bars=True)
    assert "one arm" in Figure("seconds", "", (line,), rows=("one arm",)).save(tmp_path / "test")[1].read_text()


@pytest.mark.parametrize("columns", [10, 30, 60, 80])
def test_a_narrow_terminal_breaks_between_words_and_cuts_nothing_off(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    heads = ("start", "shrink-perturb: test", "shrink-perturb: training")
    rows = (("warm [x]", "56.20% ± 0.33", "1,000.0 s"), ("shrink and perturb", "51.70%", ""))
    Table("Found", heads, rows).show()
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    words = " ".join(["Found", *heads, *rows[0], *rows[1]]).split()
    assert sorted(out.replace("─", " ").split()) == sorted(words)
    assert max(map(len, out.splitlines())) <= max(columns, 58)  # a column's longest word, and two spaces


@pytest.mark.parametrize("columns", [100, 140])
def test_a_long_name_is_broken_before_a_table_is_wider_than_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    name = f"davidnet-mlp, network.kind mlp, optimizer.lr 0.01, dataset.sha256 {'0' * 60}, and 12 more differences"
    numbers = ("2", "0", "17.97% ± 0.40", "9.94%", "1.23 s")
    Table("Found", ("", "n", "failed", "tta accuracy", "std dev", "train"), ((name, *numbers),)).show()
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    assert any(all(number in line for number in numbers) for line in lines)
    assert "".join(line[: line.find("  ", 2)] for line in lines[4:] if line).replace(" ", "") == name.replace(" ", "")


def test_where_there_is_no_terminal_a_table_is_as_wide_as_its_rows(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    heads = tuple(f"shrink-perturb: round {number}" for number in range(9))
    Table("Found", heads, (heads,)).show()
    whole = [line for line in capsys.readouterr().out.splitlines() if all(head in line for head in heads)]
    assert len(whole) == 2


def test_a_title_says_n_and_an_interval_where_there_is_one():
    assert (counted(3), counted(1)) == ("n=3, ± 95% interval", "n=1, no interval")
    assert counted(2, "± 90%") == "n=2, ± 90%"


def test_a_mean_is_said_with_half_its_interval():
    both, one = summarize([0.5, 0.52]), summarize([0.5])
    half = 100 * (both.interval[1] - 0.51)
    assert (percent(both), percent(one)) == (f"51.00% ± {half:.2f}", "50.00%")
    assert (points(both), points(one)) == (f"+51.00 ± {half:.2f}", "+50.00")
    assert points(summarize([-0.01])) == "-1.00"
    assert seconds(summarize([1234.56])) == "1,234.6 s"


def test_a_figure_is_saved_in_three_formats_with_its_texts(tmp_path):
    pytest.importorskip("matplotlib")
    curve = Line([1, 2, 3], [10.0, None, 30.0], color=0, label="a run")
    bars = Line([1, 2, 3], [15.0, 20.0, 9.0], 1, "a mean", intervals=[(14.0, 16.0), (18.0, 23.0), None], marks=True)
    files = Figure("epoch", "accuracy (%)", (curve, bars), dashed_at=2.5, ticks=("x", "y"), title="Two, n=2")
    files = files.save(tmp_path / "new/test")
    assert [file.name for file in files] == ["test.png", "test.svg", "test.pdf"]
    assert [file.read_bytes()[:4] for file in files] == [b"\x89PNG", b"<?xm", b"%PDF"]
    drawn = files[1].read_text()
    assert all(f">{text}<" in drawn for text in ("epoch", "accuracy (%)", "a run", "a mean", "x", "y", "Two, n=2"))


@pytest.mark.parametrize("how", [{}, {"faint": True}, {"bare": True}])
@pytest.mark.parametrize("y", [[1.0], [None, 2.0], [1.0, 2.0]])
def test_a_line_of_one_point_has_a_mark_whatever_it_is(y, how):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().add_subplot()
    Figure._draw(axes, Line(range(len(y)), y, 0, **how))
    assert axes.lines[0].get_marker() == ("None" if how and len(y) - y.count(None) > 1 else "o")


def test_rows_have_names_from_the_top_and_level_bars():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure as Canvas

    line = Line([1.0, 0.0, -2.0], [0, None, 2], 0, intervals=[(0.5, 2.0), None, (-3.0, -1.5)], marks=True)
    axes = Canvas().add_subplot()
    Figure._draw(axes, line, level=True)
    segments = axes.containers[0].lines[2][0].get_segments()
    assert [bar.tolist() for bar in segments] == [[[0.5, 0], [2.0, 0]], [[-3.0, 2], [-1.5, 2]]]


def test_logarithmic_axes_have_plain_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    line = Line(
        [1, 2, 1024], [10.0, 200.0, 15_000.0], 0, "rate", intervals=[(9.0, 11.0), (150.0, 300.0), (12_000.0, 16_000.0)]
    )
    drawn = Figure("size", "rate", (line,), log=True).save(tmp_path / "test")[1].read_text()
    assert all(f">{text}<" in drawn for text in ("1,024", "10", "200", "10,000")) and "mathdefault" not in drawn


@pytest.mark.parametrize(
    ("decades", "shown", "absent"),
    [(3, ("0.02", "0.5", "1", "10"), ("0.03",)), (6, ("0.01", "1", "100"), ("0.2", "50")), (13, ("1",), ("2", "5"))],
)
def test_losses_over_many_decades_have_plain_and_few_numbers(tmp_path, decades, shown, absent):
    pytest.importorskip("matplotlib")
    line = Line(range(decades + 1), [0.01 * 10**place for place in range(decades + 1)], 0, "x")
    drawn = Figure("epoch", "loss", (line,), log_y=True).save(tmp_path / "test")[1].read_text()
    assert "mathdefault" not in drawn and all(f">{text}<" in drawn for text in shown)
    numbers = re.findall(r'id="text_\d+"', drawn)
    assert len(numbers) < 30 and not any(f">{text}<" in drawn.split('id="matplotlib.axis_2"')[1] for text in absent)


def test_a_long_legend_leaves_the_lines_room(tmp_path):
    pytest.importorskip("matplotlib")
    lines = tuple(Line([1, 2], [1.0, 2.0], color, f"optimizer.lr={color}, batch_size=256") for color in range(40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of axes without room
        Figure("epoch", "loss", lines).save(tmp_path / "test")


def test_colors_have_marks_of_their_own_by_which_they_are_known_in_gray():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().add_subplot()
    for color in range(10):
        Figure._draw(axes, Line(range(1000), [1.0] * 1000, color))
        Figure._draw(axes, Line([1, 2], [1.0, 2.0], color, dash=1))
    lines = axes.lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 10
    assert {(line.get_linestyle(), line.get_fillstyle()) for line in lines} == {("-", "full"), ("--", "none")}
    starts = {line.get_markevery() for line in lines[::2]}
    assert {every for _, every in starts} == {50} and len(starts) == 10  # few, and not above one another


heights = st.lists(st.floats(-0.5, 1.5), max_size=40).map(sorted)


@given(heights, st.floats(0.001, 0.2))
def test_names_are_apart_in_order_and_where_there_is_room_inside(wanted, gap):
    found = _apart(wanted, gap)
    assert len(found) == len(wanted) and all(each >= 0 for each in found)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(found))
    assert (len(wanted) - 1) * gap > 1 or all(each <= 1 + 1e-9 for each in found)


@given(heights.filter(len), st.data())
def test_names_are_where_they_belong_as_near_as_can_be(wanted, data):
    """No other places that are as far apart are nearer by their squared distances."""
    gap = data.draw(st.floats(0.001, 1 / len(wanted)))
    spare = data.draw(st.lists(st.floats(0, 1), min_size=len(wanted), max_size=len(wanted)).map(sorted))
    other = [each * (1 - (len(wanted) - 1) * gap) + rank * gap for rank, each in enumerate(spare)]
    found = _apart(wanted, gap)
    assert math.dist(found, wanted) <= math.dist(other, wanted) + 1e-6
    if all(b - a >= gap for a, b in itertools.pairwise(wanted)) and wanted[0] >= 0 and wanted[-1] <= 1:
        assert found == pytest.approx(wanted)


def test_names_beside_marks_do_not_overlap_and_are_not_cut():
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    names = [f"a-name-of-some-length-{place}" for place in range(14)]
    lines = tuple(Line([x], [60 + x % 3 / 100], 2, marks=True, note=name) for x, name in enumerate(names))
    with Figure("seconds", "accuracy", lines)._canvas() as canvas:
        canvas.draw_without_rendering()
    texts = [text for text in canvas.axes[0].texts if text.get_text()]
    boxes = sorted((Text.get_window_extent(text) for text in texts), key=lambda box: box.y0)  # without the thin lines
    assert sorted(text.get_text() for text in texts) == sorted(names)
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    assert all(canvas.bbox.x0 <= box.x0 and box.x1 <= canvas.bbox.x1 for box in boxes)
    assert all(canvas.bbox.y0 <= box.y0 and box.y1 <= canvas.bbox.y1 for box in boxes)


SVG = "{http://www.w3.org/2000/svg}"


def test_an_svg_of_a_page_takes_the_colors_of_its_theme():
    pytest.importorskip("matplotlib")
    band = [(1.0, 3.0), None]
    lines = Line([1, 2], [2.0, 2.5], 0, "a <b> & #000000", band=band), Line([1, 2], [0.0, 3.0], 1, area=True)
    figure = Figure("epoch", 'style="fill: #000000" id="x"', lines, dashed_at=1.5, title="Two\nlines")
    text = figure.svg("a-1")
    root = ElementTree.fromstring(text)
    assert text.startswith("<svg ") and root.tag == f"{SVG}svg" and root.get("fill") == "currentColor"
    assert root.get("aria-label") == "Two: lines"
    styles = " ".join(each.get("style", "") for each in root.iter())
    assert not re.search(r"#([0-9a-f]{2})\1\1|white|black", styles) and "currentColor" in styles
    assert not [each for each in root.iter() if each.tag in (f"{SVG}style", f"{SVG}metadata")]
    texts = {each.text for each in root.iter(f"{SVG}text")}
    assert {"a <b> & #000000", 'style="fill: #000000" id="x"', "Two", "lines", "epoch"} <= texts
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids)) and all(each.startswith("a-1-") for each in ids)
    asked = re.findall(r'(?:url\(#|href="#)([^)"]*)', text)
    assert asked and set(asked) <= set(ids)
    assert figure.svg("a-1") == text and not set(ids) & set(re.findall(r'\bid="([^"]*)"', figure.svg("b")))


def test_lines_beyond_the_ten_colors_are_dashed():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().add_subplot()
    for color in range(40):
        Figure._draw(axes, Line([1, 2], [1.0, 2.0], color, faint=bool(color % 2)))
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 40
    assert [axes.lines[color].get_linestyle() for color in (0, 9, 10)] == ["-", "-", "--"]


def test_a_dash_that_is_given_means_one_thing_and_marks_tell_the_colors_that_come_again_apart():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().add_subplot()
    for color in range(40):
        for dash in (0, 1):
            Figure._draw(axes, Line([1, 2], [1.0, 2.0], color, dash=dash))
    assert [(line.get_linestyle(), line.get_fillstyle()) for line in axes.lines] == [("-", "full"), ("--", "none")] * 40
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 40


@pytest.mark.parametrize("y", [[2.0], [None, 2.0]])
def test_the_band_of_one_point_is_a_bar(y):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().add_subplot()
    Figure._draw(axes, Line(range(len(y)), y, 0, band=[(1.0, 3.5)] * len(y)))
    (bar,) = axes.containers[0].lines[2][0].get_segments()
    assert bar.tolist() == [[len(y) - 1, 1.0], [len(y) - 1, 3.5]]


def test_points_at_one_place_are_drawn_beside_one_another():
    pytest.importorskip("matplotlib")
    lines = tuple(Line([1], [2.0], color, band=[(1.0, 3.0)], aside=10 * color) for color in (0, 1))
    with Figure("epoch", "loss", lines)._canvas() as canvas:
        canvas.draw_without_rendering()
    marks = [bars.lines[0] for bars in canvas.axes[0].containers]
    bars = [bars.lines[2][0] for bars in canvas.axes[0].containers]
    for one, two in (marks, bars):
        (left, low), (right, high) = (each.get_transform().transform((1, 2)) for each in (one, two))
        assert (right - left, high - low) == pytest.approx((10 / 72 * canvas.dpi, 0))


@pytest.mark.parametrize("scale", [{}, {"log": True}, {"log_y": True}, {"accuracies": True}])
@pytest.mark.parametrize("y", [[None, None], [0.0, None], []])
def test_lines_without_a_point_to_show_are_a_figure_too(tmp_path, scale, y):
    line = Line([0.25, 0.5][: len(y)], y, 0, "all diverged")
    files = Figure("rate", "loss", (line,), **scale).save(tmp_path / "test")
    assert all(file.stat().st_size for file in files)


def test_names_of_rows_are_in_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    line = Line([1.0, 2.0], [0, 1], 0, intervals=[(0.5, 2.0), (1.0, 3.0)], marks=True, label="a mean")
    files = Figure("points", "", (line,), dashed_at=0, rows=("first", "second")).save(tmp_path / "test")
    assert all(f">{text}<" in files[1].read_text() for text in ("first", "second", "points", "a mean"))


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"^figures need matplotlib, .*: pip install 'fastcifar\[plot\]'$"):
        Figure("x", "y", ()).save(tmp_path / "test")


def test_figures_cannot_be_saved_below_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^output folder .*file cannot be made: File exists$"):
        Figure("x", "y", (Line([1], [1.0], 0, "a"),)).save(tmp_path / "file/test")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


HOSTILE = [
    "a|b `c` <b>&amp;</b> [d](http://e.f) $x$ __y__ #",
    "\x1b[31mred\x1b[0m\rgone\n\u202eturned\u200b",
    "_hidden $\\frac{1}{$ $",
    ":warning: [bold]x[/bold]",
    "日本語の長い名前 😀",
    "\ud800\x00\x9b2J",
    "x" * 10_000,
    "",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text())


@settings(max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), texts)
def test_a_table_in_markdown_reads_back_as_its_texts(rows, title):
    markdown_it = pytest.importorskip("markdown_it")
    markdown = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = [t for t in markdown.parse(Table(title, ("", title), rows).markdown()) if t.type == "inline"]
    found = ["".join(part.content for part in t.children) for t in tokens]
    assert found == [shown(text).strip(" ") for text in (title, "", title, *(cell for row in rows for cell in row))]
    assert {part.type for t in tokens for part in t.children} <= {"text", "text_special"}


@settings(max_examples=30)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.booleans())
def test_a_shown_table_moves_no_cursor_and_has_a_line_for_each_row(rows, is_terminal):
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(out, "isatty", lambda: is_terminal)
        patch.setenv("COLUMNS", "2000")
        Table("title", ("name", "text"), rows).show()
    lines = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()
    assert all(line.isprintable() for line in lines)
    wanted = ["".join(" ".join(shown(cell, 200) for cell in row).split()) for row in rows]
    assert ["".join(line.split()) for line in lines[4 : 4 + len(rows)]] == wanted


@pytest.mark.parametrize("texts", [HOSTILE[:4], HOSTILE[4:]])
def test_a_figure_shows_any_text_as_what_it_is(texts, tmp_path):
    pytest.importorskip("matplotlib")
    lines = tuple(Line([0, 1], [1.0, 2.0], color, text) for color, text in enumerate(texts))
    figure = Figure(texts[0], texts[1], lines, ticks=tuple(texts), title=texts[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = figure.save(tmp_path / "test")
    found = [each.text for each in ElementTree.parse(files[1]).iter("{http://www.w3.org/2000/svg}text") if each.text]
    for text in filter(None, texts):
        assert sum(each.strip() in (shown(text, 50).strip(), shown(text, 70).strip()) for each in found) >= 2, text
