"""C++ kernels: compiled once, kept, compiled anew where that is damaged, and left out where they can't be had."""

import functools
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fastcifar.errors import is_out_of_memory
from fastcifar.kernels import cpp

ROOT = Path(__file__).parents[2]
SOURCE = """
#include "channels.h"
extern "C" int add_float(View<const float> from, float* to, int64_t rows, int64_t columns, double factor) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++)
            to[row * columns + column] += float(factor) * from.at(1, row)[column * from.pixel];
    return rows < 0;
}
"""
HAS_COMPILER = cpp.compiler() is not None and cpp.instructions() is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler, or no kernels for this machine")


@pytest.fixture(autouse=True)
def new_cache(monkeypatch, tmp_path) -> Path:
    """An empty cache of compiled files, and nothing of the process's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTCIFAR_KERNELS", raising=False)
    monkeypatch.setattr(cpp, "_warned", set())
    for name in ("_library", "_find"):
        monkeypatch.setattr(cpp, name, functools.cache(getattr(cpp, name).__wrapped__))
    return tmp_path / "cache" / "fastcifar" / "cpp"


@pytest.fixture
def source(tmp_path) -> str:
    (tmp_path / "add.cpp").write_text(SOURCE)
    return str(tmp_path / "add.cpp")


def use_again(source: str) -> bool:
    """Return what a new process would find."""
    cpp._library.cache_clear()
    cpp._find.cache_clear()
    return cpp.use_cpp(source)


@needs_compiler
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_kernel_reads_images_where_they_are_or_a_copy_of_them(source, channels_last):
    images = torch.randn(2, 3, 4, 5)
    images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    inside, sums = images[:, :, 1:, 2:], torch.zeros(3, 3)
    seen = cpp.view(inside)
    assert (seen.data == inside.data_ptr()) == channels_last
    cpp.call(source, "add_float", seen, sums, 3, 3, 0.5)
    assert torch.equal(sums, inside[1, 0] / 2)
    assert cpp.view(None).data is None and cpp.why_not(source) == ""


@needs_compiler
def test_a_compiled_file_is_kept_and_compiled_anew_when_its_text_changes(monkeypatch, new_cache, source):
    assert cpp.use_cpp(source)
    assert len(list(new_cache.glob("*.so"))) == 1 and new_cache.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patched:
        patched.setattr(cpp, "_compile", lambda *arguments: pytest.fail("it is there already"))
        assert use_again(source)
    Path(source).write_text(SOURCE + "// another\n")
    assert use_again(source) and len(list(new_cache.glob("*.so"))) == 2


@needs_compiler
@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_cut_off_file_is_compiled_anew(new_cache, source, size):
    assert cpp.use_cpp(source)
    (path,) = new_cache.glob("*.so")
    whole = path.read_bytes()
    path.unlink()  # and not written over: this process has it loaded
    path.write_bytes(whole[:size])
    assert use_again(source) and path.stat().st_size == len(whole)


@needs_compiler
@pytest.mark.parametrize("cache", ["file", "relative", "others may write", "another's"])
def test_without_a_folder_to_keep_files_in_they_are_compiled_for_the_process(monkeypatch, new_cache, source, cache):
    if cache == "file":
        new_cache.parents[1].write_text("in which no folder can be made")
    elif cache == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    elif cache == "another's":
        monkeypatch.setattr(os, "getuid", lambda: -1)
    else:
        new_cache.mkdir(parents=True)
        new_cache.chmod(0o770)
    with pytest.warns(UserWarning, match=r"not kept, every process compiles them anew \(.*\); XDG_CACHE_HOME names"):
        assert cpp.use_cpp(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpp.use_cpp(source)
    assert cpp.why_not_kept(source) and not cpp.why_not(source)
    assert not Path("relative").exists() and not list(new_cache.glob("*.so"))


@needs_compiler
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_two_that_want_the_same_at_once_compile_it_once(monkeypatch, tmp_path, new_cache, source, kind):
    (tmp_path / "counting").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nsleep 0.2\nexec g++ "$@"\n')
    (tmp_path / "counting").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "counting"))
    code = f"from fastcifar.kernels import cpp\nassert cpp.use_cpp({source!r})"
    if kind == "processes":
        started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ)) for _ in range(2)]
        assert [process.wait() for process in started] == [0, 0]
    else:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(cpp.use_cpp, [source] * 2)) == [True, True]
    assert (tmp_path / "calls").read_text().count("-shared") == 1
    assert len(list(new_cache.glob("*.so"))) == 1


@needs_compiler
def test_files_that_no_process_used_for_a_month_go_with_the_next_that_is_compiled(new_cache, source):
    assert cpp.use_cpp(source)
    (used,) = new_cache.glob("*.so")
    names = {"add-0.so": 31, "add-1.so": 29, "other-0.so": 31}
    for name, days in names.items():
        (new_cache / name).touch()
        os.utime(new_cache / name, (time.time() - days * 86400,) * 2)
    os.utime(used, (0, 0))
    assert use_again(source) and len(list(new_cache.glob("*.so"))) == 4  # and it is used
    Path(source).write_text(SOURCE + "// another\n")
    assert use_again(source)
    kept = {path.name for path in new_cache.glob("*.so")}
    assert len(kept) == 4 and {"add-1.so", "other-0.so", used.name} < kept


@needs_compiler
def test_a_lack_of_memory_and_a_tensor_elsewhere_are_errors(source):
    with pytest.raises(MemoryError, match=r"^out of memory in add_float of add.cpp$") as error:
        cpp.call(source, "add_float", cpp.view(None), None, -1, 0, 1.0)
    assert is_out_of_memory(error.value)
    for arguments in ((cpp.view(None), torch.zeros(1, device="meta")), (torch.zeros(1, device="meta"),)):
        with pytest.raises(RuntimeError, match="got a tensor on meta; allowed: cpu"):
            cpp.call(source, "add_float", *arguments, 0, 0, 1.0)
    with pytest.raises(RuntimeError, match="got a tensor on meta; allowed: cpu"):
        cpp.view(torch.zeros(1, 1, 1, 1, device="meta"))


@needs_compiler
def test_what_cannot_be_compiled_is_one_warning_and_an_error_where_it_is_forced(monkeypatch, new_cache, source):
    Path(source).write_text("#error no such instructions\n")
    with pytest.warns(
        UserWarning, match=r"the C.. kernels of add.cpp are left out, torch's are slower: .* with status 1 for add.cpp"
    ):
        assert not cpp.use_cpp(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpp.use_cpp(source)
    assert "no such instructions" in cpp.why_not(source) and not list(new_cache.glob("*.so"))
    monkeypatch.setenv("FASTCIFAR_KERNELS", "cpp")
    with pytest.raises(
        RuntimeError, match=r"FASTCIFAR_KERNELS=cpp: .* with status 1 for add.cpp: .*no such instructions"
    ):
        cpp.use_cpp(source)


@needs_compiler
def test_a_warning_that_is_an_error_is_raised_once_and_a_compiler_may_say_nothing(monkeypatch, source):
    monkeypatch.setenv("CXX", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"false ended with status 1 for add.cpp: it said nothing$"):
            cpp.use_cpp(source)
        assert not cpp.use_cpp(source)


@pytest.mark.parametrize("lacking", ["compiler", "instructions"])
def test_where_there_is_no_compiler_nothing_is_said_unless_it_is_forced(monkeypatch, source, lacking):
    monkeypatch.setattr(cpp, lacking, lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpp.use_cpp(source)
    monkeypatch.setenv("FASTCIFAR_KERNELS", "cpp")
    with pytest.raises(RuntimeError, match=r"^FASTCIFAR_KERNELS=cpp: (there is no C|they are for Linux)"):
        cpp.use_cpp(source)


def test_the_compiler_is_the_one_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert cpp.compiler() is None
    for name in ("c++", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    for named in ("", "absent", "'unended"):
        monkeypatch.setenv("CXX", named)
        assert cpp.compiler() == [str(tmp_path / "c++")]
    monkeypatch.setenv("CXX", "mine 'c++' -O1")
    assert cpp.compiler() == [str(tmp_path / "mine"), "c++", "-O1"]


@needs_compiler
def test_only_tensors_that_the_kernels_know_take_them(monkeypatch, source):
    assert cpp.use_cpp(source, torch.zeros(1), None, torch.zeros(1, dtype=torch.bfloat16))
    assert not cpp.use_cpp(source, torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not cpp.use_cpp(source, torch.zeros(1, device="meta"))
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    assert not cpp.use_cpp(source, torch.zeros(1))
