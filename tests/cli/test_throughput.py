"""`fastcifar throughput` as it is typed: its table, its files, and what it refuses before the work."""

import json
import subprocess
import sys

import pytest
import torch

from fastcifar.cli import main
from fastcifar.costs.throughput import Throughput

SMALL = ["throughput", "--network", "mlp", "--network.hidden", "8", "--steps", "2", "--device", "cpu", "--threads", "1"]
REFUSED = {
    "--memory 4": "--memory is '4'; allowed: a number above 0 and its unit: B, KiB, MiB, GiB or TiB, as in 4GiB",
    "--memory 0GiB": "--memory is '0GiB'; allowed: a number above 0",
    "--memory -1GiB": "--memory is '-1GiB'; allowed: a number above 0",
    "--from 0": "--from is 0; allowed: 1 or more images",
    "--from a": "--from is 'a'; allowed: a whole number",
    "--from 8 --to 4": "--to is 4; allowed: --from, 8, or more",
    "--steps 1": "--steps is 1; allowed: 2 to 100,000",
    "--plot": "--plot is True; allowed: with --out DIR, where figures are saved",
    "--frm 3": "unknown flag --frm; did you mean '--from'?",
    "--threads 0": "--threads is 0; allowed: 1 to 1,024",
    "--device tpu": "--device is 'tpu'; allowed: one of auto, cpu, cuda",
    "--resize 3": "augment.crop is 4; allowed: 0 to 2, below the side of the images, 3 pixels",
    "--recipe davidnte": "unknown recipe 'davidnte'; did you mean 'davidnet'?",
    "--dataset nowhere": "unknown data set 'nowhere'",
    "--out file": "output folder file is a file; allowed: a new or an empty folder",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def test_what_is_refused_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "file").write_text("")
    code = (
        "import contextlib, io, json, sys\n"
        "from fastcifar.cli import main\n"
        "for line, refused in json.loads(sys.argv[1]).items():\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert main(['throughput', *line.split()]) == (2 if refused else 0), line\n"
        "    assert err.getvalue().startswith(refused and f'fastcifar: {refused}'), err.getvalue()\n"
        "    assert err.getvalue().count('\\n') == bool(refused)\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    lines = json.dumps({**REFUSED, "--help": ""})
    done = subprocess.run([sys.executable, "-c", code, lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_table_says_each_size_and_what_was_left_out(capsys):
    words = ["--network", "davidnet", "--network.widths", "4", "4", "4", "4", "--network.ghost-batch", "8"]
    assert main([*SMALL[:1], *words, *SMALL[5:], "--to", "16", "--memory", "4GiB"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "up to 4.0 GiB" in out.splitlines()[0]
    rows = [line.split() for line in out.splitlines() if line.rstrip().endswith("MiB")]
    assert [row[0] for row in rows if row[0] != "batch"] == ["8", "16"]
    assert "left out: 1, 2, 4 (batch_size is 1; allowed: a multiple of network.ghost_batch, 8)" in out
    assert "ended" not in out and "fastest: " in out


def test_the_result_is_kept_shown_as_json_and_drawn(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["--from", "64", "--memory", "64MiB", "--largest", "--resize", "36", "--dataset", "cifar100:coarse"]
    assert main([*SMALL, *words, "--out", "found", "--plot", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err == "" and json.loads((tmp_path / "found/result.json").read_text()) == told
    assert (told["side"], told["classes"], told["memory_limit"]) == (36, 20, 64 * 2**20)
    assert told["ended"].startswith("out of memory on cpu")
    fits, fits_not = told["largest"]
    assert 64 <= told["sizes"][-1]["batch_size"] <= fits < fits_not <= told["too_large"]
    drawn = (tmp_path / "found/memory.svg").read_text()
    assert "36 x 36 pixels" in drawn and "n=5 groups" in drawn and (tmp_path / "found/throughput.png").exists()
    assert (tmp_path / "found/table.md").read_text().startswith("### Training steps: davidnet-mlp, 36 x 36 pixels")


def test_running_out_of_memory_at_once_is_a_result(capsys):
    assert main([*SMALL, "--memory", "1KiB", "--from", "64", "--largest"]) == 0
    assert "ended: out of memory on cpu: with batch_size 64" in capsys.readouterr().out


def test_a_failure_leaves_no_folder_behind(capsys, tmp_path, monkeypatch):
    assert main(["throughput", "--to", "16", "--out", "found"]) == 2  # no multiple of davidnet's ghost batch
    assert "allowed: a multiple of network.ghost_batch, 32" in capsys.readouterr().err

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Throughput, "measure", interrupted)
    assert main([*SMALL, "--out", "found"]) == 130
    assert list(tmp_path.iterdir()) == []
