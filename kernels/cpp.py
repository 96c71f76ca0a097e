"""C++ kernels of CPUs: compiled on the user's machine when one is first needed, and kept in the user's cache.

For an operation `name`, `name.cpp` holds functions of plain C types (`extern "C"`) for the instructions of the machine
that compiles them, and `name_cpp.py`, in an operation's folder `cpp.py`, calls them. Without a C++ compiler torch's own
operations do the same, slower.

torch's wrapper for such code, `torch.utils.cpp_extension`, includes torch's headers and wants ninja: half a minute,
where these files take a second or two.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fastcifar.kernels.launch import forced_path

DTYPES = {torch.float32: "float", torch.bfloat16: "bfloat16"}
"""Dtypes of the C++ kernels, and their names at the end of a function's: `name_float`."""

_HERE = Path(__file__).parent
_HEADERS = ("vector.h", "channels.h", "activation.h")
# NaN stays NaN and no order of sums is changed: only what may trap or set errno is given up.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp")
# By torch's name for the instructions that it uses here, which `ATEN_CPU_CAPABILITY` may limit.
_INSTRUCTIONS = {"AVX2": ("-march=x86-64-v3",), "AVX512": ("-march=native", "-mprefer-vector-width=512")}
_COMPILE_SECONDS = 120.0
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
    """Images as a kernel reads or writes them: vector.h's `View`."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("image", "row", "pixel")))
    tensor: Tensor


def view(images: Tensor | None) -> View:
    """Return images [N, C, H, W] as a kernel takes them: where they are, if the channels of a pixel follow one another,
    else a copy. None: a null pointer."""
    if images is None:
        return View()
    if images.stride(1) != 1 and images.shape[1] != 1:
        images = images.contiguous(memory_format=torch.channels_last)
    seen = View(images.data_ptr(), images.stride(0), images.stride(2), images.stride(3))
    seen.tensor = images  # which lives as long
    return seen


def call(source: str, function: str, *arguments: View | Tensor | int | float | None) -> None:
    """Call `function` of `source`.

    arguments: a tensor is passed by the address of its first element, None as a null pointer, an int (or bool) as
        int64_t, a float as double, images as a `View`.
    """
    library = _library(source, True)
    getattr(library, function)(*map(_as_c, arguments))


def _as_c(argument: View | Tensor | int | float | None) -> View | ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(argument, View):
        return argument
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


class CompilerError(RuntimeError):
    """C++ kernels that cannot be compiled or loaded here, and why."""


def why_not(source: str) -> str:
    """Return why the kernels of `source` cannot be had here, "" if they can; compiles them if need be."""
    try:
        _load(source)
    except CompilerError as error:
        return str(error)
    return ""


@functools.cache
def _library(source: str, needed: bool) -> ctypes.CDLL | None:
    """Return the compiled `source`; None where that can't be had and is not `needed`."""
    try:
        return _load(source)
    except CompilerError as error:
        if needed:
            raise RuntimeError(f"FASTCIFAR_KERNELS=cpp: {error}") from None
        if compiler() is not None and instructions() is not None:  # whoever has none of them misses nothing
            warnings.warn(f"the C++ kernels are left out, torch's are slower: {error}", stacklevel=4)
        return None


def compiler() -> str | None:
    """Return the C++ compiler of this machine: `$CXX`, g++, c++ or clang++. g++ before others, whose OpenMP may be
    another than torch's, with threads of its own."""
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def instructions() -> tuple[str, ...] | None:
    """Return the compiler's flags for the instructions that torch uses here; None: no C++ kernels for them."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    return _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())


@functools.cache
def _load(source: str) -> ctypes.CDLL:
    command, flags = compiler(), instructions()
    if flags is None:
        found = f"{sys.platform} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        raise CompilerError(f"they are for Linux on x86-64 with AVX2 or AVX512, this is {found}")
    if command is None:
        raise CompilerError("there is no C++ compiler: $CXX, g++, c++ or clang++")
    flags = (*_FLAGS, *flags)
    try:
        name = f"{Path(source).stem}-{_key(source, command, flags)}.so"
        try:
            return _compiled(command, flags, source, _folder() / name)
        except OSError:  # a cache that can't be written to, or from which nothing may be loaded
            with tempfile.TemporaryDirectory() as folder:
                return _compiled(command, flags, source, Path(folder) / name)
    except OSError as error:
        raise CompilerError(f"{source}: {error}") from None


def _compiled(command: str, flags: tuple[str, ...], source: str, path: Path) -> ctypes.CDLL:
    """Load `path`, compiled of `source` unless it is there. Raises OSError, CompilerError."""
    if not _is_whole(path):
        _compile(command, flags, _HERE / source, path)
    return ctypes.CDLL(str(path))


def _is_whole(path: Path) -> bool:
    """Return True if `path` is as it was written: what a machine's sudden end has cut off may end a process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return content[-_DIGEST:] == hashlib.sha256(content[:-_DIGEST]).digest()


def _key(source: str, command: str, flags: tuple[str, ...]) -> str:
    """Return what names a compiled file: its text, the compiler and the machine."""
    version = subprocess.run([command, "--version"], capture_output=True, check=False).stdout
    machine = [
        line for line in Path("/proc/cpuinfo").read_bytes().splitlines() if line.startswith((b"model", b"flags"))
    ]
    texts = [(_HERE / name).read_bytes() for name in (*_HEADERS, source)]
    found = [*texts, version, *sorted(set(machine)), repr(flags).encode()]
    return hashlib.sha256(b"\0".join(found)).hexdigest()[:16]


def _folder() -> Path:
    """Return the folder of compiled files, made if need be: in the user's cache, readable by its owner alone."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not cache.is_absolute():  # there is no home
        raise OSError(f"{cache} is no absolute path")
    folder = cache / "fastcifar" / "cpp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _compile(command: str, flags: tuple[str, ...], source: Path, path: Path) -> None:
    """Compile `source` to `path`, which appears whole or not at all. Raises CompilerError."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        arguments = [command, *flags, "-shared", "-fPIC", f"-I{_HERE}", str(source), "-o", str(made)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise CompilerError(f"{command} took more than {_COMPILE_SECONDS:.0f} seconds for {source.name}") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "") or done.stderr[:200]
            raise CompilerError(f"{command} ended with status {done.returncode} for {source.name}: {said.strip()}")
        with made.open("ab") as file:  # the loader reads no further than the ELF file's own end
            file.write(hashlib.sha256(made.read_bytes()).digest())
        os.replace(made, path)
