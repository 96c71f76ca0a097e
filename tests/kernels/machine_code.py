"""The machine code of every Triton kernel for GPUs that are not here, made by processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CASES = [
    (80, "bfloat16", "davidnet", "augment.cutout=8"),
    (
        *(89, "float32", "speedrun96"),
        "network.freeze_scale=false network.activation=silu ema.decay=0.9 "
        "network.whitening_activation=silu network.whitening_bias_epochs=1 augment.early=resize "
        "optimizer.row_momentum=0.9",
    ),
    (90, "float16", "speedrun94", "augment.early_crops=[[24,0.5]] augment.early=crop"),
]
"""Generation, dtype, recipe and changes of it: each activation, an average or none, scales learned or not, each choice
of `augment`, Muon and SGD."""
POOLED = [(120, "float16", "conv_pool", "")]
"""A generation with less shared memory, for which the operator that takes most of it is compiled alone."""

CODE = """
import dataclasses, json, os, re, subprocess, sys, tempfile, torch, triton
from triton.backends.compiler import GPUTarget

architecture, dtype, name, changes = json.loads(sys.argv[1])


class Driver:  # what triton asks of a driver in order to compile
    get_current_target = staticmethod(lambda: GPUTarget("cuda", architecture, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


triton.runtime.driver.set_active(Driver)
from fastcifar.data.synthetic import make_synthetic
from fastcifar.kernels import compile_ahead, conv_pool, newton_schulz, norm_act_pool, norm_act_pool_inference
from fastcifar.recipes import RECIPES
from fastcifar.recipes.text import change, read_changes
from fastcifar.training import Trainer
from fastcifar.training.rehearse import compile_kernels

launch = sys.modules["fastcifar.kernels.launch"]
launch._gpu_of = lambda tensor: (divmod(architecture, 10), 132)  # what tensors on the CPU are launched with



def of_a_training():  # all that it launches, and further sizes
    # Narrow and in small batches, for time, as what is no kernel is computed: the numbers of channels and of elements
    # keep the divisors that kernels are compiled for.
    recipe = change(RECIPES[name], read_changes(changes.split()))
    recipe = dataclasses.replace(
        recipe,
        **{"batch_size": 64, "epochs": 4, "dtype": dtype},
        network=dataclasses.replace(recipe.network, widths=(32, 32, 32, 64) if name == "davidnet" else (64, 64, 64)),
    )
    compile_kernels(Trainer(recipe, make_synthetic(1024, 32), "cpu"))
    if dtype != "float32":  # the most that one program holds
        rows = sys.modules["fastcifar.kernels.newton_schulz"].SIZES.of(torch.zeros(())).small_rows
        x, numbers = torch.zeros(32 * rows, dtype=getattr(torch, dtype)), (3, -4, 2) * 4 + (2, -3, 1)
        compile_ahead(lambda: newton_schulz(x, x.clone(), [1, rows, 32], steps=5, coefficients=numbers), "cpu")
    if name == "davidnet":  # as a ResNet's blocks end
        images = torch.zeros(32, 32, 8, 8, dtype=getattr(torch, dtype)).to(memory_format=torch.channels_last)
        x, residual = (images.clone().requires_grad_() for _ in range(2))
        ones, scale = torch.ones(32), torch.ones(32).requires_grad_()
        plain = {"activation": "sum_relu", "residual": residual}
        norm_act_pool(x, ones, scale, running=(ones.clone(), ones.clone()), **plain)[0].backward(images)
        with torch.no_grad():
            norm_act_pool_inference(x, ones, ones, ones, ones, **plain)
    if name == "speedrun94":  # its own number of rows, and the most
        for rows in (256, 512):
            x = torch.zeros(rows * rows, dtype=getattr(torch, dtype))
            compile_ahead(lambda: newton_schulz(x, x.clone(), [1, rows, rows], steps=3, coefficients=(3, -4, 2)), "cpu")


def of_conv_pool():  # at the sizes of speedrun94's first block
    def run():
        filters = torch.zeros(64, 24, 3, 3, dtype=getattr(torch, dtype)).to(memory_format=torch.channels_last)
        images = torch.zeros(2, 24, 31, 31, dtype=filters.dtype).to(memory_format=torch.channels_last)
        conv_pool(images, filters.requires_grad_(), True).sum().backward()
        with torch.no_grad():
            conv_pool(images, filters, True)

    compile_ahead(run, "cpu")


with launch.compile_only():  # lets Triton take tensors on the CPU
    of_conv_pool() if name == "conv_pool" else of_a_training()

cuobjdump = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


def stack_bytes(cubin):  # what a thread spills, and its arrays that are not in registers
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    return sum(int(re.search(rf"{name}:(\\d+)", usage)[1]) for name in ("STACK", "LOCAL"))


found = {}
for name, module in list(sys.modules.items()):
    for function in list(vars(module).values()) if name.startswith("fastcifar.kernels.") else ():
        for cache in getattr(function, "device_caches", {}).values():
            found[function.__name__] = [
                {
                    **{"ptx": kernel.asm["ptx"], "stack": stack_bytes(kernel.asm["cubin"])},
                    "shared": kernel.metadata.shared,
                }
                for kernel in cache[0].values()
            ]
print(json.dumps(found))
"""


class Compilers:
    """Processes, one for each case, which compile while other tests run; of several that test in parallel the first one
    starts them.

    folder: that of all of these, where `started` is made by who starts them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, []
        try:
            (folder / "started").mkdir()
        except FileExistsError:
            return
        environment = {**os.environ, "FASTCIFAR_KERNELS": "triton", "TRITON_CACHE_DIR": str(folder / "cache")}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *filter(None, [os.getenv("PYTHONPATH")])])
        environment.pop("TRITON_INTERPRET", None)
        behind = "nice " if shutil.which("nice") else ""  # the tests that run meanwhile
        for number, case in enumerate([*CASES, *POOLED]):
            ended = f"echo $? > {number}.part; mv {number}.part {number}.status"  # whole once it is there
            command = f'{behind}"$0" -c "$1" "$2" > {number}.out 2> {number}.errors; {ended}'
            words = ["sh", "-c", command, sys.executable, CODE, json.dumps(case)]
            self._running.append(subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True))

    def results(self) -> dict:
        """Return PTX and stack of every compiled variant, by case and kernel."""
        found = {}
        for number, case in enumerate([*CASES, *POOLED]):
            status, errors = (self._folder / f"{number}.{name}" for name in ("status", "errors"))
            while not status.exists():
                time.sleep(0.2)
            assert int(status.read_text()) == 0, errors.read_text()
            found[case] = json.loads((self._folder / f"{number}.out").read_text())
        return found

    def stop(self, wait: bool) -> None:
        """End those that this process has started; `wait`: when they are done, as others may need them."""
        for process in self._running:
            if not wait:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
