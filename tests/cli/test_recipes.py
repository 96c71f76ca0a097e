"""`fastcifar recipes`: the list, a recipe as a file, the page of tricks."""

import sys

import pytest

from fastcifar.cli import main
from fastcifar.recipes import RECIPES, read_toml
from fastcifar.recipes.page import tricks_page


def test_recipes_lists_every_recipe_with_a_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)


def test_on_a_terminal_the_list_of_recipes_breaks_between_words(capsys, monkeypatch):
    assert main(["recipes"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert out.split() == whole.split() and max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shown_recipe_is_a_file_that_reads_back_equal(capsys, tmp_path, name):
    assert main(["recipes", "show", name]) == 0
    path = tmp_path / "shown.toml"
    path.write_text(capsys.readouterr().out)
    assert read_toml(path) == RECIPES[name]


def test_an_old_recipe_is_read_and_its_renamings_said_in_one_line(capsys, tmp_path):
    path = tmp_path / "old.toml"
    path.write_text("epochs = 3\n[model]\nwidths = [8, 8, 8, 8]\n[optim]\nlr = 0.5\n")
    for _ in range(2):  # each time
        assert main(["recipes", "show", str(path)]) == 0
        out, err = capsys.readouterr()
        assert "widths = [8, 8, 8, 8]" in out
        (said,) = err.splitlines()
        assert said.startswith(f"fastcifar: {path}: ") and "optim is now optimizer" in said


def test_the_page_of_tricks_is_all_there_are_or_a_recipes(capsys):
    assert main(["recipes", "tricks"]) == 0
    every = capsys.readouterr().out
    assert every == tricks_page()
    assert main(["recipes", "tricks", "speedrun94"]) == 0
    own = capsys.readouterr().out
    assert own == tricks_page(RECIPES["speedrun94"])
    assert "## early-crops" in own and "## residual" in every and "## residual" not in own
