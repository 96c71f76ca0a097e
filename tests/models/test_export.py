"""Networks that torch writes down: as a graph of torch.export, as a trace and as an ONNX file."""

import json
import logging
import os

import numpy as np
import pytest
import torch

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from tests.models.networks import NETWORKS, images, network
from tests.small import DAVIDNET, EVERYTHING


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_is_of_torchs_own_operations_and_takes_any_batch(name):
    net = network(name).eval()
    program = torch.export.export(net, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("fastcifar" in target for target in called)
    for batch in (1, 5):
        torch.testing.assert_close(program.module()(images(batch)), net(images(batch)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_traced_network_takes_any_batch(name):
    net = network(name).eval()
    traced = torch.jit.trace(net, images(2))
    for batch in (1, 5):
        torch.testing.assert_close(traced(images(batch)), net(images(batch)))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(48, 48)


@pytest.fixture(scope="module", params=[DAVIDNET, EVERYTHING], ids=["davidnet", "speedrun"])
def run(request, data):
    return fastcifar.train(request.param, data, epochs=1, device="cpu", eval_every=0)


def test_an_onnx_file_gives_the_logits_of_the_images_as_they_are(run, data, tmp_path, caplog):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    file, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    file.write_text("of before")
    link.symlink_to(file)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    level = logging.getLogger("torch.onnx").level
    assert run.export(link) == link and link.readlink() == file and {*tmp_path.iterdir()} == {file, link}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx").level == level
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    pixels = data.test.images.permute(0, 3, 1, 2).float().numpy()
    for part in (slice(0, 1), slice(0, 7)):
        (logits,) = session.run(["logits"], {"images": pixels[part]})
        np.testing.assert_allclose(logits, run.plain_logits[part].numpy(), rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(data.classes)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


@pytest.mark.parametrize("missing", [("onnx",), ("onnxscript",), ("onnx", "onnxscript")])
def test_without_the_packages_it_is_said_which(run, monkeypatch, tmp_path, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else name)
    with pytest.raises(UserError, match=rf"^an ONNX file needs {' and '.join(missing)}, not installed here: pip"):
        run.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [".", "absent/model.onnx", "pipe", "to-pipe", "circle"])
def test_a_place_that_cannot_be_written_is_refused(run, monkeypatch, tmp_path, place):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match=r"^cannot write .*; allowed: a file in a folder that can be written to$"):
        run.export(tmp_path / place)
    assert (tmp_path / "pipe").is_fifo()
