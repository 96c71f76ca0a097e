"""Tables and figures of results."""

import sys

import pytest

from fastcifar.errors import UserError
from fastcifar.report import Figure, Line, Table, percent, points, seconds, summarise

TABLE = Table("Found (n=2)", ("start", "test accuracy"), (("cold", "56.20%"), ("warm [x]", "51.70%")))


def test_a_table_in_markdown_has_its_title_heads_and_rows():
    assert TABLE.markdown().splitlines() == [
        "### Found (n=2)",
        "",
        "| start | test accuracy |",
        "| :-- | --: |",
        "| cold | 56.20% |",
        "| warm [x] | 51.70% |",
    ]


def test_a_shown_table_has_the_same_texts(capsys):
    TABLE.show()
    out = capsys.readouterr().out
    assert all(text in out for text in ("Found (n=2)", "test accuracy", "56.20%", "warm [x]"))


def test_a_mean_is_said_with_half_its_interval():
    both, one = summarise([0.5, 0.52]), summarise([0.5])
    half = 100 * (both.interval[1] - 0.51)
    assert (percent(both), percent(one)) == (f"51.00% ± {half:.2f}", "50.00%")
    assert (points(both), points(one)) == (f"+51.00 ± {half:.2f}", "+50.00")
    assert points(summarise([-0.01])) == "-1.00"
    assert seconds(summarise([1234.56])) == "1,234.6 s"


def test_a_figure_is_saved_in_three_formats_with_its_texts(tmp_path):
    pytest.importorskip("matplotlib")
    curve = Line([1, 2, 3], [10.0, None, 30.0], color=0, label="a run")
    bars = Line([1, 2], [15.0, 20.0], 1, "a mean", intervals=[(14.0, 16.0), (18.0, 23.0)], marks=True)
    files = Figure("epoch", "accuracy (%)", (curve, bars), dashed_at=2.5, ticks=("x", "y")).save(tmp_path / "new/test")
    assert [file.name for file in files] == ["test.png", "test.svg", "test.pdf"]
    assert [file.read_bytes()[:4] for file in files] == [b"\x89PNG", b"<?xm", b"%PDF"]
    drawn = files[1].read_text()
    assert all(f">{text}<" in drawn for text in ("epoch", "accuracy (%)", "a run", "a mean", "x", "y"))


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"^figures need matplotlib, .*: pip install 'fastcifar\[plot\]'$"):
        Figure("x", "y", ()).save(tmp_path / "test")


def test_figures_cannot_be_saved_below_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save figures in"):
        Figure("x", "y", (Line([1], [1.0], 0, "a"),)).save(tmp_path / "file/test")
