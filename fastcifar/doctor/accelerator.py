"""GPUs, and what runs on them: CUDA, cuDNN and Triton."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from fastcifar.doctor.finding import Finding, fail, import_error, imported, ok, warn, worst
from fastcifar.machine import GIB

_LEAST_FREE = 4 * GIB
"""A GPU's free memory below which larger recipes may not fit."""
_NO_GPU = "no GPU is used"


def cuda() -> Finding:
    """Examine whether torch reaches the GPU that is there."""
    torch = imported("torch")
    driver = _driver()
    if torch.cuda.is_available():
        return ok(f"{torch.version.cuda}, driver {driver or 'of unknown version'}")
    if not driver:
        unused = " and Apple's MPS is not used" * torch.backends.mps.is_available()
        return ok(f"there is no NVIDIA driver{unused}: trainings use the CPU")
    if torch.version.cuda is None:
        found = f"driver {driver}, but torch {torch.__version__} is built without CUDA"
        return warn(found, "install torch for CUDA (pytorch.org/get-started) to train on the GPU")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return warn(f"driver {driver}, but CUDA_VISIBLE_DEVICES hides every GPU", "unset it to train on a GPU")
    return fail(f"driver {driver}, but torch cannot use it: {_reason(torch)}", "install a driver for torch's CUDA")


def gpu() -> Finding:
    """Examine each GPU: whether this torch has code for it, its memory, and who else uses it."""
    torch = imported("torch")
    if not torch.cuda.is_available():
        return ok(f"{_NO_GPU}: see cuda")
    findings = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    others = [line for line in _smi("--query-compute-apps=pid,used_memory") if not line.startswith(f"{os.getpid()},")]
    if others:
        said = ", ".join(line.replace(", ", " with ") for line in others)
        findings.append(warn(f"other processes: {said}", "timings are not comparable, and memory is shared"))
    return worst(findings)


def _gpu(torch: Any, index: int) -> Finding:
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    found = (
        f"{index}: {name}, capability {capability[0]}.{capability[1]}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    )
    if not supported(capability, torch.cuda.get_arch_list()):
        known = " ".join(torch.cuda.get_arch_list())
        return fail(
            f"{found}, not one of this torch's ({known})", "install a torch built for this GPU, or --device cpu"
        )
    if free < _LEAST_FREE:
        return warn(found, "end other processes on it, or choose a smaller batch_size")
    return ok(found)


def supported(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Return True if one of `architectures`, such as sm_80 or compute_90, has code for a GPU of this capability: of
    the same generation, or compiled for any newer one as it is loaded."""
    for kind, number in (word.split("_", 1) for word in architectures):
        digits = re.match(r"\d+", number)
        known = divmod(int(digits[0]), 10) if digits else (0, 0)
        exact = number.endswith("a")
        if known == capability or (
            not exact and known < capability and (kind == "compute" or known[0] == capability[0])
        ):
            return True
    return False


def cudnn() -> Finding:
    torch = imported("torch")
    version = torch.backends.cudnn.version()
    if version:
        return ok(f"{version // 10000}.{version // 100 % 100}.{version % 100}" if version >= 90000 else str(version))
    if torch.cuda.is_available():
        return fail("torch finds none", "install torch again, with the cuDNN it comes with")
    return ok(f"none; {_NO_GPU}")


def triton() -> Finding:
    """Examine whether Triton can be imported, and compiles and runs a kernel where there is a GPU."""
    torch = imported("torch")
    on_gpu, slower = torch.cuda.is_available(), "install Triton; without it a GPU uses plain torch, which is slower"
    reason = import_error("triton")
    if reason:
        return warn(reason, slower) if on_gpu else ok(f"{reason}; only a GPU needs it")
    version = imported("triton").__version__
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return warn(f"{version}, interpreted (TRITON_INTERPRET=1)", "unset it: the interpreter is very slow")
    try:
        _compile(torch, on_gpu)
    except Exception as error:  # the compilers raise any kind
        found = f"{version}, but it cannot compile here: {type(error).__name__}: {error}"
        advice = (
            "install a C compiler (gcc) and Python's headers, if the reason names them; GPUs use plain torch until then"
        )
        return warn(found, advice)
    return ok(f"{version}, {'compiles and runs a kernel' if on_gpu else 'compiles (for a GPU of capability 8.0)'}")


def _compile(torch: Any, on_gpu: bool) -> None:
    kernel: Any = imported("fastcifar.kernels.smallest").write_one
    if on_gpu:
        out = torch.zeros(1, device="cuda")
        kernel[(1,)](out)
        if out.item() != 1:
            raise RuntimeError(f"the kernel wrote {out.item()} for 1")
        return
    source = imported("triton.compiler").ASTSource(kernel, {"out_ptr": "*fp32"}, {})
    target = imported("triton.backends.compiler").GPUTarget("cuda", 80, 32)
    imported("triton").compile(source, target=target, options={"enable_fp_fusion": True})


def _driver() -> str:
    """Return the version of the NVIDIA driver, "" where there is none."""
    try:
        words = re.search(r"\d+\.\d+(?:\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
        return words[0] if words else "of unknown version"
    except OSError:
        return next(iter(_smi("--query-gpu=driver_version")), "")


def _smi(query: str) -> list[str]:
    """Return the lines of nvidia-smi's answer, none where it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=2)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _reason(torch: Any) -> str:
    """Return what torch says of a GPU that it cannot use."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return f"{error}"
    return "; ".join(str(each.message) for each in said) or f"it gives no reason ({sys.platform})"
