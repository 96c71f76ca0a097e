"""Every figure that is shown has a result behind it."""

import json
import re
from pathlib import Path

import pytest

from bench.campaign.campaign import CHANGED
from bench.headline import PEERS, RECIPES, gpu_results, headline
from bench.pages import _speeds
from bench.peers.race import SIDES
from bench.record import ADDED, GIVEN
from bench.tables import (
    KEPT,
    by_page,
    outside_tables,
    read_results,
    table,
    with_headline,
    with_kept_tables,
    with_tables,
)
from fastcifar.recipes import SUMMARIES
from fastcifar.recipes.named import speedrun

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FOLDER = ROOT / "bench" / "results"
RESULTS = [*read_results(FOLDER), *gpu_results(FOLDER / "h100")]
RESULT = dict.fromkeys((*GIVEN, *ADDED), "x") | {"what": "a step", "value": "94.00%"}
ROW = dict.fromkeys((*GIVEN, *ADDED), "x") | {"table": "peers", "row": {"program": "theirs", "factor": "2.0"}}
FIGURE = re.compile(r"\d[\d.,]*(?:%| ?(?:s|ms|seconds|images/s|times|x)(?!\w))")
MEASURED = re.compile(r"\d+\.\d+(?:%| ?(?:s|ms|seconds|images/s|times|x)(?!\w))")
"""With a decimal: what reads like a measurement wherever it stands, unlike "95%" or "60 s"."""


def marked(name, text=""):
    return f"before\n<!-- begin {name} -->\n{text}\n<!-- end {name} -->\nafter\n"


def prose(text):
    """The text without its tables of results and without code."""
    return re.sub(r"```.*?```|`[^`\n]*`|^ {4}.*$", "", outside_tables(text), flags=re.DOTALL | re.MULTILINE)


def unfounded(text, results):
    """Figures outside the tables of results: any in a table typed by hand, and measurements that no result has."""
    lines = prose(text).splitlines()
    typed = [figure for line in lines if line.startswith("|") for figure in FIGURE.findall(line)]
    shown = json.dumps(results, ensure_ascii=False)
    said = [figure for line in lines if not line.startswith("|") for figure in MEASURED.findall(line)]
    return typed + [figure for figure in said if figure not in shown]


@pytest.mark.parametrize("page", by_page(RESULTS))
def test_every_page_shows_the_committed_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_tables(text, by_page(RESULTS)[page]) == text


def test_the_readme_shows_the_headline_of_the_committed_results():
    assert with_headline(README, RESULTS, FOLDER / "h100") == README
    assert "<!-- begin headline -->\n| recipe | on |" in README


def beside_peers():
    """Made-up results of other programs, each of which the headline has a line of."""
    row = {"our factor": "2.0", "spread": "1 to 3", "n": "3"}
    measured = [*((peer, "training step") for peer in PEERS), (PEERS[0], "whole training")]
    peers = [{"row": {**row, "program": peer, "measured": what}} for peer, what in measured]
    peers = [{**each, "table": "peers", "recipe": "davidnet", "hardware": "CPU"} for each in peers]
    peers[-1]["row"]["our factor"] = "2.5"
    return peers


