"""Hostile and damaged weights and records are refused in a line, without the memory that they claim."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

import fastcifar
from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.start import WarmStart
from fastcifar.training import load_run, load_weights, train
from fastcifar.training.weights import read_weights
from tests.small import MLP
from tests.training import hostile_weights
from tests.training.weight_files import Net, older, refused

ROOT = Path(__file__).parents[2]
BIAS, LAST = "0.bias", "3.bias"
TENSORS = {
    "too large": (
        LAST,
        torch.full((2,), 1e300, dtype=torch.float64),
        "that are too large, 2 of 2 in 3.bias for float32; allowed",
    ),
    "infinite": (LAST, torch.full((2,), torch.inf, dtype=torch.float64), "NaN or infinite values, 2 of 2 in 3.bias"),
    "shape": (BIAS, torch.ones(5), r"0.bias is \[5\] for \[4\]"),
    "a scalar": (BIAS, torch.ones(()), r"0.bias is \[\] for \[4\]"),
    "extra": ("more", torch.ones(5), r"more is \[5\] for none here"),
    "missing": (BIAS, None, r"0.bias is absent for \[4\]"),
    "whole numbers": (BIAS, torch.ones(4).long(), "0.bias is int64 for float32; allowed: the same kind"),
    "truth": (BIAS, torch.ones(4).bool(), "0.bias is bool for float32; allowed: the same kind"),
    "complex": (BIAS, torch.ones(4).cfloat(), "0.bias is complex64 for float32"),
    "a name": ("\x1b[2J\n", torch.ones(1), re.escape(r"\x1b[2J\n is [1] for none here")),
}


def changed(name, value):
    state = {**Net().state_dict(), name: value}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("write", [torch.save, older, save_file])
def test_tensors_that_do_not_fit_are_refused_by_name(write, case, tmp_path):
    name, value, message = TENSORS[case]
    write(changed(name, value), tmp_path / "weights")
    assert re.search(message, refused(tmp_path / "weights"))


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


VALUES = {
    "a module": (
        Net,
        r"objects of Python, not weights alone \(.*Net\), as of torch.save\(model\) or beside the weights; ",
    ),
    "code": (lambda: changed("x", Code()), r"not weights alone \(posix.system\)"),
    "code as a name": (lambda: {Code(): torch.ones(1)}, r"not weights alone \(posix.system\)"),
    "numpy": (lambda: {"a": np.ones(3)}, r"not weights alone \(numpy._core.multiarray._reconstruct\)"),
    "sparse": (lambda: changed(BIAS, torch.ones(4).to_sparse()), "it holds sparse tensors"),
    "quantized": (lambda: changed(BIAS, torch.quantize_per_tensor(torch.ones(4), 1, 0, torch.qint8)), "quantized tens"),
    "conjugate": (lambda: changed(BIAS, torch.ones(4).cfloat().conj()), "hooks or other attributes"),
    "a list": (lambda: [torch.ones(3)], "it holds no state_dict"),
    "no tensors": (lambda: {"epoch": 3, "model": {}}, "it holds 'epoch', 'model', of which none is the state_dict"),
    "other values": (lambda: changed("lr", 0.5), "'lr' is no tensor with a name"),
    "tuples as names": (lambda: {(1, 2): torch.ones(1)}, "a dictionary whose keys are no names or numbers; allowed"),
    "meta": (lambda: changed("x", torch.empty(3, device="meta")), "it holds meta tensors"),
    "bits": (lambda: changed(BIAS, torch.ones(4, dtype=torch.uint8).view(torch.bits8)), "values of type torch"),
    "a set of tuples": (lambda: changed("x", {(1, 2)}), "it makes a set of other values"),
    "a type": (lambda: changed("x", torch.float32), "'x' is no tensor with a name"),
}


@pytest.mark.filterwarnings("ignore:.*[qQ]uantiz")
@pytest.mark.parametrize("write", [torch.save, older], ids=["zip", "older"])
@pytest.mark.parametrize("case", VALUES)
def test_what_is_no_weights_is_refused_and_nothing_runs(case, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = VALUES[case]
    write(make(), tmp_path / "weights")
    assert re.search(message, refused(tmp_path / "weights"))
    assert not (tmp_path / "executed").exists()


READ = """
import json, resource, sys
from pathlib import Path
from fastcifar.errors import UserError
from fastcifar.input import weights_file
from fastcifar.training.weights import read_weights

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10

