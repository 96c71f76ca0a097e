"""Texts of files and plug-ins that try to be more than text: reports and lines show them as what they are."""

import dataclasses
import itertools
import json

import pytest
import tomllib
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastcifar.data
from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.escape import shown
from fastcifar.experiments import Diverged, Experiment, Result
from fastcifar.output import short_name
from fastcifar.recipes import Recipe, TransformConfig, recipe_from_dict, to_toml, transform, trick
from fastcifar.recipes.networks import NetworkConfig, network
from fastcifar.recipes.page import tricks_page
from tests.kinds import forgotten

HOSTILE = "\x1b[2Ja|b `c` <b>&amp; [d](http://e)\r\n# e\t$f$ \u202e\u200b__g__\x9b"
SMALL = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32"]


def markdown(text):
    """Return the texts of the headings and of all other parts of Markdown, which must be plain text."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    parts = {"heading": [], "other": []}
    for before, token in itertools.pairwise(tokens):
        if token.type == "inline":
            kinds = {part.type for part in token.children}
            assert kinds <= {"text", "text_special", "softbreak", "code_inline"}, kinds
            is_heading = before.type == "heading_open"
            parts["heading" if is_heading else "other"].append("".join(part.content for part in token.children))
    return parts


@pytest.fixture
def hostile_images(monkeypatch, tmp_path):
    """Run commands in an empty folder, on a small set whose texts are hostile."""
    made = make_synthetic(train_size=256, test_size=64)
    classes = (HOSTILE, *made.classes[1:])
    dataset = dataclasses.replace(made, name=HOSTILE, classes=classes, source=f"{HOSTILE}/x")
    monkeypatch.setattr(fastcifar.data, "load_dataset", lambda *_: dataset)
    monkeypatch.chdir(tmp_path)


def test_no_command_lets_the_texts_of_a_data_set_through(hostile_images, tmp_path, capsys):
    folder = f"runs/{HOSTILE}".replace("/e", "e")
    for words in (
        ["data", "info"],
        ["train", *SMALL, "--out", folder],
        ["eval", folder],
        ["train", *SMALL, "--seed", "1", "--out", "other"],
        ["agreement", folder, "other"],
        ["ablate", *SMALL, "--runs", "1", "--only", "label-smoothing", "--holdout", "64", "--out", "kept"],
        ["summary", folder],
    ):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert all(line.isprintable() for line in (out + err).split("\n")), ascii(out + err)
        assert shown(HOSTILE, 60) in out + err, words
    heading, tables = markdown((tmp_path / "kept/table.md").read_text()).values()
    assert heading[0] == f"ablate: davidnet-mlp, {shown(HOSTILE)}"
    assert tables[:5] == ["arm", "accuracy, points", "log-loss", "time ratio", "full"]
    assert json.loads((tmp_path / folder / "run.json").read_text())["dataset"]["name"] == HOSTILE
    log = (tmp_path / folder / "log.tsv").read_text().split("\n")
    assert [line.count("\t") for line in log] == [2, 2, 0]


@settings(max_examples=30)
@example(arm="warm", name="/0")  # a path
@given(st.one_of(st.just(HOSTILE), st.text(min_size=1)), st.one_of(st.just(HOSTILE), st.text(min_size=1)))
def test_an_experiments_page_reads_back_its_arms_data_and_reasons(new_record, arm, name):
    outcomes = {arm: [new_record(), Diverged(name)], f"other {arm}": [new_record(), new_record()]}
    experiment = dataclasses.make_dataclass("Named", [("recipe", Recipe, Recipe())], bases=(Experiment,), frozen=True)
    page = Result(experiment(runs=2), {"dataset": name}, outcomes).files()["table.md"]
    heading, parts = markdown(page).values()
    assert heading[0] == f": davidnet, {shown(short_name(name))}".rstrip(" ")
    assert [part for part in parts if part.startswith("other ")] == [f"other {shown(arm)}".rstrip(" ")]
    assert shown(arm).strip(" ") in parts
    assert shown(name).split(" ")[0] in parts[-1]


def test_a_recipe_of_a_plug_in_is_written_and_read_and_its_page_is_text():
    with forgotten():

        @network("wordy", "nowhere:nothing")
        @dataclasses.dataclass(frozen=True)
        class Wordy(NetworkConfig):
            """Words."""

            word: str = "a"
            words: tuple[str, ...] = ()
            größe: str = trick("on", off="off", name="a|b`c`", source="<b>Me</b> [x](http://y)")

        @transform("größer", lambda images, numbers, config: images)
        @dataclasses.dataclass(frozen=True)
        class Larger(TransformConfig):
            """Larger."""

            stärke: float = trick(0.0, off=0.0, at_least=0, source="Me")

        @settings(max_examples=50)
        @given(st.one_of(st.just(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]))))
        def check(word):
            made = Recipe(network=Wordy(word=word, words=(word, "b"), größe=word))
            recipe = recipe_from_dict({**dataclasses.asdict(made), "transforms": {"größer": {"stärke": 0.5}}})
            text = to_toml(recipe)
            assert recipe_from_dict(tomllib.loads(text)) == recipe
            assert all(line.isprintable() for line in text.split("\n"))
            heading, parts = markdown(tricks_page(recipe)).values()
            if word != "off":
                assert "a|b`c`" in heading and "Source: <b>Me</b> [x](http://y)" in parts

        check()


def test_the_help_shows_a_files_words_escaped(tmp_path, capsys):
    with forgotten():

        @network("wordy", "nowhere:nothing")
        @dataclasses.dataclass(frozen=True)
        class Wordy(NetworkConfig):
            """Words."""

            word: str = "a"

        (tmp_path / "evil.toml").write_text(to_toml(Recipe(network=Wordy(word=HOSTILE))))
        assert main(["train", "--recipe", str(tmp_path / "evil.toml"), "--help-all"]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n")) and r"\x1b[2Ja|b" in out


@pytest.mark.parametrize("stem", ["x" * 240, ".."])
def test_folders_named_after_a_recipe_are_made_in_runs(stem, few_images, tmp_path):
    (tmp_path / f"{stem}.toml").write_text('batch_size = 32\nepochs = 1\nnetwork = {kind = "mlp", hidden = [8]}')
    assert main(["train", "--recipe", f"./{stem}.toml", "--dataset", "synthetic", "--quiet"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(folder.name.encode()) < 120 and (folder / "run.json").is_file()
