"""The page of runs: its numbers, its texts, and what a browser makes of it."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.by_class import ClassScores
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.recipes import Recipe
from fastcifar.record import EpochRow
from fastcifar.report.answers import Answers, GroupAnswers
from fastcifar.report.calibration import calibrate, log_probabilities
from fastcifar.report.figures import Figure
from fastcifar.report.page import (
    MARK,
    calibration,
    confusion,
    differences_table,
    environment,
    groups_table,
    page,
    phases,
    runs_table,
)
from fastcifar.report.runs import FailedRun, KeptRuns, Runs
from fastcifar.report.summary import row_names

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}\x1b[2J\u202e</style>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Texts(HTMLParser):
    """The texts of a page, and the names, the attributes and the contents of its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.texts, self.tags = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open not in ("style", "script"):
            self.texts.append(data.strip())

    def handle_endtag(self, tag):
        self.open = ""


@pytest.fixture(scope="module")
def runs(new_record):
    """Makes two groups of runs: of three seeds and one that failed, and of a single one of another recipe."""

    def make(name="<b>mine</b>", **fields) -> tuple[Runs, Runs]:
        history = [EpochRow(epoch, 2.0 / epoch, 0.5, 0.3 * epoch, 4.0 * epoch, 1.5) for epoch in (1, 2)]
        one = {"history": tuple(history), "commit": "abc", "command": ("/usr/bin/fastcifar", "train", "--tag", "a b")}
        one |= {"by_class": ClassScores.of([[8, 2], [1, 9]]), "phases": {"imports": 1.0, "training: steps": 3.0}}
        two = {**one, "by_class": ClassScores.of([[6, 4], [3, 7]]), "phases": {"imports": 3.0, "training: steps": 9.0}}
        records = [new_record(seed=seed, tta_accuracy=0.9 + 0.01 * seed, **one) for seed in (0, 1)]
        records.append(new_record(seed=7, tta_accuracy=0.95, train_seconds=1234.5, **two))
        other = new_record(recipe=Recipe(epochs=3), tta_accuracy=0.1, tta_loss=None, **{**two, **fields})
        return Runs("davidnet", tuple(records), (FailedRun(3, "it burned <down>"),)), Runs(name, (other,))

    return make


@pytest.fixture(scope="module")
def tested():
    """What three runs, two of them of one group, say of four images; the last has no label."""
    sure = [
        [[0, 3.0], [0, 1.0], [2.0, 0], [1, 0]],
        [[0, 1.0], [3.0, 0], [0, 0.1], [1, 0]],
        [[0, 2], [0.1, 0], [0, 1], [1, 0]],
    ]
    logits, labels = np.array(sure, np.float32), np.array([0, 0, 0, -1])
    first, second, third = (GroupAnswers.of("davidnet", 0, each, labels) for each in logits)
    groups = first + second, dataclasses.replace(third, name="other", color=3)
    return Answers("4 test images of cifar10", ("cat", "dog"), labels, groups), logits


def test_groups_have_a_row_each_with_means_and_spread(runs):
    table = groups_table(runs())
    half = 4.302652729696142 * 0.0264575131 / 3**0.5  # Student's t with 2 degrees of freedom, 97.5%
    assert table.columns == (
        *("recipe", "data", "n", "failed", "accuracy", "least", "greatest", "without TTA", "log-loss [nats]"),
        *("train [s]", "time [s]", "process [s]"),
    )
    data, accuracy = "cifar10, 50,000 training images", f"92.00% ± {100 * half:.2f}"
    first = ("davidnet", data, "3", "1", accuracy, "90.00%", "95.00%", "94.00%", "0.2000")
    other = ("<b>mine</b>", data, "1", "0", "10.00%", "–", "–", "94.00%", "–")
    assert table.rows == ((*first, "428.9", "26.3", "31.0"), (*other, "26.1", "26.3", "31.0"))


def test_runs_have_a_row_each(runs):
    rows = [dict(zip(runs_table(runs()).columns, row, strict=True)) for row in runs_table(runs()).rows]
    assert [(row["recipe"], row["seed"], row["accuracy"]) for row in rows] == [
        *(("davidnet", "0", "90.00%"), ("davidnet", "1", "91.00%"), ("davidnet", "7", "95.00%")),
        ("<b>mine</b>", "0", "10.00%"),
    ]
    assert rows[2]["train [s]"] == "1,234.5" and "validation" not in rows[0]  # which no run has