def test_the_headline_counts_all_accuracies_and_the_seconds_of_runs_that_were_alone(tmp_path):
    (tmp_path / "a").mkdir()
    run = {"what": "training", "device": {"name": "GPU"}, "seed": 0, "time": 2e9 + 5}
    runs = [{**run, "recipe": name, "tta_accuracy": 0.94, "train_seconds": 1.0} for name in RECIPES]
    runs += [{**each, "tta_accuracy": 0.95, "seed": 1, "train_seconds": 9.0, "beside": "other"} for each in runs]
    runs += [{**run, "recipe": "speedrun94", "tta_accuracy": 0.93, "train_seconds": 2.0, "time": 0}]
    runs += [{**each, "tta_accuracy": 0.5, "time": 2e9} for each in runs if "beside" in each]  # the same seed, earlier
    (tmp_path / "a" / "trainings.jsonl").write_text("".join(json.dumps(each) + "\n" for each in runs))
    pair = {"what": "run", "rival": "theirs", "warm_up": False, "round": 0, "device": {"name": "GPU"}, "time": 0}
    pair["beside"] = "another program's compilation"
    race = [{**pair, "side": "theirs", "train_seconds": 3.0}, {**pair, "side": "ours", "train_seconds": 2.0}]
    later = [{**each, "ours": "speedrun94", "time": 2e9} for each in race]  # rounds are counted anew in each campaign
    again = [{**each, "train_seconds": seconds} for each, seconds in zip(later, (8.0, 2.0), strict=True)]
    for folder, runs in {"a": race + later, "b": again}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "race.jsonl").write_text("".join(json.dumps(each) + "\n" for each in runs))
    lines = headline(beside_peers(), tmp_path).splitlines()
    assert f"| `{RECIPES[0]}` | GPU | 94.50% (88.15% to 100.85%) | 2 | 1.00 s | 1 |" in lines
    assert "| `speedrun94 before 2026-11-29` | GPU | 93.00% | 1 | 2.00 s | 1 |" in lines
    assert f"| {PEERS[0]} | a training step at equal work | 2.0 (1 to 3) | 3 | CPU |" in lines
    assert f"| {PEERS[0]} | a whole `davidnet` | 2.5 (1 to 3) | 3 | CPU |" in lines
    what = "a whole `speedrun94 before 2026-11-29`, beside another program's compilation"
    raced = f"| theirs | {what} | 1.50 (1.50 to 1.50) | 1 |"
    assert f"{raced} GPU |" in lines
    now = raced.replace(" before 2026-11-29", "").replace("1.50 (1.50 to 1.50) | 1", "2.75 (1.50 to 4.00) | 2")
    assert f"{now} GPU |" in lines
    assert lines[-1].startswith(f"On the GPU, in the campaigns [a](bench/results/{tmp_path.name}/a/README.md), [b](")
    whole, *_, race, _ = (table([result]) for result in gpu_results(tmp_path))
    assert f"| `{RECIPES[0]}` | 94.50% (88.15% to 100.85%) | 2 | 1.00 s | 1 |" in whole and raced in race


def test_the_headline_is_of_all_training_images_tested_on_all_test_images(tmp_path):
    run = {"threads": 2, "train_seconds": 1.0, "tta_accuracy": 0.5}
    for on, counts in (
        ("cifar10, 50,000 images", True),
        ("cifar10, 45,000 images, tested on 5,000 held out", False),
        ("cifar10, 5,000 images", False),
    ):
        result = {"row": {"recipe": "`speedrun94`", "on": on}, "runs": [run], "hardware": "CPU"}
        assert ("50.00%" in headline([result, *beside_peers()], tmp_path)) == counts


