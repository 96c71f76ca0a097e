"""Pictures of many images: each is where it belongs, to the pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.report.mosaic import Mosaic

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def places_in(picture, image, zoom):
    """Return where an image stands in a picture, `zoom` times larger: its top and left, each time that it does."""
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    height, width = large.shape[:2]
    corners = np.argwhere((picture == large[0, 0]).all(2))
    return [(y, x) for y, x in corners.tolist() if np.array_equal(picture[y : y + height, x : x + width], large)]


@settings(max_examples=3)
@given(
    sizes=st.lists(st.lists(st.integers(8, 14) | st.none(), min_size=3, max_size=3), min_size=1, max_size=5),
    blocks=st.integers(1, 2),
    named=st.booleans(),
)
def test_images_stand_in_rows_and_columns(tmp_path_factory, sizes, blocks, named):
    random, file = np.random.default_rng(0), tmp_path_factory.mktemp("mosaic") / "a.png"
    rows = [[None if n is None else random.integers(0, 256, (n, n, 3), np.uint8) for n in row] for row in sizes]
    texts = (
        {"names": ["$a$\n\x1b"] * len(rows), "heads": ["one"] * 3, "notes": [["n"] * 3] * len(rows)} if named else {}
    )
    Mosaic("a title " * 40, rows, blocks=blocks, absent="none", cell=30, **texts).save(file)
    picture, zoom = np.asarray(Image.open(file).convert("RGB")), 30 // max(n or 1 for row in sizes for n in row)
    lines = -(-len(rows) // blocks)
    middles = {}
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            if image is not None:
                ((y, x),) = places_in(picture, image, zoom)
                middles[number, column] = y + len(image) * zoom / 2, x + len(image) * zoom / 2
    for (one, left), (y, x) in middles.items():
        for (other, right), (v, u) in middles.items():
            (block, line), (beside, below) = divmod(one, lines), divmod(other, lines)
            assert (line < below) == (v - y > 1) and ((block, left) < (beside, right)) == (u - x > 1)


def test_texts_of_an_svg_are_text_and_it_is_the_same_each_time(tmp_path):
    mosaic = Mosaic("<b>", [[np.zeros((2, 2, 3), np.uint8)]], ["$x$ & y"])
    for name in ("a.svg", "b.svg"):
        mosaic.save(tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert "&lt;b&gt;" in text and "$x$ &amp; y" in text and "<image" in text
    assert text == (tmp_path / "b.svg").read_text()


def test_what_cannot_be_drawn_or_written_leaves_nothing_behind(tmp_path):
    row = [np.zeros((3000, 3000, 3), np.uint8)] * 4
    with pytest.raises(UserError, match=r"the picture would have 12,044 x 6,\d+ pixels; allowed: up to 67,108,864"):
        Mosaic("", [row, row]).save(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*b\.png: Is a directory"):
        Mosaic("", [[np.zeros((2, 2, 3), np.uint8)]]).save(tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]
