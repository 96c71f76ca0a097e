"""unfinished.json, which says what a training goes on with: what is read is what was written, or refused in a line."""

import dataclasses
import json
from pathlib import Path

from fastcifar.cli.train import Options
from fastcifar.cli.unfinished import Asked
from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES

_COLD = {"mode": "cold"}
_WARM = {"mode": "shrink-perturb", "source": "a", "sha256": "0" * 64, "shrink": 0.4, "perturb": 0.1, "reset_head": True}

_FIRE = {"mode": "fire", "source": "a", "sha256": "0" * 64, "steps": 10, "reset_head": None, "reset": ["last-2"]}


def seeds() -> dict[str, bytes]:
    """Return what one run and several are asked for."""
    one = Options(settings=RECIPES["warmstart-mlp"], data_dir=Path("/data"), device="cpu", threads=2, classes="0,1")
    warm = dataclasses.replace(one, warm_start=Path("/runs/a"), shrink=0.4, perturb=0.1, reset_head=True)
    fire = dataclasses.replace(one, warm_start=Path("/runs/a"), start="fire:steps=10", reset=("last-2",))
    asked = {"one": Asked(one, _COLD, (3,)), "several": Asked(warm, _WARM, (0, 1, 2)), "fire": Asked(fire, _FIRE, (1,))}
    return {name: json.dumps(each.to_json()).encode() for name, each in asked.items()}


def check(data: bytes, folder: Path) -> None:
    """Raise AssertionError unless `data` is refused in a line, or is read whole."""
    (folder / "unfinished.json").write_bytes(data)
    try:
        asked = Asked.read(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return
    again = Asked._of(json.loads(json.dumps(asked.to_json(), allow_nan=False)), "again")
    assert again == asked
    assert {**asked.to_json(), "recipe": None} == {**again.to_json(), "recipe": None}
