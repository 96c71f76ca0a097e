"""C++ kernels of CPUs: compiled on the user's machine when one is first needed, and kept in the user's cache.

For an operation `name`, `name.cpp` holds functions of plain C types (`extern "C"`) for the instructions of the machine
that compiles them, which return 0, or 1 where memory ran out, and `name_cpp.py`, in an operation's folder `cpp.py`,
calls them. Without a C++ compiler torch's own operations do the same, slower.

torch's wrapper for such code, `torch.utils.cpp_extension`, includes torch's headers and wants ninja: half a minute,
where each of these files takes two to five seconds on an idle core.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastcifar.kernels.launch import forced_path

DTYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
"""Dtypes of the C++ kernels, and their names at the end of a function's: `name_float`."""

_HERE = Path(__file__).parent
_HEADERS = ("bfloat16.h", "buffer.h", "channels.h", "activation.h")
# NaN stays NaN and no order of sums is changed: only what may trap or set errno is given up.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp")
# By torch's name for the instructions that it uses here, which `ATEN_CPU_CAPABILITY` may limit.
_INSTRUCTIONS = {"AVX2": ("-march=x86-64-v3",), "AVX512": ("-march=native", "-mprefer-vector-width=512")}
_COMPILE_SECONDS = 120.0
_UNUSED_SECONDS = 30 * 86400.0
"""A compiled file that no process loaded for so long is removed after another of the same text is compiled."""
_compiling: dict[str, threading.Lock] = {}
"""By file. Several files are compiled at once, each of them once."""
_DIGEST = 32
"""Bytes of sha256 at the end of a compiled file, of all before them."""


def use_cpp(source: str, *tensors: Tensor | None) -> bool:
    """Return True if an operation on `tensors` takes the C++ kernels of `source` now.

    Raises ValueError for an unknown `FASTCIFAR_KERNELS`, and RuntimeError if `cpp` is forced and cannot be compiled.
    """
    forced = forced_path()
    if forced not in ("", "cpp"):
        return False
    if any(tensor is not None and (tensor.device.type != "cpu" or tensor.dtype not in DTYPES) for tensor in tensors):
        return False
    return _library(source, forced == "cpp") is not None


class View(ctypes.Structure):
    """Images as a kernel reads or writes them: channels.h's `View`."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("image", "row", "pixel")))
    tensor: Tensor


def view(images: Tensor | None) -> View:
    """Return images [N, C, H, W] as a kernel takes them: where they are, if the channels of a pixel follow one another,
    else a copy. None: a null pointer."""
    if images is None:
        return View()
    if images.stride(1) != 1 and images.shape[1] != 1:
        images = images.contiguous(memory_format=torch.channels_last)
    seen = View(_address(images), images.stride(0), images.stride(2), images.stride(3))
    seen.tensor = images  # which lives as long
    return seen


def call(source: str, function: str, *arguments: View | Tensor | int | float | None) -> None:
    """Call `function` of `source`.

    arguments: a tensor is passed by the address of its first element, None as a null pointer, an int (or bool) as
        int64_t, a float as double, images as a `View`; each of the same kind at every call of a function.

    Raises MemoryError where memory runs out, RuntimeError for a tensor that is not on the CPU, and as `use_cpp` does.
    """
    compiled = getattr(_library(source, True), function)
    if compiled.argtypes is None:  # the same at every call
        compiled.argtypes = [_kind(argument) for argument in arguments]
    if compiled(*(_address(argument) if isinstance(argument, Tensor) else argument for argument in arguments)):
        raise MemoryError(f"out of memory in {function} of {Path(source).name}")


def _address(tensor: Tensor) -> int:
    if not tensor.is_cpu:
        raise RuntimeError(f"a C++ kernel got a tensor on {tensor.device}; allowed: cpu")
    return tensor.data_ptr()


def _kind(argument: View | Tensor | int | float | None) -> type:
    if isinstance(argument, View):
        return View
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_int64


class CompilerError(RuntimeError):
    """C++ kernels that cannot be compiled or loaded here, and why."""


def why_not(source: str) -> str:
    """Return why the kernels of `source` cannot be had here, "" if they can; compiles them if need be."""
    return _load(source).why_not


def why_not_kept(source: str) -> str:
    """Return why every process compiles `source` anew, "" where the compiled file is kept; compiles it if need be."""
    return _load(source).why_not_kept


@functools.cache
def _library(source: str, needed: bool) -> ctypes.CDLL | None:
    """Return the compiled `source`; None where that can't be had and is not `needed`."""
    found, name = _load(source), Path(source).name
    if found.why_not_kept:
        what = "compiled C++ kernels are not kept, every process compiles them anew"
        _warn(f"{what} ({found.why_not_kept}); XDG_CACHE_HOME names another place")
    if found.library is None and needed:
        raise RuntimeError(f"FASTCIFAR_KERNELS=cpp: {found.why_not}")
    # Whoever has no compiler, or not the instructions, misses nothing.
    if found.library is None and compiler() is not None and instructions() is not None:
        _warn(f"the C++ kernels of {name} are left out, torch's are slower: {found.why_not}")
    return found.library


_warned: set[str] = set()