def test_only_fields_that_differ_are_shown(runs, new_record):
    table = differences_table(runs())
    assert table is not None and table.columns[1:] == ("davidnet", "<b>mine</b>")
    assert table.rows == (("epochs", "10", "3"),)
    assert differences_table(runs()[:1]) is None
    other = Runs("davidnet", (new_record(init={"mode": "warm", "source": "a"}, dtype="bfloat16"),))
    rows = differences_table([runs()[0], other]).rows  # pyright: ignore[reportOptionalMemberAccess]
    assert rows == (("computed in", "float32", "bfloat16"), ("start", "cold", "warm, source a"))


def test_phases_are_means_and_their_bars_have_one_scale(runs):
    first, second = phases(runs())
    assert (first["total"], first["n"], second["total"]) == ("6.7 s", 3, "12.0 s")
    assert first["rows"][0] == ("training: steps", "5.00 s", "75.0%", "55.56%")  # of the other's 9 s
    assert [row[2:] for row in second["rows"]] == [("75.0%", "100.00%"), ("25.0%", "33.33%")]


def test_phases_that_are_too_short_to_see_are_taken_together(new_record):
    shorter = {"steps": 99.0, "a": 0.3, "b": 0.1}
    (found,) = phases([Runs("x", (new_record(phases=shorter),))])
    assert [row[:2] for row in found["rows"]] == [("steps", "99.00 s"), ("2 shorter phases", "0.40 s")]


def test_confusion_is_of_all_runs_of_a_group(runs):
    found = confusion(runs()[0])  # twice 8 2 / 1 9, and 6 4 / 3 7
    assert found is not None and (found["n"], found["images"]) == (3, "60")
    (cat, cats, images, precision), (_, dogs, *_) = found["rows"]
    assert (cat, images, precision) == ("cat", "30", "81.5%")  # 22 of 27
    assert [cell[:3] for cell in cats] == [("73.3", True, "0.733"), ("26.7", False, "1.000")]
    assert [cell[:3] for cell in dogs] == [("16.7", False, "0.625"), ("83.3", True, "0.833")]
    assert cats[1][3] == "cat taken for dog: 8 of 30"


def test_of_many_classes_the_pairs_that_are_confused_most_are_shown(new_record):
    names = tuple(f"class {number}" for number in range(30))
    matrix = np.diag([10] * 30)
    matrix[3, 4], matrix[5, 2] = 10, 2
    record = new_record(by_class=ClassScores.of(matrix.tolist()))
    record = dataclasses.replace(record, dataset=dataclasses.replace(record.dataset, classes=names))
    found = confusion(Runs("x", (record,)))
    assert found is not None and found["pairs"].rows == (
        ("class 3", "class 4", "50.0%", "10", "20"),
        ("class 5", "class 2", "16.7%", "2", "12"),
    )


@pytest.mark.parametrize("matrix", [[[1]], [[1, 2], [3]], [[1, -2], [3, 4]]])
def test_a_matrix_that_is_none_is_left_out(new_record, matrix):
    record = new_record(by_class=ClassScores((), (), tuple(map(tuple, matrix))))
    assert confusion(Runs("x", (record,))) is None


def test_the_hardest_images_are_those_that_fewest_runs_get_right(tested):
    found, logits = tested
    hardest = found.hardest(10)
    assert [(each.image, each.right, each.predicted) for each in hardest] == [
        (0, 0, {1: 3}),
        (2, 1, {1: 2, 0: 1}),
        (1, 2, {0: 2, 1: 1}),
    ]
    shares = np.exp(log_probabilities(logits)).mean(0)
    entropy = -(shares * np.log(shares)).sum(1)[:3]
    assert [each.image for each in found.most_confused(2)] == np.argsort(-entropy)[:2].tolist()
    eces = [calibrate(each[:3], found.labels[:3]).ece for each in logits]
    calibrations = [group.calibration for group in found.groups]
    assert [each and each.ece for each in calibrations] == [pytest.approx(np.mean(eces[:2])), eces[2]]


def test_of_images_without_labels_none_is_hard_and_nothing_is_calibrated(runs, tested, undrawn):
    none = np.full(4, -1)
    groups = (GroupAnswers.of("davidnet", 0, tested[1][0], none),)
    answers = dataclasses.replace(tested[0], labels=none, groups=groups)
    assert answers.hardest(9) == answers.most_confused(9) == [] and groups[0].calibration is None
    found = made(runs(), [answers])
    assert 'id="images"' not in found and "#images" not in found
    assert "4 test images of cifar10 have no labels." in Texts(found).texts


