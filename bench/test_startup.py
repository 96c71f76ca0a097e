"""The time of a fresh process: the help, the import of the library with torch, and the first training step."""

import subprocess
import sys

import pytest

FIRST_STEP = """
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import get_recipe, quick
from fastcifar.training import Trainer
from fastcifar.training.rehearse import step_on_noise

recipe, _ = quick(get_recipe("davidnet"))
step_on_noise(Trainer(recipe, make_synthetic(4 * recipe.batch_size, 10)))()
"""
PROCESSES = {
    "help": ["-m", "fastcifar", "--help"],
    "import": ["-c", "from fastcifar import Trainer"],
    "first step": ["-c", FIRST_STEP],
}


@pytest.mark.benchmark(group="start-up")
@pytest.mark.reference("product")
@pytest.mark.unstable("a fresh process waits for files and for the system, which no reference workload does")
@pytest.mark.parametrize("process", PROCESSES)
def test_start_up(timed, process):
    command = [sys.executable, *PROCESSES[process]]
    rounds = 10 if process == "help" else 3
    timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds)