def test_devices_are_apart_and_what_was_cut_off_has_no_figure(tmp_path):
    """A campaign may end after one side of a race, and with no training that was alone."""
    (tmp_path / "a").mkdir()
    both = [
        {"what": "training", "recipe": "davidnet", "device": {"name": name}, "seed": 0, "time": 2e9}
        | {"tta_accuracy": 0.94, "accuracy": 0.93, "train_seconds": seconds, **beside}
        for name, seconds, beside in (("A", 1.0, {}), ("B", 3.0, {}), ("C", 5.0, {"beside": "other"}))
    ]
    (tmp_path / "a" / "trainings.jsonl").write_text("".join(json.dumps(each) + "\n" for each in both))
    run = {"what": "run", "ours": "davidnet", "warm_up": False, "round": 0, "device": {"name": "A"}, "time": 2e9}
    alone = {**run, "rival": "one", "side": "theirs", "train_seconds": 3.0, "accuracy": 0.94}
    apart = [{**run, "rival": "two", "side": side, "train_seconds": 3.0, "accuracy": 0.94} for side in SIDES]
    apart[1]["round"] = 1
    lines = [alone, *apart, {"what": "failed", "error": "it ended"}]
    (tmp_path / "a" / "race.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = [(each["hardware"], each["row"]["median `train_seconds`, alone"]) for each in gpu_results(tmp_path)]
    assert found == [("A", "1.00 s"), ("B", "3.00 s"), ("C", "-")]
    marks = {mark.name: mark.x for mark in _speeds(tmp_path)}
    assert marks == {"davidnet, A": 1.0, "davidnet, B": 3.0, "two, A": 3.0, "davidnet, raced, A": 3.0}


@pytest.mark.parametrize("name", KEPT)
def test_pages_show_what_experiments_left(name):
    folder, pages = FOLDER / name, sorted(ROOT.glob(KEPT[name]))
    texts = [page.read_text(encoding="utf-8") for page in pages]
    assert [with_kept_tables(text, folder) for text in texts] == texts
    for kept in folder.iterdir():
        if kept.is_dir():
            assert sum(f"<!-- begin {kept.name} -->" in text for text in texts) == 1
            results = json.loads((kept / "results.json").read_text(encoding="utf-8"))
            assert results["sha256"] and results["experiment"] in (kept / "table.md").read_text(encoding="utf-8")


def test_every_post_says_what_came_out():
    pages = {page.name: page.read_text(encoding="utf-8") for page in sorted(ROOT.glob(KEPT["posts"]))}
    assert [name[0] for name in pages] == [*"12345678", "R"]
    assert [name for name, text in pages.items() if "**What came out.**" not in text] == ["README.md"]
    assert not any(text.rstrip().endswith(":") for text in pages.values())


@pytest.mark.parametrize("text", [README, PAGE], ids=["README", "results"])
def test_no_figure_is_without_a_result(text):
    assert unfounded(text, RESULTS) == []


def test_a_figure_typed_by_hand_is_found():
    results = [{"value": "94.03%", "spread": "-"}]
    assert unfounded("It reaches 94.03%, in 60 s, 95% of the time.", results) == []
    assert unfounded("It reaches 94.04%.", results) == ["94.04%"]
    assert unfounded("Ours is 6.1 times as fast.", results) == ["6.1 times"]
    assert unfounded("| a step | 12 s |\n| accuracy | 94.03% |", results) == ["12 s", "94.03%"]
    assert unfounded(marked("peers", "| a step | 12 s |") + "`--decay 0.5 s`", results) == []


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_recipes_figure_has_its_source_beside_it_or_a_result_behind_it(name):
    """A summary says what the method's authors reached, with their names and year, or what it aims at; what we reached
    is in a result."""
    summary = re.sub(r"aims at [\d.]+%", "", SUMMARIES[name])
    has_source = re.search(r"\((?:[\w .-]* )?(?:19|20)\d\d\)", summary)
    since = [result for result in RESULTS if result.get("date", "9") >= CHANGED.get(name, "")]
    of_recipe = [result for result in since if name in json.dumps(result)]
    shown = json.dumps(of_recipe, ensure_ascii=False)
    assert has_source or [figure for figure in FIGURE.findall(summary) if figure not in shown] == []


def test_the_figures_in_the_header_of_the_speedrun_recipes_are_those_of_the_results():
    measured = next(result for result in RESULTS if result.get("row", {}).get("recipe") == "`speedrun94`")
    counted = next(result for result in RESULTS if "whole `speedrun94`" in result.get("what", ""))
    row = measured["row"]
    header = " ".join(speedrun.__doc__.split())
    assert (
        f"speedrun94: {row['accuracy with TTA']} with test-time augmentation (n={row['n']}, 95% interval "
        f"{row['95% interval']}), {counted['value'].partition(' (')[0]} with evaluation, "
        f"{row['`time_seconds`'].replace(' (', ' s of time_seconds (')} on {measured['hardware']}."
    ) in header


def test_a_changed_result_changes_the_table(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(RESULT) + "\n")
    assert "94.00%" in table(read_results(tmp_path))


def test_every_row_has_the_command_that_gives_it():
    assert all(f"`{result['command']}`" in table([result]) for result in (RESULT, ROW, *RESULTS) if result.get("row"))


def test_each_result_goes_to_its_own_table():
    text = with_tables(marked("measurements") + marked("peers"), [RESULT, ROW, {**RESULT, "table": None}])
    measurements, peers = text.split("<!-- end measurements -->")
    assert "94.00%" in measurements and "theirs" not in measurements
    assert "| program | factor | with |\n| --- | --- | --- |\n| theirs | 2.0 | `x` |" in peers
    assert text.count("94.00%") == 1
    assert with_tables(text, [RESULT, ROW]) == text


def test_rows_of_one_table_may_have_other_columns_and_a_bar_is_escaped():
    other = {**ROW, "row": {"program": "a|b", "accuracy": "94%"}}
    assert table([ROW, other]).splitlines()[2:] == [
        "| program | factor | with | accuracy |",
        "| --- | --- | --- | --- |",
        "| theirs | 2.0 | `x` | - |",
        "| a\\|b | - | `x` | 94% |",
    ]


@pytest.mark.parametrize("key", [*GIVEN, *ADDED, "what", "value"])
def test_a_result_that_lacks_something_is_refused(tmp_path, key):
    (tmp_path / "a.jsonl").write_text(json.dumps({name: value for name, value in RESULT.items() if name != key}))
    with pytest.raises(ValueError, match=rf"a.jsonl line 1 lacks {key}"):
        read_results(tmp_path)


def test_a_page_without_a_place_for_results_is_refused():
    with pytest.raises(ValueError, match="the page has no <!-- begin peers"):
        with_tables(marked("measurements"), [RESULT, ROW])


def test_a_place_without_results_is_refused():
    with pytest.raises(ValueError, match="the page has a table peers, and no result is for it"):
        with_tables(marked("measurements") + marked("peers"), [RESULT])
