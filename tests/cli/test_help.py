"""The help of commands: short by default, whole by --help-all, with no word broken."""

import re

import pytest

from fastcifar.catalogue import DATASETS, DEFAULT_DATASET
from fastcifar.cli import finetune, main
from fastcifar.cli.arguments import parse
from fastcifar.cli.help import EVERYDAY
from fastcifar.cli.options import flag_of
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.recipes.declare import field_docs
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.text import field_hints


@pytest.fixture
def said(capsys, monkeypatch):
    """What a command says at a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def say(line):
        assert main(line.split()) == 0
        return capsys.readouterr().out

    return say


def flags(text):
    return re.findall(r"^  (--\S+)", text, re.MULTILINE)


def test_the_help_of_train_has_the_flags_that_people_use_and_no_others(said):
    short, whole = said("train --help"), said("train --help-all")
    everyday = {flag_of(name) for name in EVERYDAY} & {*flags(whole)}
    assert sorted(flags(short)) == sorted(everyday) and len(everyday) < 20
    assert "--help-all' shows every flag" in " ".join(short.split()) and len(short.splitlines()) < 90
    assert {flag_of(name) for name in field_hints(Recipe())} <= {*flags(whole)}
    groups = re.findall(r"^(\w[\w, .-]{,30}):$", whole, re.MULTILINE)
    assert groups[:6] == ["Run", "Data", "Start", "Keep and show", "Recipe", "Recipe, network"]


@pytest.mark.parametrize("command", ["compare", "warm-start online", "finetune", "flops"])
def test_a_commands_own_flags_are_in_its_short_help(said, command):
    short, whole = said(f"{command} --help"), said(f"{command} --help-all")
    own = whole.partition("\nOptions:\n")[2].partition("\n\n")[0]
    assert flags(own) and {*flags(own)} <= {*flags(short)} < {*flags(whole)}
    assert short.partition("\n\nOptions:")[0] == whole.partition("\n\nOptions:")[0]


@pytest.mark.parametrize("command", ["train", "finetune", "compare", "robustness", "models show", "data convert"])
def test_no_word_is_broken_at_80_columns(said, monkeypatch, command):
    lines = said(f"{command} --help-all").splitlines()
    assert max(map(len, lines)) <= 80 and {*flags(said(f"{command} --help"))} <= {*flags("\n".join(lines))}
    monkeypatch.setenv("COLUMNS", "300")
    assert said(f"{command} --help-all").split() == " ".join(lines).split()


@pytest.mark.parametrize("command", ["train", "sweep", "summary", "report"])
def test_every_switch_of_the_help_is_one_of_the_command(said, capsys, command):
    switches = re.findall(r"^  (--[\w-]+)$|^  (--[\w-]+)  ", said(f"{command} --help-all"), re.MULTILINE)
    switches = [one or other for one, other in switches]
    assert switches
    for switch in switches:
        assert main([command, switch, "--no-such-flag"]) == 2
        assert f"unknown flag {switch};" not in capsys.readouterr().err


def test_a_switch_that_is_on_is_shown_as_what_turns_it_off(said):
    off = "--no-evaluate-at-start"
    assert off in flags(said("finetune --help-all"))
    assert not parse([off], finetune.Options(), "fastcifar finetune").evaluate_at_start


@pytest.mark.parametrize("words", ["", "show ", "warm-start "])
def test_a_group_of_commands_has_its_list_as_its_whole_help(said, words):
    assert said(f"{words}--help-all") == said(f"{words}--help")


def test_the_help_is_that_of_the_recipe_that_is_named(said):
    name = next(name for name, recipe in RECIPES.items() if recipe.batch_size != Recipe().batch_size)
    assert f"--batch-size INT Images per step. (default: {RECIPES[name].batch_size})" in " ".join(
        said(f"train --recipe {name} --help").split()
    )


def plain(capsys):
    """What was printed, in one line."""
    return " ".join(capsys.readouterr().out.split())


def test_the_help_of_train_shows_the_fields_of_the_chosen_recipe(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 77\n")
    assert main(["train", "--recipe", str(path), "--help-all"]) == 0
    out = plain(capsys)
    docs = field_docs(Recipe)
    assert f"--epochs FLOAT {docs['epochs']} (default: 77.0)" in out
    assert f"--optimizer.lr FLOAT {field_docs(SGDConfig)['lr']} (default: 1.0)" in out
    assert "--network.norm {true,false} " in out
    assert (
        "--network.widths INT INT INT INT Channels of the stem and of the three layers. (default: 64 128 256 512)"
        in out
    )
    assert "--augment.early-crops INT FLOAT ..." in out


def test_the_help_shows_the_fields_of_another_kind_and_those_alone(capsys):
    assert main(["train", "--network", "mlp", "--optimizer", "Adam", "--help-all"]) == 0
    out = plain(capsys)
    assert "--network.hidden INT ... Units of each hidden layer, all with ReLU. (default: 100 100)" in out
    assert "--optimizer.betas FLOAT FLOAT " in out
    assert "--network.widths" not in out and "--optimizer.momentum" not in out and ".kind" not in out


@pytest.mark.parametrize("command", ["train", "ablate", "flops", "warm-start half"])
def test_the_help_lists_kinds_and_data_sets_with_a_line_each(capsys, command):
    assert main([*command.split(), "--help-all"]) == 0
    out = plain(capsys)
    assert "resnet18: ResNet-18's shape (He 2015, as in torchvision)" in out
    assert "Adam: Adam (Kingma and Ba 2014)" in out
    assert f"(default: {DEFAULT_DATASET})" in out
    assert all(f"{name}: {entry.summary}" in out for name, entry in DATASETS.items())


def test_the_fields_of_a_recipe_stand_after_the_flags_of_the_run(capsys):
    assert main(["train", "--help-all"]) == 0
    out = plain(capsys)
    assert out.index("--recipe") < out.index("--json") < out.index("--epochs") < out.index("--evaluate.tta")
