"""`Registry`: values by name, which modules outside the package can add to."""

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

from fastcifar.errors import UserError, brief, did_you_mean

Value = TypeVar("Value")


class Registry(Mapping[str, Value]):
    """Values by name, the built-in ones first.

    what: the kind of values, for messages, such as "network".
    package: a package whose modules add the built-in values; they are imported at the first look-up.

    Looking up an unknown name raises UserError with the known ones.
    """

    def __init__(self, what: str, package: str | None = None) -> None:
        self.what = what
        self._package = package
        self._lock, self._importing = threading.RLock(), False
        self._values: dict[str, Value] = {}

    def add(self, name: str, value: Value) -> Value:
        """Add `value` and return it. Raises UserError if `name` is not a word or is taken."""
        of_package = self._package and str(getattr(value, "__module__", "")).startswith(self._package)
        if self._values and not of_package:
            self._known()  # the built-in values come first; the first of all is added by the package itself
        if not re.fullmatch(r"[A-Za-z][\w.+-]*", name):
            raise UserError(f"the {self.what}'s name is {name!r}; allowed: a letter, then letters, digits and . _ + -")
        if name in self._values and _origin(self._values[name]) != _origin(value):  # a module may be loaded again
            raise UserError(f"there is a {self.what} {name!r} already; allowed: another name than {', '.join(self)}")
        self._values[name] = value
        return value

    def __getitem__(self, name: str) -> Value:
        if name not in self:
            known = ", ".join(self)
            raise UserError(f"unknown {self.what} {brief(name)}{did_you_mean(name, self)}; allowed: {known}")
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of this name, or `default`."""
        return self._known().get(name, default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> dict[str, Value]:
        """Return all values. The first call imports the package's modules."""
        if self._package is not None:
            with self._lock:  # another thread waits until all are imported
                if self._package is not None and not self._importing:
                    self._importing = True
                    try:
                        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                            importlib.import_module(f"{self._package}.{module.name}")
                        self._package = None
                    finally:
                        self._importing = False
        return self._values


def resolve(target: str | Callable[..., Any]) -> Any:
    """Import and return what "package.module:name" names; return anything but a string as it is.

    Raises UserError if there is no such module or name."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError, ValueError) as error:
        raise UserError(f"there is no {target!r}: {error}; allowed: 'package.module:name'") from error


PLUGINS: list[str] = []
"""The modules that `import_plugin` has imported, for processes that are started to do the same work."""


def import_plugin(module: str) -> None:
    """Import a module that registers something, from the current folder too.

    Raises UserError, with the file and line of the error, if it cannot be imported."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(module)
        PLUGINS.append(module)
    except UserError as error:
        raise UserError(f"the plug-in {module}: {error}") from error
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        reason = f"{type(error).__name__}: {error}"
        if not (missing or isinstance(error, SyntaxError)):  # whose messages say where
            reason += f" ({frames[-1].filename}, line {frames[-1].lineno})"
        said = f"cannot import the plug-in {module}: {reason}"
        raise UserError(f"{said}; allowed: a module, as in package.module") from error


def _origin(value: object) -> tuple[object, object] | object:
    """Return the module and name of `value` or of its loader, or `value` itself if it has none."""
    value = getattr(value, "load", value)
    name = getattr(value, "__qualname__", None)
    return value if name is None else (getattr(value, "__module__", None), name)
