"""The packages that trackers need, and whether Weights & Biases may be used without asking anything. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

from fastcifar.errors import UserError, one_line

Tracked = Literal["tensorboard", "wandb", "csv"]
TRACKED: tuple[Tracked, ...] = get_args(Tracked)
"""The kinds of trackers, by the words of --track."""
_OFFLINE = ("offline", "disabled", "dryrun")
"""The modes of Weights & Biases that need no account."""


def refuse_missing(kinds: Iterable[str], mode: str | None = None) -> None:
    """Raise UserError where a package that one of the `kinds` needs is not installed, and where Weights & Biases would
    ask for an account.

    mode: of Weights & Biases, where a program gives one; None: what $WANDB_MODE and its settings say.
    """
    for kind in kinds:
        if kind != "csv" and find_spec(kind) is None:
            raise UserError(f"tracking by {kind} needs {kind}, which is not installed: pip install 'fastcifar[track]'")
        if kind == "wandb":
            _refuse_questions(import_module("wandb"), mode)


def _refuse_questions(wandb: Any, mode: str | None) -> None:
    """Raise UserError where `wandb.init` would have to ask who this is, or refuse its own settings."""
    try:
        is_known = (mode or wandb.setup().settings.mode) in _OFFLINE or wandb.login(prompt=False)
    except Exception as error:  # such as a $WANDB_MODE that is none
        raise UserError(f"wandb cannot be used: {one_line(' '.join(str(error).split()), 300)}") from None
    if not is_known:
        raise UserError("wandb knows no account here; allowed: after `wandb login`, or with WANDB_MODE=offline")
