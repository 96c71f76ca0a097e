"""`fastcifar models list` and `fastcifar models show`."""

import functools
import json
import re
import subprocess
import sys

import pytest
import torch

from fastcifar.cli import main, models
from fastcifar.cli.sharing import to_dot
from fastcifar.costs.sharing import trace
from fastcifar.data.synthetic import make_synthetic
from fastcifar.models.mlp import MLP
from fastcifar.recipes import NETWORKS, RECIPES
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.training import train

NARROW = ["davidnet-interpolation", "--network.widths", "4", "8", "12", "16", "--network.loss", "coin"]
NARROW += ["--resize", "8"]
TINY = ["--network.widths", "2", "3", "4", "5", "6", "--network.hidden", "7", "8"]
REFUSED = {
    "models show davidnt": "there is no network 'davidnt'; did you mean 'davidnet'?; allowed: " + ", ".join(NETWORKS),
    "models show speedrun94": "there is no network 'speedrun94'; did you mean --recipe speedrun94?; allowed: ",
    "models show nowhere/run": "there is no network 'nowhere/run'; allowed: ",
    "models show davidnet --graph drawing.pdf": "--graph is 'drawing.pdf'; allowed: --graph alone, or a file of .dot",
    "models show davidnet --graph=": "--graph is ''; allowed: --graph alone, or a file of .dot, .svg, .png",
    "models show davidnet --network mlp": "--network is given with davidnet; allowed: one of the two",
    "models show --recipe davidnot": "unknown recipe 'davidnot'; did you mean 'davidnet'?",
    "models show mlp --network.width 3": "unknown flag --network.width; allowed: with --network resnet18",
    "models show davidnet --resize 4": "network is davidnet, and images have 4 pixels a side; allowed: 8 or more",
    "models list davidnet": "unexpected argument 'davidnet'",
    "models davidnet": "unexpected argument 'davidnet'",
    "models show davidnet --side 4": "network is davidnet, and images have 4 pixels a side; allowed: 8 or more",
    "models show alexnet --side 62": "network is alexnet, and images have 62 pixels a side; allowed: 63 or more",
    "models show mlp --side 32 --resize 32": "--side is 32; allowed: without --resize, which says the same",
}


