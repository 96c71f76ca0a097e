"""What a screen shows: lines, bars in a terminal, a table in a notebook; by a clock that tests set."""

import io
import itertools
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import fastcifar.screen
from fastcifar.escape import shown
from fastcifar.screen import Screen, duration, fitted, sparkline
from tests.cli.test_hostile_text import HOSTILE


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(fastcifar.screen.time, "monotonic", lambda: now.seconds)
    return now


def a_terminal(monkeypatch):
    """Make standard error a terminal of 80 columns, and return it."""
    made = Terminal()  # (no fixture: pytest captures anew when the test itself begins)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return made


def drawn(terminal):
    """Return all that was drawn, without what moves the cursor, a line each."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", terminal.getvalue())) if line]


def row(epoch=1, **others):
    values = {"train_loss": 1.5, "train_accuracy": 0.5, "test_accuracy": None, "seconds": 3.21, "images": 6420}
    return SimpleNamespace(epoch=epoch, **{**values, **others})


def show_a_run(show):
    show.say("header")
    show.begin(total_steps=4)
    show.step(2, 4)
    show.epoch(row())
    show.step(4, 4)
    show.epoch(row(2, train_loss=1.25, train_accuracy=0.75, test_accuracy=0.625, seconds=6.5))
    show.end()


ROWS = """\
header
epoch  train loss  train acc  test acc   seconds
    1      1.5000     50.00%         -       3.2
    2      1.2500     75.00%    62.50%       6.5
"""


def test_rows_go_to_standard_output_and_the_bar_to_a_terminal_on_standard_error(capsys, monkeypatch):
    terminal = a_terminal(monkeypatch)
    show_a_run(Screen())
    assert capsys.readouterr().out == ROWS
    assert "0/4" in terminal.getvalue()


@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_no_bar_is_drawn_where_none_is_wanted_or_possible(capsys, monkeypatch, plain):
    terminal = a_terminal(monkeypatch)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    show = Screen(bar=bool(plain))
    show_a_run(show)
    assert not show.shows_bars and (capsys.readouterr().out, terminal.getvalue()) == (ROWS, "")
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # no terminal
    assert not Screen().shows_bars


def test_an_empty_no_color_is_none(monkeypatch):
    a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert Screen().shows_bars


def test_a_silent_screen_says_nothing(capsys):
    show_a_run(Screen(silent=True, bar=False))
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_drawn_at_most_four_times_a_second_and_the_row_read_only_then(clock, monkeypatch):
    a_terminal(monkeypatch)
    show, read = Screen(), []
    show.begin(total_steps=100_000)
    for step in range(1, 10_001):  # ten seconds
        clock.seconds += 1e-3
        show.step(step, 100_000, lambda: read.append(clock.seconds) or row())
    assert 35 <= len(read) <= 40
    assert min(later - earlier for earlier, later in itertools.pairwise(read)) >= 0.249


def test_the_bar_says_steps_rate_time_left_loss_and_accuracy(clock, monkeypatch):
    terminal = a_terminal(monkeypatch)
    show = Screen()
    show.begin(total_steps=400, first_step=200)
    clock.seconds += 10
    show.step(300, 400, row)
    show.end()
    (line,) = {line for line in drawn(terminal) if "300/400" in line}
    words = "300/400  2,000 images/s  10 s left  loss 1.5000  acc 50.00%"
    assert line == f"{'━' * 13}{'─' * 5}  {words}"  # three quarters of what is left of the line


def test_several_runs_have_a_bar_with_what_they_say_and_their_accuracies(clock, monkeypatch):
    terminal = a_terminal(monkeypatch)
    show = Screen()
    show.runs(2, 4, "mean 94.05% ± 0.20", [0.93, 0.95], 130.0)
    show.begin(total_steps=10)
    clock.seconds += 10
    show.step(5, 10)
    show.end_run()
    show.end()
    assert "2/4 runs  2 min left  mean 94.05% ± 0.20  ▁█" in drawn(terminal)[-1]
    bars = [line for line in drawn(terminal) if "runs" in line]
    assert {line.count("━") for line in bars} == {15, 18}  # of 30: half a run more, of four


def test_a_terminal_of_few_characters_has_a_bar_of_them(monkeypatch):
    terminal = a_terminal(monkeypatch)
    terminal.encoding = "ascii"
    show = Screen()
    show.runs(1, 2, "mean 94.05% ± 0.20", [0.94])
    show.end()
    assert terminal.getvalue().isascii() and "1/2 runs  mean 94.05% +/- 0.20" in terminal.getvalue()


@pytest.mark.parametrize("columns", [60, 80])
def test_bars_and_rows_fit_into_the_terminal(capsys, clock, monkeypatch, columns):
    terminal = a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    show = Screen()
    show.runs(117, 2000, "a-very-long-arm-nam… mean 94.05% ± 0.20", [0.9] * 117, 90_000.0)
    show.begin(10**6, {"held-out": "test_accuracy", "val acc": "val_accuracy"}, 10)
    clock.seconds += 10
    show.step(10**5, 10**6, lambda: row(train_loss=1e30))
    show.epoch(row(1000, train_loss=1e30, val_accuracy=1.0, seconds=123456.7))
    show.end()
    lines = [*drawn(terminal), *capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) < columns and any("acc 50.00%" in line for line in lines)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_sparkline_orders_as_its_values_do(values):
    blocks = sparkline(values)
    assert len(blocks) == len(values)
    pairs = sorted(zip(values, blocks, strict=True))
    assert [block for _, block in pairs] == sorted(blocks)
    assert {"▁", "█"} <= {*blocks} or min(values) == max(values)


@given(st.lists(st.text(st.characters(categories=["L", "P"]), min_size=1, max_size=30), min_size=1), st.data())
def test_no_word_is_broken_in_a_terminal(words, data):
    between = data.draw(st.lists(st.sampled_from([" ", "  "]), min_size=len(words), max_size=len(words)))
    text = "".join(f"{word}{space}" for word, space in zip(words, between, strict=True)).rstrip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "60")
        assert fitted(text) == text  # where it is no terminal
        patch.setattr(sys, "stdout", Terminal())
        lines = fitted(text).split("\n")
    assert " ".join(lines).split() == text.split() and max(map(len, lines)) <= 60


@pytest.mark.parametrize("text", [HOSTILE, "[red]no[/red] [/] [link=x]"])
def test_hostile_text_is_shown_as_it_is(capsys, text, monkeypatch):
    terminal = a_terminal(monkeypatch)
    show = Screen()
    show.begin(10)
    show.say(text)
    show.runs(1, 2, shown(text, 20))
    show.end()
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n")) and (text in out or "\\x1b[2J" in out)
    lines = drawn(terminal)
    assert all(line.isprintable() and cell_len(line) < 80 for line in lines)
    assert any(shown(text, 20)[:10] in line for line in lines)


@pytest.fixture
def notebook(monkeypatch):
    """A stand-in for IPython in a notebook's kernel, which keeps what its cell shows."""
    pages = []
    display = ModuleType("IPython.display")
    display.HTML = lambda page: page
    handle = SimpleNamespace(update=pages.append)
    display.display = lambda page, display_id: pages.append(page) or handle
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return pages


