"""What the command line says before torch is imported: help, version, and every refusal of an argument."""

import os
import subprocess
import sys
import warnings

import pytest

import fastcifar
from fastcifar.catalogue import DATASETS, DEFAULT_DATASET, FORMS
from fastcifar.cli import COMMANDS, main
from fastcifar.errors import UserError
from fastcifar.experiments import EXPERIMENTS
from fastcifar.recipes import NETWORKS, OPTIMIZERS, RECIPES, get_recipe, to_toml

NAMES = ", ".join(RECIPES)
NO_TRAINING = (
    "cifar10.1 has test images only; allowed: a set with some; a saved run is evaluated on this one: "
    "fastcifar eval RUN_DIR --on NAME"
)
NO_PLUGIN = (
    "cannot import the plug-in nowhere: ModuleNotFoundError: No module named 'nowhere'; allowed: a module, as in "
    "package.module"
)
CONVERT = f"fastcifar data convert --dataset {DEFAULT_DATASET} --to npz {DEFAULT_DATASET}.npz"
WORDS = [*COMMANDS, *sorted(f"{cls.group} {name}".strip() for name, cls in EXPERIMENTS.items())]
"""All commands."""
REFUSALS = {
    "": None,  # help
    "--help": None,
    "--version": None,
    "train --help": None,
    "train --help-all": None,
    "train --quick --help": None,
    "eval --help": None,
    "recipes --help": None,
    "data info --help": None,
    "data list --help": None,
    "data list": None,
    "data list --json": None,
    "data verify --help": None,
    "data convert --help": None,
    "recipes": None,
    "recipes show davidnet": None,
    "recipes tricks": None,
    "recipes tricks speedrun94": None,
    "recipes tricks --help": None,
    "train --network mlp --optimizer Adam --help": None,
    "data": None,
    "data --help": None,
    "warm-start": None,
    "trian": "unknown command 'trian'; did you mean 'train'?; allowed: " + ", ".join(WORDS),
    "data inf": "unknown command 'data inf'; did you mean 'data info'?; allowed: data list, data info, data verify, "
    "data convert",
    "data verify --dataset ./nowhere": f"--dataset is './nowhere', which does not exist; allowed: {FORMS}",
    "data convert": f"data convert needs --to, as in: {CONVERT}",
    "data convert --to npz": f"data convert needs a file or folder to write, as in: {CONVERT}",
    "data convert --to csv a.csv": "--to is 'csv'; allowed: one of npz, hdf5, tfrecord",
    "data convert --to npz a.h5": "OUT is a.h5; allowed: with --to npz a name that ends in .npz",
    "data convert --to hdf5 a.npz": "OUT is a.npz; allowed: with --to hdf5 a name that ends in .h5 or .hdf5",
    "recipes show": f"recipes show needs a recipe; allowed: {NAMES}, or a .toml file's path",
    "recipes davidnet": "unexpected argument 'davidnet'; 'fastcifar recipes --help-all' lists what is allowed",
    "train --epochs a": "epochs is 'a'; allowed: a number",
    "train --batch-size 1.5": "batch_size is 1.5; allowed: a whole number",
    "train --schedule.name ReduceLROnPlateau --eval-every 2": "eval_every is 2; allowed: with schedule.name "
    "ReduceLROnPlateau 1, every epoch",
    "train --epochs": "--epochs has no value; allowed: a number",
    "train --epochs --quiet": "--epochs has no value; allowed: a number",
    "train --epochs 0": "epochs is 0.0; allowed: above 0, up to 100000",
    "train --epochs 3 4": "unexpected argument '4' after --epochs 3; allowed: a number",
    "train --optimizer.lr -1": "optimizer.lr is -1.0; allowed: above 0",
    "train --optimizer.lr=x": "optimizer.lr is 'x'; allowed: a number",
    "train --optimizer.lr nan": "optimizer.lr is nan; allowed: a finite number",
    "train --network.widths 1 2": "network.widths is [1, 2]; allowed: 4 whole numbers",
    "train --network.widths [1,2]": "network.widths is [1, 2]; allowed: 4 whole numbers",
    "train --network.widths 1 2 3 x": "network.widths is 'x'; allowed: a whole number",
    "train --network.widths": "--network.widths has no value; allowed: 4 whole numbers",
    "train --network.residual 4": "network.residual is (4,); allowed: 1 to 3 each",
    "train --network.pool min": "network.pool is 'min'; allowed: one of max, avg",
    "train --augment.early-crops 24": "augment.early_crops is [24]; allowed: a whole number and a number",
    "train --schedule.values 1": "schedule.values is (1.0,); allowed: 4 numbers, one for each knot",
    "train --drop-last": "--drop-last has no value; allowed: true or false",
    "train --drop-last True": "drop_last is 'True'; allowed: true or false",
    "train --network resnet": (
        f"network.kind is 'resnet'; did you mean 'resnet18'?; allowed: {', '.join(NETWORKS)}, "
        "or what a plug-in adds (--plugin)"
    ),
    "train --network": "--network has no value; allowed: a word",
    "train --network resnet18 --network.width 0": "network.width is 0; allowed: 1 to 8,192 channels",
    "train --network mlp --network.hidden 100 0": "network.hidden is (100, 0); allowed: 1 to 1,000,000 units each",
    "train --network mlp --optimizer muon": (
        "network.kind is mlp; allowed: with the optimizer muon one with convolutions"
    ),
    "train --optimizer adam": (
        f"optimizer.kind is 'adam'; did you mean 'Adam'?; allowed: {', '.join(OPTIMIZERS)}, "
        "or what a plug-in adds (--plugin)"
    ),
    "train --batch-size 100": "batch_size is 100; allowed: a multiple of network.ghost_batch, 32",
    "train --plugin": "--plugin has no value; allowed: a module, as in package.module",
    "train --plugin=": "--plugin has no value; allowed: a module, as in package.module",
    "flops --tflops 1 --epochs 2 3": "unexpected argument '3' after --epochs 2; allowed: a number",
    "train --plugin nowhere": NO_PLUGIN,
    "ablate --plugin nowhere": NO_PLUGIN,
    "flops --plugin=nowhere": NO_PLUGIN,
    "warm-start half --plugin nowhere": NO_PLUGIN,
    "compare a b --plugin nowhere": NO_PLUGIN,
    "eval nowhere --plugin nowhere": NO_PLUGIN,
    "data info --plugin nowhere": NO_PLUGIN,
    "recipes show a --plugin nowhere": NO_PLUGIN,
    "train --dataset imagenet": f"unknown data set 'imagenet'; allowed: {', '.join(DATASETS)}, or a path",
    "train --coarse": "--coarse is given with --dataset 'cifar10'; allowed: with cifar100",
    "flops --coarse": "--coarse is given with --dataset 'cifar10'; allowed: with cifar100",
    "data info --coarse --dataset svhn": "--coarse is given with --dataset 'svhn'; allowed: with cifar100",
    "train --dataset cifar10.1": NO_TRAINING,
    "ablate --dataset cifar10.1": NO_TRAINING,
    "train --dataset cifar100:corse": (
        "unknown data set 'cifar100:corse'; did you mean 'coarse'?; allowed: cifar100, cifar100:coarse"
    ),
    "train --device tpu": "--device is 'tpu'; allowed: one of auto, cpu, cuda",
    "train --out": "--out has no value; allowed: a path",
    "train --epoch 3": "unknown flag --epoch; did you mean '--epochs'?",
    "train --epoch=3": "unknown flag --epoch; did you mean '--epochs'?",
    "train --lr 3": "unknown flag --lr; did you mean '--optimizer.lr'?",
    "train --weight_decay 0": "unknown flag --weight_decay; did you mean '--optimizer.weight-decay'?",
    "train --optim.lr 1": "unknown flag --optim.lr; did you mean '--optimizer.lr'?",
    "train --optim.name Adam": "unknown flag --optim.name; did you mean '--optimizer'?",
    "train --model.widths 1": "unknown flag --model.widths; did you mean '--network.widths'?",
    "train --mlp.hidden 1": "unknown flag --mlp.hidden; allowed: with --network alexnet or lenet or mlp",
    "train --network.hidden 8": "unknown flag --network.hidden; allowed: with --network alexnet or lenet or mlp",
    "train --network.kind mlp": "unknown flag --network.kind; did you mean '--network'?",
    "train --optimizer.bias-lr 8": "unknown flag --optimizer.bias-lr; allowed: with --optimizer lars or muon",
    "train --no-network.norm": "unknown flag --no-network.norm; did you mean '--network.norm'?",
    "train --network.no-norm": "unknown flag --network.no-norm; did you mean '--network.norm false'?",
    "train --no-drop-last": "unknown flag --no-drop-last; did you mean '--drop-last false'?",
    "train -x": "unknown flag -x; 'fastcifar train --help-all' lists what is allowed",
    "train davidnet": "unexpected argument 'davidnet'; 'fastcifar train --help-all' lists what is allowed",
    "train --quick=yes": "unexpected argument 'yes'; 'fastcifar train --help-all' lists what is allowed",
    "train --recipe davidnte": (
        f"unknown recipe 'davidnte'; did you mean 'davidnet'?; allowed: {NAMES}, or a .toml file's path"
    ),
    "train --recipe": "--recipe has no value; allowed: a word",
    "train --recipe no.toml": "cannot read the recipe no.toml: No such file or directory; allowed: a TOML file",
    "train --runs 0": "--runs is 0; allowed: 1 to 100,000",
    "train --seed -1": "--seed is -1; allowed: 0 or more",
    "train --seed 9223372036854775807 --runs 2": (
        "--seed is 9223372036854775807; allowed: 0 up to 2**63 - 1, the last of --runs included"
    ),
    "train --threads 0": "--threads is 0; allowed: 1 to 1,024",
    "train --holdout -1": "--holdout is -1; allowed: 0 or more images",
    "train --eval-every -1": "--eval-every is -1; allowed: 0 or more epochs",
    "train --train-size 511": "--train-size is 511; allowed: batch_size, 512, or more images",
    "train --train-fraction 0": "--train-fraction is 0.0; allowed: above 0, up to 1",
    "train --train-fraction 1.5": "--train-fraction is 1.5; allowed: above 0, up to 1",
    "train --train-fraction half": "--train-fraction is 'half'; allowed: a number",
    "train --classes 0,cat": "--classes is '0,cat'; allowed: labels with a comma between them, as in 0,1,2",
    "train --classes 0,": "--classes is '0,'; allowed: labels with a comma between them, as in 0,1,2",
    "train --balanced": ("--balanced says which images a subset takes; allowed: with --train-size or --train-fraction"),
    "train --subset-seed 3": (
        "--subset-seed says which images a subset takes; allowed: with --train-size or --train-fraction"
    ),
    "train --subset-seed -1 --train-size 600": "--subset-seed is -1; allowed: 0 to 4,294,967,295",
    "train --warm-start nowhere": (
        "nowhere does not exist; allowed: the folder of a saved run, or a file of weights: .safetensors, "
        "or .pt, .pth or .ckpt of torch.save"
    ),
    "train --warm-start": "--warm-start has no value; allowed: a path",
    "train --warm-start . --cold-start": ("--cold-start and --warm-start contradict each other; allowed: one of them"),
    "train --warm-start . --shrink 2": "--shrink is 2.0; allowed: 0 to 1",
    "train --warm-start . --perturb -1": "--perturb is -1.0; allowed: 0 or more",
    "train --shrink 0": "--shrink is for given weights; allowed: with --warm-start PATH",
    "train --cold-start --perturb 0.1": "--perturb is for given weights; allowed: with --warm-start PATH",
    "train --reset-head": "--reset-head is for given weights; allowed: with --warm-start PATH",
    "train --start fire": "--start is for given weights; allowed: with --warm-start PATH",
    "train --reset last-1": "--reset is for given weights; allowed: with --warm-start PATH",
    "train --shrink-layers fc:shrink=1": "--shrink-layers is for given weights; allowed: with --warm-start PATH",
    "train --warm-start . --start fier": (
        "the start is 'fier'; did you mean 'fire'?; allowed: warm, shrink-perturb, fire, dash"
    ),
    "train --warm-start . --start fire:floor=1": "the start is 'fire:floor=1'; allowed: fire or fire:steps=10",
    "train --warm-start . --start=": "the start is ''; allowed: warm, shrink-perturb, fire, dash",
    "train --warm-start . --start dash:batch=1": "batch is 1; allowed: 0, or 2 or more images",
    "train --warm-start . --reset": "--reset names nothing; allowed: head, statistics, last-1, ...",
    "train --reset --quiet": "--reset names nothing; allowed: head, statistics, last-1, ...",
    "train --warm-start . --shrink-layers": (
        "--shrink-layers names nothing; allowed: words as in layer4:shrink=0.2,perturb=0.5"
    ),
    "train --warm-start . --shrink 1 --shrink-layers fc": (
        "layers (--shrink-layers) has 'fc'; allowed: words NAME:shrink=S, NAME:perturb=P or NAME:shrink=S,perturb=P"
    ),
    "train --warm-start . --start dash:floor=2": "floor in 'dash:floor=2' is 2.0; allowed: 0 to 1",
    "train --warm-start . --start fire --shrink 1": (
        "--shrink with --start; allowed: without it, or as in --start shrink-perturb:shrink=0.4"
    ),
    "train --warm-start . --start fire --shrink-layers fc:shrink=1": (
        "--shrink-layers is for shrink-perturb, and the start is fire; "
        "allowed: with --shrink, --perturb or --start shrink-perturb"
    ),
    "train --warm-start . --reset all": "--reset has 'all'; allowed: head, statistics, and last-1, last-2, ...",
    "train --warm-start . --reset head --fit-head": (
        "--reset head and --fit-head contradict each other; allowed: one of them"
    ),
    "eval": "eval needs the folder of a saved run, as in: fastcifar eval runs/davidnet-20250101-120000-0",
    "eval nowhere": "nowhere holds no run: run.json is missing; allowed: a folder that fastcifar train wrote, or a run "
    "that an experiment kept, as in DIR/warm/seed-0",
    "eval nowhere --tta crop": "--tta is 'crop'; allowed: one of none, flip, flip-crop",
    "eval nowhere --corrupt frost": (
        "frost is not made here: it pastes photographs of frost, which are part of its authors' program; "
        "allowed: the archive's, by --on"
    ),
    "eval nowhere --corrupt fog --severity 6": "--severity is '6'; allowed: 1 to 5, as in 3, 1-5 or 1,3,5",
    "eval nowhere --seed 1": "--seed says how images are corrupted; allowed: with --corrupt",
    "eval nowhere --resize 32": "--resize is 32; allowed: with --on, whose images it changes",
    "data info --dataset sinthetic": (
        f"unknown data set 'sinthetic'; did you mean 'synthetic'?; allowed: {', '.join(DATASETS)}, or a path"
    ),
}
"""Arguments, and the line that refuses them; None where they are granted."""


