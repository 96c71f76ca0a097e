"""Recipe files."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random

from fastcifar.errors import UserError
from fastcifar.recipes import NETWORKS, OPTIMIZERS, RECIPES, Recipe, change, label, read_toml, to_toml
from fastcifar.recipes.page import tricks_page
from tests.fuzz.engine import one_line
from tests.fuzz.values import LISTS, number, word

OLD = Path(__file__).parents[1] / "recipes/old_form/speedrun96.toml"


CASES = 40


def seeds() -> dict[str, bytes]:
    kinds = {f"{section}-{kind}": {section: kind} for section, all in SECTIONS.items() for kind in all}
    made = {name: change(Recipe(), {"network": "davidnet", **changes}) for name, changes in kinds.items()}
    texts = {name: to_toml(recipe).encode() for name, recipe in {**RECIPES, **made}.items()}
    short = {name: b"\n".join(line for line in text.split(b"\n") if line[:1] != b"#") for name, text in texts.items()}
    return {
        **short,
        "documented": texts["davidnet"],
        "old": OLD.read_bytes(),
        "empty": b"",
        "mark": b"\xef\xbb\xbfepochs=3\r\n",
    }


SECTIONS = {"network": NETWORKS, "optimizer": OPTIMIZERS}
PARTS = (
    "network",
    "optimizer",
    "schedule.options",
    "ema",
    "name",
    "transforms",
    "optim.name",
    "model",
    "early_sizes",
    "a",
)


def mutate(data: bytes, random: Random) -> bytes:
    """Another value in a line or two, a line twice, a line of its own."""
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(lines))
        name, equals, _ = lines[place].partition(b" = ")
        value = random.choice(
            (number(random), number(random), f'"{word(random)}"', repr(word(random)), random.choice(LISTS))
        )
        if random.random() < 0.2:
            name, equals = (
                random.choice((b".".join([random.choice(PARTS).encode()] * random.choice((1, 2, 300, 4000))), name)),
                b" = ",
            )
        changed = name + equals + value.encode(errors="surrogatepass") if equals else lines[place]
        lines[place : place + 1] = random.choice(([changed], [changed], [changed], [lines[place], changed], []))
        if not lines:
            lines = [b""]
    return b"\n".join(lines)


def check(data: bytes, folder: Path) -> bool:
    path = folder / "a.toml"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            recipe = read_toml(path)
        except UserError as error:
            one_line(error)
            return False
        path.write_text(to_toml(recipe), encoding="utf-8")
        again = read_toml(path)
    assert again == recipe and hash(again) == hash(recipe), "the recipe that was written is another"
    assert label(recipe).isprintable() and repr(recipe)
    tricks_page(recipe)
    return True
