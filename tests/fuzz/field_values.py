"""Words FIELD=VALUE, with a zero byte between them, and the same fields as flags."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random

from fastcifar.cli.arguments import read_recipe
from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES, Recipe, change
from fastcifar.recipes.text import field_hints, leaves, read_changes, to_text
from tests.fuzz.engine import one_line
from tests.fuzz.values import LISTS, number, word


def seeds() -> dict[str, bytes]:
    import dataclasses

    found = {"none": b"", "old": b"optim.name=Adam", "kinds": b"network=mlp\0optimizer=Adam\0network.hidden=[5]"}
    for name, recipe in RECIPES.items():
        fields = dict(leaves(dataclasses.asdict(recipe)))
        words = [f"{section}={fields.pop(f'{section}.kind')}" for section in ("network", "optimizer")]
        words += [f"{path}={to_text(value)}" for path, value in fields.items() if path in field_hints(recipe)]
        found[name] = "\0".join(words).encode()
    return found


def mutate(data: bytes, random: Random) -> bytes:
    """Another value for a field, another field, a word twice."""
    words = data.split(b"\0")
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(words))
        name, _, value = words[place].partition(b"=")
        if random.random() < 0.2:
            name = random.choice(
                (word(random).encode(errors="surrogatepass"), b"optim.lr", b"model", b"network.kind", name + b".kind")
            )
        new = random.choice(
            (number(random), number(random), word(random), random.choice(LISTS), value.decode(errors="replace"))
        )
        words[place] = name + b"=" + new.replace("\0", "").encode(errors="surrogatepass")
        words += random.choice(([], [], [words[random.randrange(len(words))]]))
    return b"\0".join(words[-random.choice((1, 3, 1000)) :])


def check(data: bytes, folder: Path) -> bool:
    words = [word.decode(errors="surrogateescape") for word in data.split(b"\0") if word]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            recipe = change(Recipe(), read_changes(words))
        except UserError as error:
            one_line(error)
            recipe = None
        flags = [f"--{word}" for word in words]
        try:
            flagged, rest = read_recipe(flags, "")
        except UserError as error:
            one_line(error)
            return False
    if recipe is not None and not rest:
        assert flagged == recipe, "flags make another recipe than words"
    return recipe is not None
