"""A recipe on the command line: plug-ins, then the recipe and its kinds, then its fields, in the grammar of files."""

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fastcifar.cli import flops, main, train
from fastcifar.cli.arguments import parse, parse_with_recipe, quick_train_size
from fastcifar.cli.experiment import read_options
from fastcifar.cli.options import DataOptions
from fastcifar.errors import NonFiniteLoss, Notice, UserError
from fastcifar.experiments.named.compare import Compare
from fastcifar.recipes import NETWORKS, OPTIMIZERS, RECIPES, Recipe, change, quick, to_toml
from fastcifar.recipes.networks import NetworkConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.text import field_hints, read_changes, with_all_transforms
from tests.small import TYPICAL

PLUGIN = '''
from dataclasses import dataclass
import fastcifar

@fastcifar.network("{name}", "somewhere:Net")
@dataclass(frozen=True)
class Config(fastcifar.NetworkConfig):
    """A network from outside."""

    width: int = fastcifar.setting(8, at_least=1)
    """Channels of it."""
'''


def settings(line, options=train.Options, **keywords):
    """The recipe that the words of `line` make."""
    return parse_with_recipe(line.split(), options, "fastcifar train", **keywords).settings


@pytest.fixture
def in_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plugin(monkeypatch, in_its_folder):
    """Writes a module that registers a network of the same name, which is forgotten at the end."""
    monkeypatch.setattr(NETWORKS, "_values", dict(NETWORKS))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name):
        (in_its_folder / f"{name}.py").write_text(PLUGIN.format(name=name))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--epochs 3", {"epochs": 3.0}),
        ("--epochs=3", {"epochs": 3.0}),
        ("--batch_size 64", {"batch_size": 64}),
        ("--name 5", {"name": "5"}),
        ("--drop-last false", {"drop_last": False}),
        ("--network.norm false --network.ghost-batch 0", {"network.norm": False, "network.ghost_batch": 0}),
        ("--network.widths 8 16 32 64", {"network.widths": (8, 16, 32, 64)}),
        ("--network.widths [8,16,32,64]", {"network.widths": (8, 16, 32, 64)}),
        ("--network.widths=[8,16,32,64]", {"network.widths": (8, 16, 32, 64)}),
        ("--network.residual []", {"network.residual": ()}),
        ("--network.residual 2", {"network.residual": (2,)}),
        ("--augment.early-crops [[24,0.2],[28,0.6]]", {"augment.early_crops": ((24, 0.2), (28, 0.6))}),
        ("--augment.early-crops 24 0.2 28 0.6", {"augment.early_crops": ((24, 0.2), (28, 0.6))}),
        ("--augment.flip none --dtype float32", {"augment.flip": "none", "dtype": "float32"}),
        ("--optimizer.lr 1e-3", {"optimizer.lr": 0.001}),
        (
            "--schedule.knots 0 0.5 1 --schedule.values 0 1 0",
            {"schedule.knots": (0, 0.5, 1), "schedule.values": (0, 1, 0)},
        ),
        ("--epochs 3 --epochs 4", {"epochs": 4.0}),
    ],
)
def test_a_flag_is_the_field_of_that_name(words, changes):
    assert settings(words) == change(Recipe(), changes)


@pytest.mark.parametrize("name", TYPICAL)
def test_flags_field_value_words_and_files_are_of_one_grammar(name):
    """Every field of a recipe, as its file has it, is read back from flags and from FIELD=VALUE."""
    recipe, words, section = RECIPES[name], [], ""
    for line in to_toml(with_all_transforms(recipe)).splitlines():
        if line.startswith("["):
            section = line[1:-1] + "."
        elif line and not line.startswith("#"):
            field, _, value = line.partition(" = ")
            if (section[:11], field) != ("transforms.", "kind"):  # which is the section's name
                words.append((section + field, value))
    kinds = [(path.removesuffix(".kind"), value.strip('"')) for path, value in words if path.endswith(".kind")]
    fields = [(path, value) for path, value in words if not path.endswith(".kind")]
    assert {path for path, _ in fields} == set(field_hints(recipe))
    args = [word for path, value in [*kinds, *fields] for word in ("--" + path.replace("_", "-"), value)]
    assert parse_with_recipe(args, train.Options, "fastcifar train").settings == recipe
    assert change(Recipe(), read_changes(f"{path}={value}" for path, value in [*kinds, *fields])) == recipe


