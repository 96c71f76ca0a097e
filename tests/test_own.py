"""Somebody's experiment of their own, on an installed wheel, far from this checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fastcifar


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(4), nn.Dropout(0.1)
        )
        self.head = nn.Linear(16 * 8 * 8, classes)

    def forward(self, x):
        x = self.features(x)
        return self.head(x.view(x.size(0), -1))


def focal(logits, labels):
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (1 - torch.exp(-losses)) * losses


def noisy(images):
    return images + 0.05 * torch.randn_like(images)


class Diary(fastcifar.Listener):
    def __init__(self):
        self.heard = []

    def on_start(self, trainer):
        self.heard.append(["start", trainer.total_steps])

    def on_epoch(self, row):
        self.heard.append([row.epoch, row.train_loss, row.test_accuracy])

    def on_end(self, record):
        self.heard.append(["end", record.steps])


random = np.random.RandomState(0)
y = random.randint(0, 3, 400)
x = (random.rand(400, 32, 32, 3) * 0.5).astype(np.float32)
x[np.arange(400), :, :, y] += 0.4  # a class is a color
data = fastcifar.Dataset.from_arrays(x[:320], y[:320], x[320:], y[320:], classes=("red", "green", "blue"))
diary = Diary()
run = fastcifar.train(
    "davidnet",
    data,
    seed=1,
    model=Net,
    loss=focal,
    optimizer=torch.optim.AdamW,
    augment=noisy,
    listeners=[diary],
    epochs=4,
    batch_size=32,
    dtype="bfloat16",
    **{"optimizer.lr": 0.003, "ema.decay": 0.9},
)
folder = run.save(sys.argv[1])
_, model, record = fastcifar.load_run(folder, model=Net)
again = fastcifar.evaluate(model, data.test, mean=data.mean, std=data.std)
print(
    json.dumps(
        {
            "file": fastcifar.__file__,
            "kernels": fastcifar.kernels.__file__,
            "dtypes": sorted({str(p.dtype) for p in run.model.parameters()}),
            "heard": diary.heard,
            "accuracy": run.tta_accuracy,
            "again": again.accuracy,
            "dtype": record.dtype,
            "repr": [repr(run), repr(data)],
        }
    )
)
"""


def test_everything_of_ones_own_trains_together_in_bfloat16_from_an_installed_wheel(installed, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert all(Path(said[name]).is_relative_to(installed) for name in ("file", "kernels"))
    assert (said["dtype"], said["dtypes"]) == ("bfloat16", ["torch.float32"])
    start, *rows, end = said["heard"]
    assert (start, end) == (["start", 40], ["end", 40])
    assert [row[0] for row in rows] == [1, 2, 3, 4] and rows[-1][1] < rows[0][1]
    assert said["accuracy"] > 0.9 and said["again"] == pytest.approx(said["accuracy"], abs=0.05)
    assert all("\n" not in text and len(text) < 150 for text in said["repr"])
    assert (tmp_path / "run" / "run.json").is_file()
