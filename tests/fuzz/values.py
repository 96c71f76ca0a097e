"""Values that are wrong or hostile, for targets that know their format."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS = (
    *("0", "-1", "1", "-0.0", "1e999", "nan", "inf", "-inf", "1e-320", "1e300", "1.7e308", "0.5"),
    *("9" * 30, "9" * 400, "9" * 5000, "0x" + "f" * 5000, "9223372036854775808", "2147483648", "1_0", "\u0663"),
)
WORDS = (
    *("", "a", "mlp", "Adam", "muon", "true", "none", "..", "-", "--", "=", "a=b", "a,b", "\x1b[31m", "\x7f", "\x00"),
    *(
        "\n",
        "\r\nb",
        "\u2028",
        "\u202e",
        "\udcff",
        "a" * 300,
        "a" * 5000,
        "__import__('os').system('x')",
        "{0.__class__}",
    ),
)
LISTS = (
    "[]",
    "[[]]",
    "[1, 2]",
    "[" * 400 + "]" * 400,
    "[" * 3000,
    "[" + "1," * 20_000 + "]",
    "{a = 1}",
    "{kind = 'mlp'}",
)


def number(random: Random) -> str:
    return random.choice(NUMBERS)


def word(random: Random) -> str:
    return random.choice(WORDS)


def json_value(random: Random) -> Any:
    """Return a value that JSON can hold, of any type."""
    nested: Any = 1
    for _ in range(random.choice((1, 3, 40, 400))):
        nested = random.choice(([nested], {"a": nested}))
    values = (None, True, False, 0, -1, 2**63, 10**40, 10**4200, 0.5, -0.5, 1e308, float("nan"), float("inf"))
    return random.choice((*values, word(random), [], {}, nested, ["a"], [[1]], {"kind": "mlp"}))


def mutated_json(data: bytes, random: Random) -> bytes:
    """Return a document of JSON with a value or two in the place of others, or a key that is gone, new or doubled."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(random.choice((1, 1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        _gather(document, places)
        if not places:
            break
        inside, key = random.choice(places)
        what = random.choice(("value", "value", "value", "gone", "new"))
        if what == "value":
            inside[key] = json_value(random)
        elif what == "gone":
            del inside[key]
        elif isinstance(inside, dict):
            inside[random.choice((word(random), "kind", "version", "recipe", "optim", "model"))] = json_value(random)
    text = json.dumps(document, indent=random.choice((None, 2)))
    if random.random() < 0.1 and text.startswith("{"):
        name = next(iter(document), "seed")
        text = "{" + f"{json.dumps(name)}: {json.dumps(json_value(random))}, " + text[1:]
    return text.encode()


def _gather(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        places.append((value, key))
        if isinstance(inner, dict | list):
            _gather(inner, places)