def test_another_kind_has_its_own_defaults_and_the_same_one_keeps_its_fields():
    assert settings("--recipe speedrun94 --network davidnet").network == DavidNetConfig()
    assert settings("--recipe speedrun94 --network speedrun").network == RECIPES["speedrun94"].network
    assert settings("--network speedrun --optimizer muon").optimizer == MuonConfig()
    assert settings("--recipe speedrun94 --optimizer muon") == RECIPES["speedrun94"]


def test_fields_may_make_room_for_another_kind():
    with pytest.raises(UserError, match=r"augment.early_crops is .* takes whole images"):
        settings("--recipe speedrun94 --network mlp --optimizer sgd")
    recipe = settings("--recipe speedrun94 --network mlp --optimizer sgd --augment.early-crops [] --network.hidden 5")
    assert (recipe.network, recipe.augment.early_crops) == (MLPConfig(hidden=(5,)), ())


def test_kinds_come_before_quick_and_fields_after_it_wherever_they_stand():
    other = change(RECIPES["speedrun94"], {"network": "davidnet"})
    expected = change(quick(other)[0], {"epochs": 5})
    for line in (
        "--recipe speedrun94 --network davidnet --quick --epochs 5",
        "--epochs 5 --quick --network=davidnet --recipe=speedrun94",
    ):
        assert settings(line) == expected
    assert quick_train_size(["--quick"]) and quick_train_size([]) is None


def test_the_kinds_in_use_are_in_the_options():
    options = parse_with_recipe(["--network", "mlp", "--network.hidden", "8"], train.Options, "fastcifar train")
    assert (options.recipe, options.network, options.optimizer) == ("davidnet", "mlp", "sgd")
    assert options.settings.network == MLPConfig(hidden=(8,))


@pytest.mark.parametrize("options", [train.Options, flops.Options])
def test_flags_of_the_command_and_of_the_recipe_may_be_mixed(options):
    recipe = settings("--json --epochs 3 --recipe speedrun94 --batch-size 64", options)
    assert recipe == dataclasses.replace(RECIPES["speedrun94"], epochs=3.0, batch_size=64)


def test_coarse_is_another_word_for_the_variant():
    words = ["--dataset", "cifar100", "--coarse"], ["--dataset", "cifar100:coarse", "--coarse"]
    for given in words:
        assert parse(given, DataOptions(), "fastcifar") == DataOptions(dataset="cifar100:coarse")


def test_flags_of_an_experiment_and_of_its_recipes_may_be_mixed():
    line = "davidnet --json --epochs 3 --by accuracy speedrun94 --b-set epochs=4 --batch-size 64 --runs 7"
    options = read_options(Compare, line.split())
    compare, both = options.experiment, {"epochs": 3.0, "batch_size": 64}
    assert (options.json, compare.by, compare.runs, compare.alpha) == (True, "accuracy", 7, 0.05)
    assert compare.a == change(RECIPES["davidnet"], both)
    assert compare.b == change(RECIPES["speedrun94"], {**both, "epochs": 4.0})