@pytest.mark.parametrize(("args", "message"), [item for item in REFUSALS.items() if item[1]])
def test_a_bad_argument_is_refused_in_one_line_that_names_it_and_what_is_allowed(capsys, args, message):
    assert main(args.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fastcifar: {message}\n")


def test_help_version_recipes_and_refusals_do_not_import_torch():
    code = (
        "import sys\n"
        "from fastcifar.cli import main\n"
        f"for args, message in {REFUSALS!r}.items():\n"
        "    assert main(args.split()) == (2 if message else 0), args\n"
        "    assert 'torch' not in sys.modules, args\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_plain_help_imports_neither_tyro_nor_rich_nor_numpy():
    code = (
        "import sys\n"
        "from fastcifar.cli import main\n"
        "main(['--help'])\n"
        "assert not {'tyro', 'rich', 'numpy', 'torch'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_plain_help_fits_the_terminal_and_breaks_between_words(capsys, monkeypatch, columns):
    words = []
    for width in (1000, columns):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        words.append(out.split())
    assert words[0] == words[1]
    assert max(map(len, out.splitlines())) <= max(columns, 80)


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastcifar {fastcifar.__version__}\n"


def test_python_m_fastcifar_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fastcifar", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(command in done.stdout for command in WORDS)


def test_a_reader_that_has_left_ends_the_command_quietly():
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "fastcifar", "recipes", "show", "davidnet"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_error_of_our_own_making_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("fastcifar.cli.recipes.main", lambda args: {}["missing"])
    with pytest.raises(KeyError):
        main(["recipes"])


@pytest.mark.parametrize(
    ("line", "dataset"),
    [
        ("train --recipe speedrun100", "cifar100"),
        ("train --recipe speedrun100 --name mine", "cifar100"),
        ("train --recipe mine.toml", "cifar100"),
        ("train --recipe speedrun100 --dataset cifar10", "cifar10"),
        ("train --recipe speedrun94", "cifar10"),
        ("ablate --recipe speedrun100", "cifar100"),
        ("compare speedrun100 speedrun100", "cifar100"),
        ("compare davidnet speedrun100 --dataset cifar10", "cifar10"),
    ],
)
def test_a_recipe_trains_on_the_data_set_that_it_is_made_for_unless_another_is_named(
    line, dataset, tmp_path, monkeypatch, capsys
):
    asked = []

    def load(name, *_):
        asked.append(name)
        raise UserError("enough")

    monkeypatch.setattr("fastcifar.data.load_dataset", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(to_toml(get_recipe("speedrun100")))
    assert main(line.split()) == 2
    assert (asked, capsys.readouterr().err) == ([dataset], "fastcifar: enough\n")


def test_other_warnings_are_shown_as_ever(monkeypatch):
    monkeypatch.setattr("fastcifar.cli.recipes.main", lambda args: warnings.warn("something else", stacklevel=1) or 0)
    with pytest.warns(UserWarning, match="something else"):
        main(["recipes"])