def shown(capsys, *words):
    assert main(["models", "show", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("line", REFUSED)
def test_a_refusal_is_one_line(capsys, line):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"fastcifar: {REFUSED[line]}") and err.count("\n") == 1


def test_refusals_and_help_need_no_torch():
    lines = [*REFUSED, "models --help", "models list --help", "models show --help"]
    code = f"import sys\nfrom fastcifar.cli import main\n[main(line.split()) for line in {lines!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_list_has_every_network_and_its_parameters(capsys, monkeypatch):
    built = models._built

    @functools.cache
    def without_values(recipe):
        with torch.device("meta"):
            return built(recipe)

    monkeypatch.setattr(models, "_built", without_values)
    assert main(["models", "list"]) == main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    lines, again = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert lines == again
    found = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert main(["models", "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [(each["recipe"] or each["network"], f"{each['parameters']:,}") for each in entries] == list(found.items())
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == list(NETWORKS)
    assert found.keys() - NETWORKS.keys() <= RECIPES.keys()
    assert found["alexnet"] == "57,044,810" and found["lenet"] == "83,126" and found["wideresnet"] == "10,961,370"
    assert found["davidnet"] == "6,573,849" and found["wide-resnet18-2"] == "44,662,922"


def test_layers_have_shapes_and_parameters(capsys):
    out = shown(capsys, "mlp", "--network.hidden", "8")
    rows = [line.split() for line in out.splitlines()]
    assert ["hidden"] in rows
    assert ["0", "Linear", "8", "24,584", "49,152", "12,288"] in rows  # twice 3,072 x 8; the image in float32
    assert ["classifier", "Linear", "10", "90", "160", "0"] in rows
    assert ["between", "them", "0", "32"] in rows and ["all", "24,674", "49,312", "12,320"] in rows
    assert "24,674 parameters in 4 tensors, 24,674 of them trained" in out


@pytest.mark.parametrize("words", [["lenet", "--side", "28"], ["alexnet", *TINY], ["resnet18", "--network.width", "4"]])
def test_the_table_adds_up_and_is_the_jsons(capsys, words):
    out, found = shown(capsys, *words), json.loads(shown(capsys, *words, "--json"))
    lines = (re.sub(r"  called \d+ times$", "", line) for line in out.splitlines())
    *rows, total = (line.split() for line in lines if re.search(r" [\d,]+ +[\d,]+$", line))
    for place, key in ((-2, "flop"), (-1, "activation_bytes")):
        cells = [int(row[place].replace(",", "")) for row in rows]
        assert sum(cells) == int(total[place].replace(",", "")) == found[key] > 0
    of_layers = sum(layer["flop"] for layer in found["layers"])
    assert of_layers == found["flop"]
    if words[0] == "lenet":
        conv = 2 * (28 * 28 * 6 * 75 + 10 * 10 * 16 * 150)
        assert found["flop"] == conv + 2 * (400 * 120 + 120 * 84 + 84 * 10)


def test_images_that_are_too_small_for_a_network_are_counted_at_its_usual_side(capsys):
    assert shown(capsys, "alexnet", *TINY).startswith("alexnet, 70 x 70 pixels")
    assert shown(capsys, "alexnet", *TINY, "--side", "64").startswith("alexnet, 64 x 64 pixels")


def test_a_recipes_fields_and_data_set_count(capsys):
    out = shown(capsys, "--recipe", "speedrun94", "--network.widths", "8", "8", "8", "--dataset", "cifar100")
    assert out.startswith("speedrun of speedrun94, 32 x 32 pixels")
    assert re.search(r"classifier +\w+ +100 +800", out)


@pytest.mark.parametrize("words", [["--graph", *NARROW], [*NARROW, "--graph", "--json"]])
def test_the_graph_says_which_tensors_are_shared(capsys, words):
    out = shown(capsys, *words)
    if "--json" in words:
        found = json.loads(out)
        shared = [tensor for tensor in found["tensors"] if tensor["shared"]]
        assert len(shared) == 28 and all(len(tensor["layers"]) == 2 for tensor in shared)
        return
    name = "subnetworks.1.layers.2.block.conv"
    assert f"{name}.weight  [8, 6, 3, 3]  432\n|- {name}\n`- wide.layers.2.block.conv\n" in out
    assert re.search(r"subnetworks\.2 +[\d,]+ +2,160  wide\n", out)


def test_a_network_may_stand_behind_flags(capsys):
    for words in (
        ["--json", "mlp"],
        ["--dataset", "cifar10", "mlp"],
        ["--graph", "mlp"],
        ["--coarse", "mlp", "--dataset", "cifar100"],
    ):
        assert "mlp, 32 x 32 pixels" in shown(capsys, *words)
    assert main(["models", "show", "--network.hidden", "8", "mlp"]) == 2
    assert "--network.hidden" in capsys.readouterr().err


def test_members_of_the_pseudo_ensemble_share_all(capsys):
    words = ["--network", "mlp", "--network.hidden", "8", "--ensemble.members", "3", "--ensemble.joint", "shared"]
    out = shown(capsys, "--recipe", "warmstart-mlp", *words, "--graph")
    assert "24,674 of them, in 4 tensors, are shared" in out
    assert re.search(r"networks\.1 +0 +24,674  networks\.0, networks\.2\n", out)


def test_without_shared_tensors_the_graph_says_so(capsys):
    assert shown(capsys, "mlp", "--graph").rstrip().endswith("no tensor is shared")


@pytest.mark.parametrize("kind", ["dot", "svg", "png"])
def test_the_graph_is_drawn(capsys, tmp_path, kind):
    if kind != "dot":
        pytest.importorskip("matplotlib")
    file = tmp_path / "new" / f"graph.{kind}"
    words = ["mlp", "--network.hidden", "8"] if kind == "png" else NARROW
    assert f"drawn in {file}" in shown(capsys, *words, "--graph", str(file))
    data = file.read_bytes()
    first = {"dot": b"digraph", "svg": b"<?xml", "png": b"\x89PNG"}[kind]
    assert data.startswith(first)
    if kind == "svg":
        assert b"subnetworks.3.layers.0.block.conv.weight" in data and b"wide.classifier" in data


def test_the_text_for_graphviz_has_a_line_from_each_tensor_to_each_of_its_layers():
    torch.manual_seed(0)
    graph = trace(MLP(MLPConfig(hidden=(8,))))
    text = to_dot(graph, 'a "name"')
    assert 'label="a \\"name\\""' in text
    assert len(re.findall(r"t\d+ -> l\d+", text)) == sum(len(tensor.layers) for tensor in graph.tensors) == 4
    assert text.count("{") == text.count("}") == 1 + 2


def test_a_saved_run_and_its_file_of_weights(capsys, tmp_path):
    data = make_synthetic(train_size=32, test_size=16)
    run = train("warmstart-mlp", data, epochs=1, batch_size=16, **{"network.hidden": (8,)})
    run.save(tmp_path / "run")
    assert "24,674 parameters in 4 tensors, 24,674 of them trained" in shown(capsys, str(tmp_path / "run"))
    out = shown(capsys, str(tmp_path / "run" / "model.safetensors"), "--graph")
    assert "24,674 parameters in 4 tensors\n" in out and "no tensor is equal" in out
    assert f"fastcifar models show {tmp_path / 'run'} runs the network and says what is shared\n" in out
    state = run.model.state_dict()
    torch.save({**state, "again.weight": state["classifier.weight"].clone()}, tmp_path / "tied.pt")
    out = shown(capsys, str(tmp_path / "tied.pt"), "--graph")
    assert "again.weight = classifier.weight  [10, 8]  80\n|- again\n`- classifier\n" in out
    assert "80 of them, in 1 tensors, are equal" in out and "shared" not in out and "fastcifar models show" not in out
    tensors = json.loads(shown(capsys, str(tmp_path / "tied.pt"), "--json"))["tensors"]
    (found,) = (each for each in tensors if each["equal"])
    assert found["names"] == ["again.weight", "classifier.weight"]
    assert main(["models", "show", str(tmp_path / "run"), "--side", "64"]) == 2
    assert "a run's side is its own; allowed: without --side" in capsys.readouterr().err
    assert main(["models", "show", str(tmp_path / "run"), "--epochs", "3"]) == 2
    assert "unknown flag --epochs" in capsys.readouterr().err