def test_calibration_is_in_each_groups_own_color_and_says_every_ece(runs, tested):
    (name,) = row_names([Runs("n" * 99, ())])
    (group, other), answers = tested[0].groups, tested[0]
    groups = group, dataclasses.replace(other, name=f"{name} #99")
    found = calibration(dataclasses.replace(answers, groups=groups), "a")
    assert [row[0] for row in found["calibration"].rows] == ["davidnet", f"{name} #99"]
    eces = [f"ECE {each.calibration.ece:.2%}" for each in groups]
    assert [row[2] for row in found["calibration"].rows] == [each.removeprefix("ECE ") for each in eces]
    assert all(f"{each.name}: {ece}" in found["reliability"] for each, ece in zip(groups, eces, strict=True))
    lines = re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1.5", found["reliability"])
    assert {"#3f90da", "#94a4a2"} <= set(lines) and "#ffa90e" not in found["reliability"]  # the first and the fourth


def test_what_runs_ran_on_and_how_they_are_repeated(runs):
    found = environment(runs()[0])
    assert found["commands"] == ["fastcifar train --tag 'a b'"]
    assert found["facts"]["seeds"] == ["0 to 1, 7"] and found["facts"]["commit of fastcifar"] == ["abc"]
    assert found["facts"]["device"] == ["an abacus, 1 thread"] and found["facts"]["versions"] == ["python 3.12"]
    assert 'name = "davidnet"' in found["recipe"]


def made(groups, answers=(), notes=(), **kept):
    return page(KeptRuns(tuple(groups), **kept), answers, notes, ["runs/<i>"])


@pytest.fixture
def undrawn(monkeypatch):
    """Without figures, which take seconds, for what is not about them."""
    monkeypatch.setattr(Figure, "svg", lambda *_: "<svg></svg>")


@pytest.fixture(scope="module")
def hostile_page(runs, tested):
    """A page of all sections whose texts are hostile."""
    device = dataclasses.replace(runs()[0].records[0].device, name=HOSTILE)
    dataset = dataclasses.replace(runs()[0].records[0].dataset, name=HOSTILE, classes=(HOSTILE, "dog"), source=HOSTILE)
    told = {"device": device, "dataset": dataset, "command": (HOSTILE,), "commit": HOSTILE, "started": HOSTILE}
    first, other = runs(HOSTILE, **told, init={"mode": HOSTILE}, phases={HOSTILE: 1.0})
    answers = dataclasses.replace(tested[0], what=HOSTILE, classes=(HOSTILE, "dog"), missing=HOSTILE)
    more = dataclasses.replace(tested[0], images={0: np.zeros((32, 32, 3), np.uint8)})
    failed = Runs(f"{HOSTILE}2", (), (FailedRun(1, HOSTILE),))
    return made([first, other, failed], [answers, more], [HOSTILE], unreadable=2, unfinished=3)