def test_a_recipe_file_may_name_what_a_plug_in_registers(plugin, in_its_folder, capsys):
    name = plugin("outsider")
    (in_its_folder / "mine.toml").write_text(f'network = {{kind = "{name}", width = 5}}')
    line = "--recipe mine.toml --network.width 6 --plugin outsider"
    recipe = settings(line)
    assert (recipe.name, recipe.network.kind, recipe.network.width) == ("mine", name, 6)
    assert isinstance(recipe.network, NetworkConfig)
    assert main(["train", "--plugin", name, "--network", name, "--help-all"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "outsider: A network from outside" in out
    assert "--network.width INT Channels of it. (default: 8)" in out and "--network.widths" not in out


def test_every_plug_in_named_is_imported(plugin):
    names = [plugin(f"outsider{number}") for number in range(3)]
    settings(f"--plugin {names[0]} --plugin {names[1]} --plugin={names[2]}")
    assert set(names) <= set(NETWORKS)


def test_what_fails_in_a_plug_in_is_said_in_one_line_with_its_place(in_its_folder, capsys):
    (in_its_folder / "broken.py").write_text("\n1 / 0\n")
    assert main(["train", "--plugin", "broken"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("fastcifar: cannot import the plug-in broken: ZeroDivisionError: division by zero (")
    assert "broken.py, line 2)" in said


def test_a_kind_of_a_plug_in_is_unknown_without_it():
    with pytest.raises(UserError, match=r"network.kind is 'outsider'.*--plugin"):
        settings("--network outsider")


def test_every_registered_kind_can_be_asked_for():
    for network in NETWORKS:
        assert settings(f"--network {network}").network == NETWORKS[network]()
    for optimizer in OPTIMIZERS:
        assert settings(f"--optimizer {optimizer}").optimizer == OPTIMIZERS[optimizer]()


def test_a_removed_field_is_said_to_be_removed():
    with pytest.raises(UserError, match=r"unknown flag --select\.max-skips: it was removed"):
        settings("--select.max-skips 3")


def test_positional_arguments_may_follow_a_plug_in(plugin, capsys):
    name = plugin("outsider")
    assert main(["compare", "--plugin", name, "davidnet"]) == 2
    assert "compare needs 2 recipes" in capsys.readouterr().err
    assert main(["eval", "--plugin", name, "nowhere"]) == 2
    assert "nowhere holds no run" in capsys.readouterr().err


def test_any_words_are_read_or_refused_in_a_line_without_torch():
    """Words of a command line that are changed at random; in a process of its own, where nothing has imported torch."""
    code = (
        "import pathlib, random, sys\n"
        "from tests.fuzz import command_line\n"
        "inputs = list(command_line.seeds().values())\n"
        "for data in inputs:\n"
        "    assert command_line.check(data, pathlib.Path()), data\n"
        "for number in range(60):\n"
        "    by = random.Random(number)\n"
        "    command_line.check(command_line.mutate(by.choice(inputs), by), pathlib.Path())\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["train", "--recipe", "\x1b[31mred.toml"],
            r"cannot read the recipe \x1b[31mred.toml: No such file or directory",
        ),
        (["train", "--\x1b]0;title\x07=3"], r"unknown flag --\x1b]0;title\x07; "),
        (["train", "--classes", "9" * 5000], "allowed: labels with a comma between them, as in 0,1,2"),
        (["train", "--runs", str(2**62)], "--runs is 4611686018427387904; allowed: 1 to 100,000"),
        (["\x1b[2J"], r"unknown command '\x1b[2J'"),
        (["train", "--optimizer.lr", "\u202e1"], r"optimizer.lr is '\u202e1'; allowed: a number"),
        (["train", "--out", "\udcff\x07" * 2000], "--out is "),
        (["eval", "a\x1b[31m"], r"a\x1b[31m holds no run"),
        (["eval", "a" * 5000], "RUN_DIR is "),
        (["data", "info", "--data-dir", "a" * 5000], "--data-dir is "),
        (["recipes", "show", "a" * 5000], "the recipe is "),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_error_shows_what_a_terminal_would_obey_as_escapes(capsys, args, said):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fastcifar: ") and said in err
    assert err.endswith("\n") and err[:-1].isprintable() and len(err) < 2000


def test_notices_and_other_errors_show_escapes_too(capsys, monkeypatch):
    def run(args):
        warnings.warn("a \x1b[31mred\nnotice", Notice, stacklevel=2)
        raise NonFiniteLoss("a \x1b[31mred\nloss")

    monkeypatch.setattr("fastcifar.cli._run", run)
    assert main([]) == 3
    assert capsys.readouterr().err == "fastcifar: a \\x1b[31mred notice\nfastcifar: a \\x1b[31mred loss\n"


@pytest.mark.parametrize("words", ["train --out=", "train --data-dir=", "plot runs --out="])
def test_an_empty_path_is_not_the_folder_at_hand(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastcifar: {words.split()[-1].removesuffix('=')} is ''; allowed: a path")
    assert list(tmp_path.iterdir()) == []
