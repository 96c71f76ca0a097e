"""Failures of a training are told in a line, and keep nothing of it alive."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fastcifar.errors import NonFiniteLoss, OutOfMemory, is_out_of_memory
from fastcifar.training.divergence import nonfinite_loss
from fastcifar.training.memory import out_of_memory

Given = ParamSpec("Given")
Value = TypeVar("Value")


def told(function: Callable[Given, Value]) -> Callable[Given, Value]:
    """Return `function`, `train` or a method of `Trainer`, as one that raises OutOfMemory in place of any error that
    says that memory ran out, and says why a loss was not finite.

    These two keep nothing of the call: a notebook holds the last error with the variables of all its frames, and with
    them the memory that is short.
    """

    @functools.wraps(function)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Value:
        outside = sys.exc_info()[1]  # an error that is being handled where this is called
        trainer: Any = args[0] if args and hasattr(args[0], "take_step") else None
        if hasattr(trainer, "phases"):
            trainer.phases.failed = None
        failure: NonFiniteLoss | OutOfMemory
        try:
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            failure = OutOfMemory(str(error)) if isinstance(error, OutOfMemory) else out_of_memory(error, trainer)
            _forget(error, outside)
        except NonFiniteLoss as error:
            what, step = (trainer and trainer.state.history.failed) or ("", 0)
            if what != str(error):
                raise
            failure = nonfinite_loss(what, trainer, step)
        del trainer, args, kwargs, outside
        raise failure

    return wrapped


def _forget(error: BaseException | None, outside: BaseException | None) -> None:
    """Clear the variables of all calls that `error`, and those it came of, has ended; not of those before `outside`."""
    while error is not None and error is not outside:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