def said(path):
    try:
        return sorted(read_weights(weights_file(path))[0])
    except UserError as error:
        return str(error)

folder = Path(sys.argv[1])
said(folder / "right.zip"), said(folder / "right.older"), said(folder / "right.safetensors")
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (before + (6 << 30),) * 2)  # an allocation of what is claimed fails, and says so
found = {}
for path in sorted(folder.iterdir()):
    found[path.name] = said(path), peak() - before
print(json.dumps(found))
"""


def in_a_process(folder):
    """Return what `read_weights` says of each file in `folder`, and by how many bytes the peak has grown by then."""
    done = subprocess.run([sys.executable, "-c", READ, folder], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hostile_files_are_refused_without_the_memory_that_they_claim(tmp_path):
    """Nor do right ones take more than twice their size, one for the file and one for the tensors."""
    files = {**hostile_weights.FILES, **{f"right.{kind}": data for kind, data in hostile_weights.WHOLE.items()}}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name, write in {"zip": torch.save, "older": older, "safetensors": save_file}.items():  # the last to be read
        write({"a": torch.ones(5 << 20), "b": torch.ones(5 << 20)}, tmp_path / f"~{name}")
    found = in_a_process(tmp_path)
    for name in ("zip", "older", "safetensors"):
        said, grown = found.pop(f"~{name}")
        assert said == ["a", "b"] and grown < 2 * (40 << 20) + (16 << 20), name
    for name, (said, grown) in found.items():
        if name.startswith("right."):
            assert said == ["a"]
            continue
        assert type(said) is str and said.isprintable() and name in said and "; allowed: " in said, (name, said)
        assert not re.search("alloc|Memory", said), (name, said)
        assert grown < 48 << 20, name
    assert len(found) == len(files)


def test_a_file_of_another_protocol_or_without_checksums_is_called_so(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "weights", pickle_protocol=4)
    assert "the instruction PROTO 4, which torch.save does not write by default; allowed" in refused(
        tmp_path / "weights"
    )
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(Net().state_dict(), tmp_path / "weights")
    finally:
        torch.serialization.set_crc32_options(True)
    assert "it was written without checksums" in refused(tmp_path / "weights")


def test_flipped_bits_of_a_zip_file_are_seen(tmp_path):
    """Of values and of the pickle: each entry has a checksum."""
    data = bytearray(hostile_weights.WHOLE["zip"])
    for position in range(0, len(data), 3):
        data[position] ^= 4
        (tmp_path / "weights").write_bytes(data)
        data[position] ^= 4
        try:
            tensors, _ = read_weights(tmp_path / "weights")
        except UserError:
            continue
        assert tensors.keys() == {"a"} and torch.equal(tensors["a"], torch.tensor([[1.0, 2], [3, 4]]))


def shrinking(path, monkeypatch):
    size = os.fstat
    path.write_bytes(hostile_weights.WHOLE["zip"])
    monkeypatch.setattr(os, "fstat", lambda file: os.stat_result((*size(file)[:6], 10_000, *size(file)[7:10])))


PLACES = {
    "a folder": (lambda path, _: path.mkdir(), "holds no run: model.safetensors is missing"),
    "nothing": (lambda path, _: None, "does not exist"),
    "a loop of links": (lambda path, _: path.symlink_to(path), "cannot read the weights in .*: Too many levels"),
    "a link to nothing": (lambda path, _: path.symlink_to("nowhere"), "does not exist"),
    "a device": (lambda path, _: path.symlink_to("/dev/zero"), "is a device, a pipe or a socket"),
    "a pipe": (lambda path, _: os.mkfifo(path), "is a device, a pipe or a socket"),
    "an empty file": (lambda path, _: path.touch(), "is empty"),
    "a long name": (lambda path, _: None, ": File name too long"),
    "a file that shrinks": (shrinking, "it changed while it was read"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_file_is_refused_at_once(case, tmp_path, monkeypatch):
    make, message = PLACES[case]
    path = tmp_path / ("weights" * (50 if case == "a long name" else 1))
    make(path, monkeypatch)
    said = refused(path)
    assert re.search(message, said) and "; allowed: " in said
    if case != "a file that shrinks":
        with pytest.raises(UserError, match=message):
            WarmStart(path)
        with pytest.raises(UserError, match=r"holds no run|too long"):
            load_run(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(MLP, make_synthetic(32, 20), device="cpu").save(tmp_path_factory.mktemp("runs") / "run")


RECORDS = {
    "deep": ("[" * 100_000, "cannot read the record .*; allowed: "),
    "no object": ("[]", "cannot read the record .*: it is not an object; allowed: "),
    "huge": (
        lambda text: text.replace('"steps": ', f'"steps": {"9" * 5000}, "x": '),
        "the record .* limit",
    ),
    "twice": (lambda text: text.replace("{", '{"seed": 4,', 1), "seed is given twice"),
    "no text": (b"\xff\xfe", "cannot read the record .*: 'utf-8' codec"),
    "empty": ("", "cannot read the record .*: Expecting value"),
    "another hash": (lambda text: re.sub('weights_sha256": "..', 'weights_sha256": "xx', text), "or of another run"),
    "a hash of another type": (lambda text: text.replace('weights_sha256": ', 'weights_sha256": 3, "x": '), "is 3; "),
    "escapes": (lambda text: text.replace('"phases": {', r'"phases": {"\u001b[2J": "",'), r"phases.\\x1b\[2J is "),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_hostile_record_is_refused_in_a_line(case, folder, tmp_path, capsys):
    make, message = RECORDS[case]
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    text = make((folder / "run.json").read_text()) if callable(make) else make
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_run(tmp_path)
    assert str(caught.value).isprintable()
    assert main(["eval", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"fastcifar: {caught.value}\n")


@pytest.mark.parametrize("damage", ["a bit", "another run", "extra", "missing"])
def test_weights_that_are_not_the_records_are_refused(damage, folder, tmp_path):
    """Of a run's folder, as a run, as a start and as weights; without a hash in the record what fits is read."""
    data, record = bytearray((folder / "model.safetensors").read_bytes()), json.loads((folder / "run.json").read_text())
    state = load_run(folder)[1].state_dict()
    if damage == "a bit":
        data[-3] ^= 1
    elif damage == "another run":
        data = save({name: tensor + 1 for name, tensor in state.items()})
    else:
        del state["classifier.bias"]
        data = save(state if damage == "missing" else {**load_run(folder)[1].state_dict(), "more": torch.ones(1)})
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "run.json").write_text(json.dumps(record))
    fresh = fastcifar.Trainer(MLP, make_synthetic(32, 20), "cpu").new_network
    for read in (load_run, lambda path: fresh(0, WarmStart(path)), lambda path: load_weights(fresh(0), path)):
        with pytest.raises(
            UserError, match=r"is damaged, or of another run: its sha256 is not the one in .*; allowed: "
        ):
            read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({**record, "weights_sha256": None}))
    if damage in ("extra", "missing"):
        with pytest.raises(UserError, match=r"more is \[1\] for none here|classifier.bias is absent for"):
            load_run(tmp_path)
    else:
        load_run(tmp_path)


OPENERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.jit"}
"""Modules that run what they read."""


def test_nothing_in_the_project_unpickles_freely():
    """What reads pickles is `fastcifar.data.pickled` and `fastcifar.training.state_file`, whose tests show that
    nothing in them runs, and torch.load of weights alone."""
    found, tested = [], ("pickled", "state_file")
    for path in (path for room in ("fastcifar", "kernels", "bench") for path in (ROOT / room).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "load" in text or "pickle" in text else ():
            if isinstance(node, ast.ImportFrom) and node.module in (*OPENERS, "torch", "numpy"):
                found += [path for name in node.names if "load" in name.name.lower() or "pickler" in name.name.lower()]
            elif isinstance(node, ast.ClassDef):
                found += [path for base in node.bases if "Unpickler" in ast.unparse(base) and path.stem not in tested]
            elif isinstance(node, ast.Call):
                module, _, name = ast.unparse(node.func).rpartition(".")
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                found += [path] * (module in OPENERS and name in ("load", "loads", "open", "Unpickler", "_Unpickler"))
                found += [path] * (module == "torch" and name == "load" and options.get("weights_only") != "True")
                found += [path] * (
                    (name == "read_pickle" and module != "") or options.get("allow_pickle", "False") != "False"
                )
    assert found == []
