"""`fastcifar doctor`: what it finds on machines that are well and on others, without packages too."""

import json
import os
import socket
import subprocess
import sys
import tempfile

import pytest
import torch

from fastcifar import doctor
from fastcifar.cli import main
from fastcifar.doctor import CHECKS, STATUSES, Asked, accelerator, examine, host, packages, stored
from fastcifar.doctor.finding import fail, ok, warn
from fastcifar.machine import GIB

SYNTHETIC = ["doctor", "--dataset", "synthetic"]


def test_every_check_is_an_object_with_its_finding_and_the_status_is_the_worst(capsys):
    status = main([*SYNTHETIC, "--json"])
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list(CHECKS)
    assert all(entry.keys() == {"name", "status", "found", "advice"} and entry["found"] for entry in entries)
    assert all(entry["advice"] for entry in entries if entry["status"] != "ok")
    assert status == max(STATUSES.index(entry["status"]) for entry in entries)
    found = {entry["name"]: entry for entry in entries}
    assert torch.__version__ in found["torch"]["found"] and found["data"]["found"].startswith("synthetic: ")


def test_its_lines_fit_a_terminal_and_control_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FASTCIFAR_DATA", "\x1b[31m\x07\n\u202eevil")
    monkeypatch.setitem(
        CHECKS, "torch", lambda asked: warn("one\ttwo\x1b]0;title\x07" + " word" * 40, "do\x9bsomething")
    )
    assert main(SYNTHETIC) in (1, 2)
    out, err = capsys.readouterr()
    assert not err and max(map(len, out.splitlines())) <= 80
    assert all(each.isprintable() for line in out.splitlines() for each in line) and "\\x1b" in out
    assert out.splitlines()[-1].endswith(" fail")


def broken(asked):
    raise OSError("libcudart.so.12: cannot open shared object file")


KINDS = {"ok": (lambda asked: ok("well"), 0), "warn": (lambda asked: warn("so so", "wait"), 1)}
KINDS |= {"fail": (lambda asked: fail("bad", "run"), 2), "raises": (broken, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_status_is_that_of_the_worst_check(capsys, monkeypatch, kind):
    check, status = KINDS[kind]
    monkeypatch.setattr("fastcifar.doctor.CHECKS", {"first": lambda asked: ok("well"), "second": check})
    assert main(["doctor"]) == status
    out, err = capsys.readouterr()
    assert not err and "Traceback" not in out
    assert kind != "raises" or "fail  second      OSError: libcudart.so.12: cannot open shared" in out


ABSENT = {
    "torch": "sys.modules['torch'] = None",
    "tyro": "sys.modules['tyro'] = None",
    "broken torch": "sys.path.insert(0, 'fake')",
}


@pytest.mark.parametrize("name", ABSENT)
def test_it_runs_where_a_package_is_missing_or_broken(tmp_path, name):
    (tmp_path / "fake/torch").mkdir(parents=True)
    (tmp_path / "fake/torch/__init__.py").write_text("print('noise')\nraise OSError('libtorch.so: no such file')\n")
    code = f"import sys\n{ABSENT[name]}\nfrom fastcifar.cli import main\nsys.exit(main(['doctor', '--json']))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:]), "XDG_CACHE_HOME": str(tmp_path)}
    environment["CXX"] = "false"  # compiles nothing, for time
    environment.pop("FASTCIFAR_DATA", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, "")
    found = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert list(found) == list(CHECKS)
    of = {"torch": "torch", "broken torch": "torch"}.get(name, "packages")
    reason = "OSError: libtorch.so: no such file" if name == "broken torch" else name
    assert found[of]["status"] == "fail" and reason in found[of]["found"] and found[of]["advice"]
    assert found["disk"]["status"] != "fail" and found["python"]["status"] == "ok"


def test_nothing_but_the_standard_library_is_imported_at_its_top():
    code = (
        "import sys, fastcifar.cli.doctor\nprint({'torch', 'numpy', 'tyro', 'packaging', 'rich'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(("half", "dtype"), [(0.0005, "bfloat16"), (0.02, "float32")])
def test_what_dtype_auto_takes_is_told_with_the_measured_times(monkeypatch, half, dtype):
    for place in ("fastcifar.training.device", "fastcifar.training"):
        seconds = {torch.float32: 0.001, torch.bfloat16: half}
        monkeypatch.setattr(f"{place}.convolution_seconds", lambda seconds=seconds: seconds)
    found = host.cpu().found
    assert f"dtype auto is {dtype}: " in found and f"1 ms in float32 and {1e3 * half:.3g} ms in bfloat16" in found


@pytest.mark.parametrize("there", [False, True])
def test_an_apple_gpu_is_told_to_be_left_alone(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(accelerator, "_driver", lambda: "")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    finding = accelerator.cuda()
    assert finding.status == "ok" and ("MPS is not used: trainings use the CPU" in finding.found) == there


@pytest.mark.parametrize(("used", "cores", "status"), [(2, 2, "ok"), (8, 2, "warn"), (2, 1.5, "warn"), (1, 4, "ok")])
def test_more_threads_than_cores_are_told(monkeypatch, used, cores, status):
    monkeypatch.setattr(torch, "get_num_threads", lambda: used)
    monkeypatch.setattr(host, "cores", lambda: cores)
    finding = host.threads()
    assert finding.status == status and f"{used} of torch's on {cores:g} of " in finding.found
    assert status == "ok" or f"--threads {int(cores)}" in finding.advice


@pytest.mark.parametrize(
    ("lacks", "status"), [("", "ok"), ("instructions", "ok"), ("compiler", "warn"), ("cache", "warn")]
)
def test_kernels_for_cpus_that_cannot_be_compiled_are_told(monkeypatch, lacks, status):
    from fastcifar.kernels import cpp as kernels

    monkeypatch.setattr(kernels, "why_not", lambda source: f"no {lacks}" if lacks not in ("", "cache") else "")
    monkeypatch.setattr(kernels, "why_not_kept", lambda source: "no cache" if lacks == "cache" else "")
    monkeypatch.setattr(kernels, "instructions", lambda: None if lacks == "instructions" else ("-march=native",))
    monkeypatch.setattr(kernels, "compiler", lambda: ["/usr/bin/g++"])
    finding = host.cpp()
    assert finding.status == status and (f"no {lacks}" if lacks else "compiled by /usr/bin/g++") in finding.found
    assert bool(finding.advice) == (status == "warn")


@pytest.mark.parametrize(("free", "status"), [(GIB, "warn"), (4 * GIB, "ok"), (None, "ok")])
def test_little_memory_is_told(monkeypatch, free, status):
    monkeypatch.setattr(host, "free_memory", lambda: free)
    assert host.memory().status == status


VARIABLES = {
    ("FASTCIFAR_KERNELS", "triton"): "warn",
    ("FASTCIFAR_KERNELS", "fast"): "fail",
    ("TRITON_INTERPRET", "1"): "warn",
    ("NVIDIA_TF32_OVERRIDE", "0"): "warn",
    ("CUDA_LAUNCH_BLOCKING", "0"): "ok",
    ("CUDA_VISIBLE_DEVICES", "1"): "ok",
    ("HOME", "/"): "ok",
}


@pytest.mark.parametrize("variable", VARIABLES, ids="=".join)
def test_variables_that_change_results_are_told(monkeypatch, variable):
    for name in list(os.environ):
        if name.startswith((*host._TOLD, *host._CHANGING)):
            monkeypatch.delenv(name)
    assert host.environment() == ok("nothing that changes results is set")
    monkeypatch.setenv(*variable)
    finding = host.environment()
    assert finding.status == VARIABLES[variable]
    assert ("=".join(variable) in finding.found) == (variable[0] not in ("HOME", "CUDA_LAUNCH_BLOCKING"))


@pytest.mark.parametrize(("place", "status"), [("runs", "fail"), ("temporary", "warn")])
def test_a_folder_that_cannot_be_written_to_is_told(monkeypatch, tmp_path, place, status):
    (tmp_path / "runs").mkdir()
    (tmp_path / "temporary").mkdir()
    real = tempfile.TemporaryFile

    def refuse(dir):
        if dir == tmp_path / place:
            raise OSError(30, "Read-only file system")
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = stored.disk(tmp_path / "runs")
    assert finding.status == status and f"cannot write to {tmp_path / place}: Read-only file system" in finding.found
    assert finding.advice


def test_a_full_disk_is_told_and_nothing_stays_there(monkeypatch, tmp_path):
    assert stored.disk(tmp_path / "not/there").status == "ok" and not list(tmp_path.iterdir())
    monkeypatch.setattr(stored, "_LEAST_FREE", 2**80)
    assert stored.disk(tmp_path).status == "warn"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and no network."""
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *args, **kwargs: pytest.fail("a download was started"))
    return tmp_path / "cache/fastcifar"


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(("name", "megabytes"), [("cifar10", 170), ("cifar100:coarse", 169), ("svhn", 246)])
def test_data_that_is_not_there_is_told_and_not_downloaded(cache, exists, name, megabytes):
    if exists:
        cache.mkdir(parents=True)
    finding = stored.data(name, None)
    assert finding.status == "warn" and f"the first training downloads it ({megabytes} MB)" in finding.found
    assert str(cache) in finding.found and cache.exists() == exists


@pytest.mark.parametrize("place", ["cache", "variable", "flag"])
def test_damaged_data_fails_with_its_error(cache, monkeypatch, tmp_path, place):
    folder = cache if place == "cache" else tmp_path / "mine"
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    if place == "variable":
        monkeypatch.setenv("FASTCIFAR_DATA", str(folder))
    finding = stored.data("cifar10", folder if place == "flag" else None)
    assert finding.status == "fail" and "lacks data_batch_1.bin" in finding.found


def test_a_named_place_without_data_fails(cache, tmp_path):
    assert stored.data("cifar10", tmp_path / "nowhere").status == "fail"


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_mirror_that_is_no_address_fails_with_advice_about_it(cache, monkeypatch, capsys, by):
    monkeypatch.setattr(doctor, "CHECKS", {"data": CHECKS["data"]})
    if by == "variable":
        monkeypatch.setenv("FASTCIFAR_MIRROR", "zzz")
    assert main(["doctor", "--json", *(["--mirror", "zzz"] if by == "flag" else [])]) == 2
    (finding,) = json.loads(capsys.readouterr().out)
    assert "is 'zzz'; allowed: the address (http, https or file) of a folder" in finding["found"]
    assert finding["advice"] == "--mirror or FASTCIFAR_MIRROR: such an address; or neither"


@pytest.mark.skipif(not os.environ.get("FASTCIFAR_DATA"), reason="needs CIFAR-10")
def test_it_is_said_how_the_images_were_verified():
    assert stored.data("cifar10", None).found.endswith("; verified by sizes and labels only")


ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "compute_100"]
SUPPORTED = {(7, 0): False, (7, 5): True, (8, 0): True, (8, 9): True, (9, 0): True, (10, 0): True, (12, 0): True}


@pytest.mark.parametrize("capability", SUPPORTED)
def test_a_gpu_is_supported_by_code_of_its_generation_or_an_older_one_to_compile(capability):
    assert accelerator.supported(capability, ARCHITECTURES) == SUPPORTED[capability]


GPUS = {"well": ((8, 0), 70, [], "ok"), "old": ((7, 0), 70, [], "fail"), "full": ((8, 0), 1, [], "warn")}
GPUS["shared"] = (8, 0), 70, [f"{os.getpid()}, 500 MiB", "1, 9000 MiB"], "warn"


@pytest.mark.parametrize("kind", GPUS)
def test_each_gpu_is_told_with_its_memory_and_who_uses_it(monkeypatch, kind):
    capability, free, lines, status = GPUS[kind]
    answers = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "NVIDIA A100",
        "get_arch_list": ARCHITECTURES,
    }
    answers |= {"get_device_capability": capability, "mem_get_info": (free * GIB, 80 * GIB)}
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setattr(accelerator, "_smi", lambda query: lines)
    finding = accelerator.gpu()
    assert finding.status == status
    assert f"0: NVIDIA A100, capability {capability[0]}.{capability[1]}, {free}.0 of 80.0 GiB free" in finding.found
    assert kind != "shared" or finding.found.endswith("other processes: 1 with 9000 MiB")


UNREACHED = {
    "no driver": ("", None, None, "ok"),
    "a CPU's torch": ("550.1", None, None, "warn"),
    "hidden": ("550.1", "12.6", "", "warn"),
    "too old": ("550.1", "12.6", None, "fail"),
}


@pytest.mark.parametrize(("driver", "built", "visible", "status"), UNREACHED.values(), ids=UNREACHED)
def test_a_gpu_that_torch_does_not_reach_is_told_with_the_reason(monkeypatch, driver, built, visible, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(accelerator, "_driver", lambda: driver)
    monkeypatch.setattr(accelerator, "_reason", lambda torch: "the driver is too old")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert accelerator.cuda().status == status


def test_another_installations_command_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert packages.command().status == "warn" and "not on PATH" in packages.command().found
    (tmp_path / "fastcifar").write_text("#!/bin/sh\n")
    (tmp_path / "fastcifar").chmod(0o755)
    assert packages.command().status == "warn" and "of another installation" in packages.command().found


def test_without_an_installation_it_goes_on(monkeypatch):
    monkeypatch.setattr(packages, "_distribution", lambda: None)
    monkeypatch.setattr(doctor, "CHECKS", {name: CHECKS[name] for name in ("packages", "extras", "torch")})
    assert [each.status for each in examine(Asked())] == ["warn", "ok", "ok"]
