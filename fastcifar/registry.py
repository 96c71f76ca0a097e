"""`Registry`: what goes by a name and can be added from outside the package; and the modules that add it."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastcifar.errors import UserError, did_you_mean

Value = TypeVar("Value")


class Registry(Mapping[str, Value]):
    """Values by name, those of the package first.

    what: what they are, for messages, such as "network".
    package: a package whose modules add the built-in ones; they are imported at the first look.

    Looking up an unknown name raises UserError with the known ones.
    """

    def __init__(self, what: str, package: str | None = None) -> None:
        self.what = what
        self._package = package
        self._lock, self._importing = threading.RLock(), False
        self._values: dict[str, Value] = {}

    def add(self, name: str, value: Value) -> Value:
        """Add `value`, and return it. Raises UserError for a name that is no word, or that something else has."""
        of_package = self._package and str(getattr(value, "__module__", "")).startswith(self._package)
        if self._values and not of_package:
            self._import_package()  # the built-in ones come first, and the package itself begins with one
        if not re.fullmatch(r"[A-Za-z][\w.+-]*", name):
            raise UserError(f"the {self.what}'s name is {name!r}; allowed: a letter, then letters, digits and . _ + -")
        if name in self._values and _origin(self._values[name]) != _origin(value):  # a module may be loaded again
            raise UserError(f"there is a {self.what} {name!r} already; allowed: another name than {', '.join(self)}")
        self._values[name] = value
        return value

    def __getitem__(self, name: str) -> Value:
        self._import_package()
        if name not in self._values:
            known = ", ".join(self)
            raise UserError(f"unknown {self.what} {name!r}{did_you_mean(str(name), self)}; allowed: {known}")
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of this name, or `default`."""
        self._import_package()
        return self._values.get(name, default)

    def __contains__(self, name: object) -> bool:
        self._import_package()
        return isinstance(name, str) and name in self._values

    def __iter__(self) -> Iterator[str]:
        self._import_package()
        return iter(self._values)

    def __len__(self) -> int:
        self._import_package()
        return len(self._values)

    def _import_package(self) -> None:
        if self._package is None:
            return
        with self._lock:  # another thread's look waits for all of it
            if self._package is None or self._importing:
                return
            self._importing = True
            try:
                for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                    importlib.import_module(f"{self._package}.{module.name}")
                self._package = None
            finally:
                self._importing = False


def resolve(target: str | Callable[..., Any]) -> Any:
    """Return what "package.module:name" names, the module imported; anything else as it is.

    Raises UserError where there is no such module or name."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError, ValueError) as error:
        raise UserError(f"there is no {target!r}: {error}; allowed: 'package.module:name'") from error


def import_plugin(module: str) -> None:
    """Import a module that registers something; modules in the current folder are found too.

    Raises UserError, with the place, where it cannot be imported."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(module)
    except UserError as error:
        raise UserError(f"the plug-in {module}: {error}") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        says_itself = missing or isinstance(error, SyntaxError)
        place = "" if says_itself else f" ({frames[-1].filename}, line {frames[-1].lineno})"
        reason = f"{type(error).__name__}: {error}{place}"
        raise UserError(
            f"cannot import the plug-in {module}: {reason}; allowed: a module, as in package.module"
        ) from error


def _origin(value: object) -> tuple[object, object] | object:
    """Where `value`, or what it loads, was defined; of something that does not say so the value itself."""
    value = getattr(value, "load", value)
    name = getattr(value, "__qualname__", None)
    return value if name is None else (getattr(value, "__module__", None), name)