def _warn(message: str) -> None:
    """Warn once, at the call of `use_cpp` or `call`, also where warnings are errors."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)


def compiler() -> list[str] | None:
    """Return the command of this machine's C++ compiler: `$CXX`, g++, c++ or clang++. g++ before others, whose OpenMP
    may be another than torch's, with threads of its own."""
    named: list[str] = []
    with contextlib.suppress(ValueError):  # quotes that do not end
        named = shlex.split(os.environ.get("CXX", ""))
    commands = (named, ["g++"], ["c++"], ["clang++"])
    return next(([path, *rest] for name, *rest in filter(None, commands) if (path := shutil.which(name))), None)


def instructions() -> tuple[str, ...] | None:
    """Return the compiler's flags for the instructions that torch uses here; None: no C++ kernels for them."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    return _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())


class _Found(NamedTuple):
    library: ctypes.CDLL | None
    why_not: str = ""
    why_not_kept: str = ""


def _load(source: str) -> _Found:
    with _compiling.setdefault(source, threading.Lock()):  # other threads wait for what one compiles
        return _find(source)


@functools.cache
def _find(source: str) -> _Found:
    try:
        return _compiled_here(source)
    except (CompilerError, OSError) as error:
        return _Found(None, str(error) if isinstance(error, CompilerError) else f"{source}: {error}")


def _compiled_here(source: str) -> _Found:
    """Return the kernels of `source`. Raises OSError, CompilerError."""
    command, flags = compiler(), instructions()
    if flags is None:
        found = f"{sys.platform} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        raise CompilerError(f"they are for Linux on x86-64 with AVX2 or AVX512, this is {found}")
    if command is None:
        raise CompilerError("there is no C++ compiler: $CXX, g++, c++ or clang++")
    flags = (*_FLAGS, *flags)
    name = f"{Path(source).stem}-{_key(source, command, flags)}.so"
    try:
        return _Found(_compiled(command, flags, source, _folder() / name))
    except OSError as error:  # a cache that can't be written to, or from which nothing may be loaded
        with tempfile.TemporaryDirectory() as folder:
            return _Found(_compiled(command, flags, source, Path(folder) / name), why_not_kept=str(error))


def _compiled(command: list[str], flags: tuple[str, ...], source: str, path: Path) -> ctypes.CDLL:
    """Load `path`, compiled of `source` unless it is there. Raises OSError, CompilerError."""
    if not _is_whole(path):
        with _one_process(path):
            if not _is_whole(path):  # by another process, meanwhile
                _compile(command, flags, _HERE / source, path)
                _remove_unused(path)
    with contextlib.suppress(OSError):  # in a cache that may only be read
        os.utime(path)  # says that it is used
    return ctypes.CDLL(str(path))


@contextlib.contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Wait until no other process compiles what `path` is named after."""
    import fcntl  # not on Windows

    with (path.parent / f"{_name_of(path)}.lock").open("a") as file:
        with contextlib.suppress(OSError):  # a network's file system may have no locks: the same is compiled twice
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unused(path: Path) -> None:
    """Remove other compiled files of the same name than `path`, but for its key, that were not used for long."""
    for other in path.parent.glob(f"{glob.escape(_name_of(path))}-*.so"):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < time.time() - _UNUSED_SECONDS:
                other.unlink()


def _name_of(path: Path) -> str:
    """Return the name of a compiled file without its key."""
    return path.name.rpartition("-")[0]


def _is_whole(path: Path) -> bool:
    """Return True if `path` is as it was written: what a machine's sudden end has cut off may end a process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return content[-_DIGEST:] == hashlib.sha256(content[:-_DIGEST]).digest()


def _key(source: str, command: list[str], flags: tuple[str, ...]) -> str:
    """Return what names a compiled file: its text, the compiler and the machine."""
    version = subprocess.run([*command, "--version"], capture_output=True, check=False).stdout
    machine = [
        line for line in Path("/proc/cpuinfo").read_bytes().splitlines() if line.startswith((b"model", b"flags"))
    ]
    texts = [(_HERE / name).read_bytes() for name in (*_HEADERS, source)]
    found = [*texts, version, *sorted(set(machine)), repr((command, flags)).encode()]
    return hashlib.sha256(b"\0".join(found)).hexdigest()[:16]


def _folder() -> Path:
    """Return the folder of compiled files, made if need be: in the user's cache, readable by its owner alone. Raises
    OSError where there can be none, or others may write to it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not cache.is_absolute():  # there is no home
        raise OSError(f"{cache} is no absolute path")
    folder = cache / "fastcifar" / "cpp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:  # another's code would run as this user's
        raise PermissionError(f"{folder} is another user's, or others may write to it")
    return folder


def _compile(command: list[str], flags: tuple[str, ...], source: Path, path: Path) -> None:
    """Compile `source` to `path`, which appears whole or not at all. Raises CompilerError."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        arguments = [*command, *flags, "-shared", "-fPIC", f"-I{_HERE}", str(source), "-o", str(made)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            took = f"{shlex.join(command)} took more than {_COMPILE_SECONDS:.0f} seconds for {source.name}"
            raise CompilerError(took) from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "") or done.stderr[:200]
            said = said.strip() or "it said nothing"
            ended = f"{shlex.join(command)} ended with status {done.returncode} for {source.name}"
            raise CompilerError(f"{ended}: {said}")
        with made.open("ab") as file:  # the loader reads no further than the ELF file's own end
            file.write(hashlib.sha256(made.read_bytes()).digest())
        os.replace(made, path)
