"""The CPU, its threads and memory, compilers, and variables of the environment that change what a training does."""

from __future__ import annotations

import os

from fastcifar.doctor.finding import Finding, fail, imported, ok, warn
from fastcifar.machine import GIB, cores, free_memory, total_memory
from fastcifar.recipes import DEFAULT_RECIPE

_NEEDED = 2 * GIB
"""Memory that `fastcifar train` needs on a CPU, torch and images included: 1.8 GiB were measured."""


def cpu() -> Finding:
    """Examine which instructions the CPU has, and the type that trainings compute in."""
    torch = imported("torch")
    training = imported("fastcifar.training", "torch")
    device = torch.device("cpu")
    level = torch.backends.cpu.get_cpu_capability()
    features = {
        "AVX2": "_is_avx2_supported",
        "AVX512-BF16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
    }
    has = [name for name, function in features.items() if getattr(torch.cpu, function, bool)()]
    dtype = str(training.resolve_dtype("auto", device)).removeprefix("torch.")
    milliseconds = [
        f"{1e3 * seconds:.3g} ms in {str(kind).removeprefix('torch.')}"
        for kind, seconds in training.convolution_seconds().items()
    ]
    why = f"a convolution and its gradients take {' and '.join(milliseconds)} on one core"
    known = f"{level}; {', '.join(has) or 'neither AVX2 nor AVX-512'}"
    found = f"{training.describe_device(device).name}; {known}; dtype auto is {dtype}: {why}"
    if level == "DEFAULT" and os.environ.get("ATEN_CPU_CAPABILITY"):
        return warn(f"{found}; ATEN_CPU_CAPABILITY says so", "unset it")
    return ok(found)


def threads() -> Finding:
    """Examine whether torch has as many threads as there are cores for it."""
    used, allowed = imported("torch").get_num_threads(), cores()
    setting = os.environ.get("OMP_NUM_THREADS")
    found = f"{used} of torch's on {allowed:g} of {os.cpu_count()} cores" + (
        f"; OMP_NUM_THREADS={setting}" if setting else ""
    )
    whole = max(1, int(allowed))
    if used > whole:
        return warn(
            found, f"OMP_NUM_THREADS={whole}, or --threads {whole}: more threads than cores wait for each other"
        )
    return ok(found, f"--threads {whole} may be faster" if used < whole else "")


def compiler() -> Finding:
    """Examine whether torch.compile finds a C++ compiler for the CPU."""
    missing = imported("fastcifar.training.compiled", "torch").missing_compiler(imported("torch").device("cpu"))
    if missing is None:
        return ok("torch.compile finds a C++ compiler")
    return warn(missing, "install g++ (or set CXX) for --compile step on a CPU; all else works without")


def cpp() -> Finding:
    """Compile the C++ kernels that this CPU takes, unless they are there already."""
    kernels = imported("fastcifar.kernels.cpp", "torch")
    sources = imported("fastcifar.kernels.compile_ahead", "torch").cpp_sources()
    failed, unkept = (
        "; ".join(dict.fromkeys(filter(None, map(why_not, sources))))
        for why_not in (kernels.why_not, kernels.why_not_kept)
    )
    if failed and kernels.instructions() is None:
        return ok(f"none; {failed}")
    if failed:
        return warn(failed, "install g++ (or set CXX): a CPU uses torch's operations until then, which are slower")
    found = f"compiled by {' '.join(kernels.compiler())}"
    if unkept:
        return warn(f"{found}, by every process anew: {unkept}", "XDG_CACHE_HOME: a folder of yours to keep them in")
    return ok(found)


def memory() -> Finding:
    total, free = total_memory(), free_memory()
    if total is None or free is None:
        return ok("not known on this system")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free; {DEFAULT_RECIPE} on a CPU takes {_NEEDED / GIB:g} GiB"
    if free < _NEEDED:
        return warn(found, "end other programs, or use a smaller batch_size or network")
    return ok(found)


_CHANGING = {
    "TRITON_INTERPRET": "runs Triton's kernels in its interpreter",
    "FASTCIFAR_KERNELS": "forces a path of the kernels",
    "NVIDIA_TF32_OVERRIDE": "sets the precision of float32 on GPUs",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "sets the precision of float32 on GPUs",
    "CUDA_LAUNCH_BLOCKING": "makes the host wait for every kernel",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "makes every allocation wait for the GPU",
    "TORCH_COMPILE_DISABLE": "turns torch.compile off",
    "TORCHDYNAMO_DISABLE": "turns torch.compile off",
    "ATEN_CPU_CAPABILITY": "chooses the CPU's instructions",
    "MKL_CBWR": "chooses the CPU's instructions",
    "DNNL_MAX_CPU_ISA": "chooses the CPU's instructions",
    "ONEDNN_MAX_CPU_ISA": "chooses the CPU's instructions",
}
"""Variables that change what is computed, or how fast."""
_TOLD = ("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "FASTCIFAR_", "TORCH")
_TOLD += ("PYTORCH_", "TRITON_", "KMP_")
"""The beginnings of others that are told."""


def environment() -> Finding:
    """Say which variables are set that change results or speed."""
    forced = os.environ.get("FASTCIFAR_KERNELS", "")
    if forced not in ("", "reference", "cpp", "triton"):
        return fail(f"FASTCIFAR_KERNELS={forced}", "reference, cpp, triton, or unset")
    off = {name: ("",) if "OVERRIDE" in name else ("", "0") for name in _CHANGING}
    changing = [name for name in _CHANGING if os.environ.get(name, "") not in off[name]]
    others = sorted(name for name in os.environ if name.startswith(_TOLD) and name not in changing)
    said = [f"{name}={os.environ[name]} {_CHANGING[name]}" for name in changing]
    said += [f"{name}={os.environ[name]}" for name in others]
    found = "; ".join(said) or "nothing that changes results is set"
    return warn(found, f"unset {', '.join(changing)}, unless you mean it") if changing else ok(found)
