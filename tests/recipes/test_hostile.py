"""Text that is wrong or hostile: a recipe comes of it, or one line, and nothing else."""

import ast
import dataclasses
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe, Schedule, change, get_recipe, label, read_toml, to_toml
from fastcifar.recipes.text import field_hints, read_changes
from tests.fuzz import field_values, toml

MILLION = "1," * 400_000
FILES = {
    "network.widths = " + "[" * 100_000: "is not a TOML file: maximum recursion depth exceeded",
    "network.widths = " + "[" * 900 + "]" * 900: "is not a TOML file: maximum recursion depth exceeded",
    "a = " + "{b = " * 5000: "is not a TOML file: maximum recursion depth exceeded",
    ".".join(["a"] * 200_000) + " = 1": "is not a TOML file: a line has too many dots",
    "[" + ".".join(["'a.b'"] * 100_000) + "]": "is not a TOML file: a line has too many dots",
    "a = {b = '''\n# ''', " + ".".join(["c"] * 200_000) + " = 1}": "is not a TOML file: a line has too many dots",
    "a = {" + ".".join(["1"] * 200_000) + " = 1}": "is not a TOML file: a line has too many dots",
    "a = [" + "1.1 " * 100_000 + "]": "is not a TOML file: a line has too many dots",
    "batch_size = 0x" + "f" * 5000: "batch_size is <int too large to show>; allowed: a whole number below 2**63",
    "epochs = 0x" + "f" * 100_000: "epochs is <int too large to show>; allowed: a number",
    f"batch_size = {2**63}": "batch_size is 9223372036854775808; allowed: a whole number below 2**63",
    "epochs = 1e999": "epochs is inf; allowed: a finite number",
    "optimizer.lr = 1e31": "optimizer.lr is 1e+31; allowed: a number up to 1e+30",
    "augment.brightness = 1e300": "augment.brightness is 1e+300; allowed: a number up to 1e+30",
    "epochs = 1e9": "epochs is 1000000000.0; allowed: above 0, up to 100000",
    f"normalize.mean = [{MILLION}]": "normalize.mean has 400,000 entries; allowed: up to 10,000",
    f"network = {{kind = 'mlp', hidden = [{'1,' * 20_000}]}}": "network.hidden has 20,000 entries; allowed: up to 1",
    f"augment.early_crops = [{'[24, 1],' * 20_000}]": "augment.early_crops has 20,000 entries; allowed: up to 10,000",
    f"name = '{'a' * 100_000}'": "allowed: letters, digits and . _ + -, up to 255 of them",
    "'a\\nb' = 1": "unknown field a\\nb; allowed: ",
    '"a\\nb" = 1': "unknown field a\\nb; allowed: ",
    '"\\u001b[31m" = 1': "unknown field \\x1b[31m; allowed: ",
    "epochs = 2020-01-01": "epochs is datetime.date(2020, 1, 1); allowed: a number",
    "\ufeff\ufeffepochs = 3": "is not a TOML file: Invalid statement",
    "#" * 2**20 + "\n": "it is too long; allowed: up to 1,048,576 bytes; allowed: a TOML file",
}


def one_line(refusal):
    said = str(refusal.value)
    assert said.isprintable() and len(said) < 2000
    return said


def test_long_lists_of_numbers_and_comments_of_dots_are_read(tmp_path):
    count = 10_000
    knots, values = tuple(number / (count - 1) for number in range(count)), (1.5e-7,) * count
    recipe = change(Recipe(), {"schedule": {"knots": knots, "values": values}})
    (tmp_path / "a.toml").write_text(f"# {'.' * 4000}\n{to_toml(recipe)}", encoding="utf-8")
    assert dataclasses.replace(read_toml(tmp_path / "a.toml"), name=recipe.name) == recipe


@pytest.mark.parametrize(("text", "message"), FILES.items(), ids=[text[:24] for text in FILES])
def test_a_hostile_file_is_refused_at_once_in_a_line(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    began = time.process_time()
    with pytest.raises(UserError) as refusal:
        read_toml(tmp_path / "a.toml")
    assert message in one_line(refusal)
    assert time.process_time() - began < 5


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    with open(tmp_path / "long.toml", "wb") as file:
        file.truncate(100 << 20)
    for name, message in {
        "pipe.toml": "it is a pipe or a device; allowed: a file",
        "zero.toml": "it is a pipe or a device; allowed: a file",
        "long.toml": "it is too long; allowed: up to 1,048,576 bytes",
    }.items():
        with pytest.raises(UserError, match=rf"^cannot read the recipe .*{name}: {message}"):
            get_recipe(str(tmp_path / name))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.toml").touch()

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(UserError, match=r"^cannot read the recipe .*a\.toml: Permission denied; allowed: a TOML file$"):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "name", ["a" * 5000, "a" * 5000 + ".toml", "a/" * 5000, "\ud800", "\ud800.toml", "\udcff.toml", "a\0b", "a\nb.toml"]
)
def test_a_recipe_that_cannot_be_there_is_refused(name):
    with pytest.raises(UserError) as refusal:
        get_recipe(name)
    one_line(refusal)


DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


VALUES = {
    "digits": 2**100_000,
    "digits in a list": [2**100_000] * 4,
    "beyond floats": 10**400,
    "deep": DEEP,
    "deep in a section": {"a": DEEP},
    "long": "x" * 10**6,
    "bytes": b"\xff" * 10**6,
    "a class": object,
    "no name": {1: 2},
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "path",
    [
        "epochs",
        "batch_size",
        "drop_last",
        "name",
        "network",
        "network.widths",
        "augment",
        "network.pool",
        "schedule.options",
    ],
)
def test_a_hostile_value_is_refused_by_its_field(path, value):
    value = VALUES[value]
    for call in (
        lambda: change(Recipe(), {path: value}),
        lambda: dataclasses.replace(Recipe(), **{path.split(".")[0]: value}),
    ):
        with pytest.raises(UserError) as refusal:
            call()
        assert path.split(".")[0] in one_line(refusal)


def test_words_that_files_cannot_hold_are_refused_and_all_others_are_read_back(tmp_path):
    odd = "a=\x7f\x01\"'\\\u202e😀"
    recipe = dataclasses.replace(Recipe(), schedule=Schedule(name="StepLR", options=("step_size=1epochs", odd)))
    (tmp_path / "davidnet.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert read_toml(tmp_path / "davidnet.toml") == recipe
    with pytest.raises(UserError, match=r"schedule.options is 'a=\\ud800'; allowed: text that UTF-8 can hold"):
        dataclasses.replace(Recipe(), schedule=Schedule(name="StepLR", options=("a=\ud800",)))


FIELDS = sorted(field_hints(Recipe()))
words = st.text(st.characters(codec=None, exclude_characters="\0"), max_size=40)


@settings(max_examples=150)
@given(
    field=st.sampled_from(FIELDS), value=words | st.from_regex(r"-?[0-9a-fx._]{1,9}|\[[0-9., \[\]]*\]", fullmatch=True)
)
def test_any_value_makes_a_recipe_or_a_line(field, value, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    text = f"{field} = {value}".encode(errors="surrogatepass")
    toml.check(text, folder)
    field_values.check(f"{field}={value}".encode(errors="surrogatepass"), folder)


@settings(max_examples=100)
@given(data=st.binary(max_size=60) | words.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_make_a_recipe_or_a_line(data, tmp_path_factory):
    toml.check(data, tmp_path_factory.getbasetemp())
    field_values.check(data, tmp_path_factory.getbasetemp())


CODE = [
    "__import__('os').system('touch x')",
    "{0.__class__}",
    "$(touch x)",
    "`touch x`",
    "%(x)s",
    "!!python/object:os.system",
]


@pytest.mark.parametrize("code", CODE)
def test_words_that_look_like_code_stay_words_or_are_refused(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for field in FIELDS:
        with pytest.raises(UserError):
            change(Recipe(), read_changes([f"{field}={code}"]))
    option = f"eta_min={code.replace(' ', '')}"
    recipe = change(Recipe(), {"schedule": {"name": "CosineAnnealingLR", "options": [option]}})
    assert recipe.schedule.options == (option,) and label(recipe) == "davidnet"
    assert not (tmp_path / "x").exists()


def test_nothing_in_the_package_evaluates_text_as_code():
    found = []
    for path in Path(fastcifar.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "id", None) or getattr(node, "attr", None)
            if isinstance(node, ast.Call) and name in ("eval", "exec", "compile", "__import__"):
                found.append((path.name, node.lineno, name))
            elif isinstance(node, ast.Attribute | ast.Name) and name in ("literal_eval", "loads", "load", "Unpickler"):
                owner = getattr(getattr(node, "value", None), "id", "")
                if owner in ("ast", "pickle", "marshal", "yaml", "dill", "joblib", "shelve"):
                    found.append((path.name, node.lineno, f"{owner}.{name}"))
    assert [
        each for each in found if each[2] != "ast.literal_eval"
    ] == []  # of the list of public names in our own source
