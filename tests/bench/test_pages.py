"""The pages of recipes and tricks are those that declarations and results make."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.campaign.campaign import CHANGED
from bench.drawing import Mark, forest, scatter
from bench.pages import TRICKS, pages
from bench.recipe_page import recipe_page
from bench.trick_pages import trick_pages
from bench.trick_rows import rows
from fastcifar.recipes import RECIPES
from fastcifar.recipes.page import all_tricks

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench" / "results"
README = "What it shows, in float32 on a laptop: loud.\n\n| one | `fastcifar ablate --runs 2` |\n"
NUMBERS = st.floats(-50, 50)
MARKS = st.builds(
    lambda name, value, half, x, note: Mark(name, value, half and (value - half, value + half), x, note=note),
    st.text(),
    NUMBERS,
    st.none() | st.floats(1e-3, 30),
    st.floats(1e-3, 1e4),
    st.text(),
)


@pytest.fixture(scope="module")
def made():
    return pages(FOLDER)


@pytest.fixture
def results(tmp_path):
    """A folder of results with one ablation: a trick that loses, one that failed twice and one that cannot be told."""
    folder = tmp_path / "bench" / "results"
    one = folder / "ablations" / "one"
    one.mkdir(parents=True)
    (folder / "ablations" / "README.md").write_text(README)

    def arm(trick, accuracy, failed=0):
        return {
            "arm": f"no-{trick}",
            "trick": trick,
            "accuracy": accuracy,
            "loss": None,
            "time_ratio": 0.5,
            "failed": failed,
        }

    lost = {"n": 2, "mean": -0.02, "std": 0.01, "interval": [-0.05, 0.01]}
    rows = [
        {"arm": "full", "n": 2},
        arm("flip", lost),
        arm("crop", None, 2),
        arm("ema", {**lost, "n": 1, "interval": None}, 1),
    ]
    recipe = {"name": "davidnet", "epochs": 3.0, "batch_size": 128}
    data = {"dataset": "cifar10", "train_size": 8000, "test_size": 5000, "holdout": 5000, "seed": 0}
    (one / "results.json").write_text(json.dumps({"experiment": "ablate", "recipe": recipe, "rows": rows, **data}))
    return folder


def test_the_committed_pages_are_those_that_are_made(made):
    stale = [str(path) for path, text in made.items() if (ROOT / path).read_text(encoding="utf-8") != text]
    left = {path.relative_to(ROOT) for path in (ROOT / TRICKS).iterdir()} - set(made)
    assert (stale, left) == ([], set()), "run python -m bench.pages"


def test_a_trick_has_a_page_where_it_has_a_row_and_only_then(made):
    found = rows(FOLDER)
    assert {path.stem for path in made if path.parent == TRICKS and path.suffix == ".md"} == {*found, "index"}
    for trick, of_trick in found.items():
        page = made[TRICKS / f"{trick}.md"]
        assert f"]({trick}.svg)" in page and "- Source: " in page
        assert all(f"| {row.told} | {row.n} |" in page and row.source.folder in page for row in of_trick)


def test_every_trick_says_why_at_one_field():
    said = {
        each.name: {other.declared.why for other in all_tricks() if other.name == each.name} for each in all_tricks()
    }
    assert {name: whys for name, whys in said.items() if len(whys - {""}) != 1} == {}


def test_an_ablation_tells_what_is_gained_with_the_trick(results):
    found = rows(results)
    assert set(found) == {"flip", "ema"}
    [flip], [ema] = found["flip"], found["ema"]
    assert (flip.told, flip.n, flip.more) == ("+2.00 (-1.00 to +5.00)", 2, "")
    assert (ema.told, ema.n, ema.more) == ("+2.00", 1, "1 of 2 runs without it failed")
    assert flip.source.conditions == (
        "davidnet, 3 epochs in batches of 128, 8,000 training and 5,000 held-out images of cifar10, seeds 0 to 1, "
        "float32 on a laptop"
    )
    files = trick_pages(found)
    assert "| [flip](flip.md) | +2.00 (-1.00 to +5.00) |" in files["index.md"]
    assert "`fastcifar ablate --runs 2 --only flip`." in files["flip.md"]
    assert set(files) == {"index.md", "of-davidnet.svg", "flip.md", "flip.svg", "ema.md", "ema.svg"}


@pytest.mark.parametrize("readme", ["in float32 on a laptop.\n", "| one | `fastcifar ablate` |\n"])
def test_results_without_their_hardware_or_command_make_no_page(results, readme):
    (results / "ablations" / "README.md").write_text(readme)
    with pytest.raises(ValueError, match=r"ablations/README.md does not say what one was measured with, and on what"):
        rows(results)


def test_a_screens_change_tells_of_a_trick_that_it_switches(tmp_path):
    folder = tmp_path / "bench" / "results" / "h100" / "a"
    folder.mkdir(parents=True)
    run = {"what": "run", "recipe": {"name": "r"}, "dataset": {"train_size": 9, "test_size": 5}, "dtype": "float16"}
    changes = ("augment.early=crop..resize", "augment.early=resize..crop", "augment.flip=alternating..by-visit")
    changes += ("ema.every=5..4", "select.keep=0.75..0.65", "optimizer.row_momentum=0..0.95", "select.keep=1.0..0.5")
    rows_of = [[change, "-0.1 ± 0.2", "+0.30 ± 0.10", "+0.0%"] for change in changes]
    table = {"title": "60 runs", "columns": ["change", "log-loss", "accuracy, points", "FLOP"], "rows": rows_of}
    lines = [{**run, "device": {"name": "GPU"}}, {"what": "effects", "table": table}]
    (folder / "screen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {name: [row.told for row in of_trick] for name, of_trick in rows(folder.parents[1]).items()}
    gain, loss = "+0.30 (+0.20 to +0.40)", "-0.30 (-0.40 to -0.20)"
    assert found == {"early-resize": [gain, loss], "flip-by-visit": [gain], "normuon": [gain], "selection": [gain]}


def test_each_recipe_is_on_its_page_once(made):
    page = made[Path("docs", "recipes.md")]
    of_ladder = re.findall(r"^\| ([\w-]+) \| ", page.partition("## The ladder")[2], re.MULTILINE)
    named = re.findall(r"^###? ([\w-]+)$", page, re.MULTILINE)
    once = [name for name in RECIPES if (named + of_ladder[1:]).count(name) - (name == "davidnet") == 1]
    assert once == list(RECIPES)


@pytest.mark.parametrize(
    ("command", "is_shown"),
    [
        ("fastcifar train --recipe lenet --seed 3 --holdout 5000", True),
        ("fastcifar train --recipe lenet --optimizer.lr 0.1", False),
        ("fastcifar train --recipe lenet-2", False),
        ("fastcifar train --seed 3", False),
    ],
)
def test_a_recipes_evidence_is_of_the_recipe_as_it_is(tmp_path, command, is_shown):
    result = {"table": None, "tta_accuracy": 0.5, "held_out": 5000, "n": 1, "spread": "-", "command": command}
    known = {"idea": "a lower rate", "hardware": "laptop", "commit": "abc", "date": "2026-01-01"}
    page = recipe_page([{**result, **known}], tmp_path)
    part = page.partition("### lenet\n")[2].partition("\n###")[0]
    told = "On laptop:\n\n- 50.00% of 5,000 held-out images with TTA (n=1, at commit abc, where the idea was "
    assert (f'{told}"a lower rate")' in part) == is_shown
    assert ("Not measured." in part) != is_shown


def test_a_recipes_evidence_began_when_it_became_what_it_is(tmp_path):
    name, day = next(iter(CHANGED.items()))
    known = {"hardware": "laptop", "commit": "abc", "command": "x", "n": 1, "spread": "-"}
    results = [
        {**known, "what": f"the FLOP of `{name}`", "value": value, "date": date}
        for value, date in (("that of then", "2026-01-01"), ("that of now", day))
    ]
    part = recipe_page(results, tmp_path).partition(f"### {name}\n")[2].partition("\n###")[0]
    assert f"the FLOP of `{name}`: that of now" in part and "that of then" not in part


@settings(max_examples=15)
@given(st.lists(MARKS, min_size=1, max_size=5))
def test_a_drawing_holds_every_name_and_interval_whatever_they_are(marks):
    for svg in (forest(marks, "points"), scatter(marks, "seconds", "accuracy")):
        root = ElementTree.fromstring(svg)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        space = "{http://www.w3.org/2000/svg}"
        circles = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in root.iter(f"{space}circle")]
        assert len(circles) >= len(marks) and all(0 <= x <= width and 0 <= y <= height for x, y in circles)
        assert len(list(root.iter(f"{space}text"))) >= 2 * len(marks)


def test_a_drawing_orders_values_as_they_are():
    root = ElementTree.fromstring(forest([Mark("a", -1.0), Mark("b", 2.0, (1.0, 3.0))], "points"))
    left, right = (float(each.attrib["cx"]) for each in root.iter("{http://www.w3.org/2000/svg}circle"))
    bar = next(
        each.attrib["d"] for each in root.iter("{http://www.w3.org/2000/svg}path") if each.get("stroke-width") == "2"
    )
    start, end = map(float, re.findall(r"[ML]([\d.]+) ", bar))
    assert left < start < right < end and right - start == pytest.approx(end - right, abs=0.2)