def test_every_text_is_text_and_nothing_is_loaded(hostile_page):
    found = Texts(hostile_page)
    assert sum(shown(HOSTILE, 60)[:30] in text for text in found.texts) > 12 and "\x1b" not in hostile_page
    assert [tag for tag, _ in found.tags].count("script") == 1
    loads = [attrs[name] for _, attrs in found.tags for name in attrs if name in ("src", "srcset", "data", "poster")]
    assert loads and all(each.startswith("data:image/png;base64,") for each in loads)
    links = [attrs[name] for _, attrs in found.tags for name in attrs if name.endswith("href")]
    assert links and all(each.startswith("#") for each in links)
    assert not re.search(r"@import|url\((?!#)|@font-face", hostile_page)
    assert not [attrs for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert hostile_page.count(MARK) == 1 and hostile_page.index(MARK) < 200


def test_a_page_says_what_is_left_out(runs, undrawn):
    said = "Left out of all numbers: 1 failed, 3 unfinished (still training, or broken off), 2 damaged (files, or"
    found = Texts(made(runs(), unreadable=2, unfinished=3))
    assert any(text.startswith(said) for text in found.texts)
    assert "davidnet, seed 3: it burned <down>" in " ".join(found.texts)
    assert not any("Left out" in text for text in Texts(made(runs()[1:])).texts)


def test_runs_that_all_failed_are_a_page_too():
    found = made([Runs("davidnet", (), (FailedRun(0, "out of memory"),))])
    assert any("out of memory" in text for text in Texts(found).texts)
    assert 'id="environment"' not in found and "#environment" not in found


def test_groups_that_differ_in_what_a_name_has_no_room_for_have_their_own_everywhere(new_record, undrawn):
    """Two groups of one name, whose first three differences from a third are the same."""
    more = {"a": 1, "b": 2, "c": 3}
    phases = {"phases": {"steps": 1.0}, "by_class": ClassScores.of([[1, 0], [0, 1]])}
    groups = [
        Runs("x", (new_record(recipe=Recipe(epochs=epochs), **phases),), (), {**more, "recipe.epochs": epochs})
        for epochs in (1, 2)
    ]
    names = [f"x, a 1, b 2, c 3, and 1 more difference #{number}" for number in (1, 2)]
    texts = Texts(made(groups)).texts
    assert "2 groups of runs on cifar10" in texts
    # the table of groups, differences, phases and the environment; the confusion matrix says n too
    assert [texts.count(name) for name in names] == [4, 4] and [texts.count(f"{name}, n=1") for name in names] == [1, 1]


def test_thumbnails_are_the_images(runs, tested, undrawn):
    pictures = pytest.importorskip("PIL.Image")
    image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    wide = np.zeros((100, 200, 3), np.uint8)
    found = Texts(made(runs()[1:], [dataclasses.replace(tested[0], images={0: image, 1: wide})]))
    sources = {attrs["alt"]: attrs["src"].partition(",")[2] for tag, attrs in found.tags if tag == "img"}
    files = [io.BytesIO(base64.b64decode(sources[f"test image {place}: cat"])) for place in (0, 1)]
    pixels, small = (np.asarray(pictures.open(file)) for file in files)
    assert np.array_equal(pixels, image) and small.shape == (32, 64, 3)
    assert {"dog ×3", "dog ×2", "dog ×1"} <= set(found.texts) and "wrong in 3 of 3," in found.texts


@pytest.mark.parametrize(("package", "extra"), [("jinja2", "report"), ("matplotlib", "plot")])
def test_without_a_package_one_line_says_what_to_install(package, extra, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"not installed: pip install 'fastcifar\[{extra}\]'$"):
        made(runs())


@settings(max_examples=8)
@given(st.text())
def test_any_name_is_a_pages_title(new_record, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "svg", lambda *_: "<svg></svg>")
        found = Texts(made([Runs(name, (new_record(),))]))
    (label,) = row_names([Runs(name, ())])
    assert any(text == f"{label} on cifar10".strip() for text in found.texts)


DRIVER = """
<!doctype html><meta charset="utf-8"><iframe id="phone" style="width: 390px; height: 2000px" srcdoc="PAGE"></iframe>
<pre id="found"></pre><script>
document.getElementById("phone").onload = (event) => {
  const view = event.target.contentWindow, page = view.document;
  const table = page.querySelector("#runs table"), heads = [...table.tHead.rows[0].cells];
  const sorted = (name) => {
    const place = heads.findIndex((head) => head.textContent === name);
    heads[place].querySelector("button").click();
    const marks = heads.map((head) => head.getAttribute("aria-sort"));
    const others = marks.filter((mark, column) => mark !== null && column !== place).length;
    return [marks[place], others, [...table.tBodies[0].rows].map((row) => row.cells[place].textContent)];
  };
  const theme = page.getElementById("theme");
  const colors = () => [theme.textContent, view.getComputedStyle(page.body).backgroundColor];
  const before = colors();
  theme.click();
  const found = {
    sorted: ["train [s]", "train [s]", "log-loss [nats]", "log-loss [nats]", "recipe", "recipe"].map(sorted),
    widths: [page.documentElement.scrollWidth, page.documentElement.clientWidth, view.innerWidth],
    themes: [before, colors()],
    bar: view.getComputedStyle(page.querySelector(".bar i")).width,
    loaded: view.performance.getEntriesByType("resource").map((each) => each.name),
  };
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_a_browser_sorts_it_and_loads_nothing_and_has_nothing_to_complain_of(hostile_page, tmp_path):
    """The page in a frame as wide as a phone, in a page that clicks and says what it sees."""
    (tmp_path / "driver.html").write_text(DRIVER.replace("PAGE", html.escape(hostile_page)), encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    words += [f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/driver.html"]
    done = subprocess.run([str(CHROMIUM), *words], capture_output=True, text=True, timeout=100)
    found = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[-1]))
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert found["loaded"] == []
    names = sorted(["davidnet", *row_names([Runs(HOSTILE, ()), Runs(f"{HOSTILE}2", ())])])
    assert found["sorted"] == [
        ["ascending", 0, ["26.1", "428.9", "–"]],
        ["descending", 0, ["428.9", "26.1", "–"]],  # what has no number stays last
        ["ascending", 0, ["0.2000", "–", "–"]],
        ["descending", 0, ["0.2000", "–", "–"]],
        ["ascending", 0, names],
        ["descending", 0, names[::-1]],
    ]
    width, room, frame = found["widths"]
    assert width == room <= frame == 390 and float(found["bar"].removesuffix("px")) > 0
    assert sorted(word for word, _ in found["themes"]) == ["Dark", "Light"]
    assert found["themes"][0][1] != found["themes"][1][1]