def test_a_notebook_shows_a_table_that_grows_in_place(notebook, capsys, clock):
    show = Screen()
    assert show.shows_bars
    show.say(f"header <b> {HOSTILE}")
    show.begin(total_steps=4)
    clock.seconds += 1
    show.step(2, 4, row)
    show.epoch(row())
    show.epoch(row(2))
    assert "<td>1</td><td>1.5000</td><td>50.00%</td><td>-</td><td>3.2</td></tr><tr><td>2</td>" in notebook[-1]
    assert "2/4  2,000 images/s" in notebook[-1] and "2/4" not in notebook[1]
    assert "header &lt;b&gt; " in notebook[-1] and "<b>" not in notebook[-1] and "\x1b" not in notebook[-1]
    show.end()
    assert "<th>test acc</th>" in notebook[-1] and "2/4" not in notebook[-1]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3300, "55 min"), (7800, "2 h 10 min")]
)
def test_durations_are_said_in_two_figures(seconds, text):
    assert duration(seconds) == text


class Narrow(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")


class Gone(Narrow):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Narrow(), Gone()])
def test_no_stream_ends_the_training_that_is_shown(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    show = Screen()
    show.say("é ± 1")
    show_a_run(show)
    if type(stream) is Narrow:
        assert stream.buffer.getvalue().startswith(b"\\xe9 \\xb1 1\nheader\n")


def test_an_ipython_that_is_half_imported_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    assert not Screen().shows_bars


def test_a_command_is_not_broken_in_a_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "20")
    Screen(bar=False).say("  fastcifar train --epochs 12 --batch-size 256", whole=True)
    assert stream.getvalue() == "  fastcifar train --epochs 12 --batch-size 256\n"
