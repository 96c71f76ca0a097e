"""fastcifar: train CIFAR-10 networks as fast as the hardware allows, repeatably and measured honestly.

    import fastcifar
    run = fastcifar.train("davidnet", seed=0)
    print(run.tta_accuracy, run.train_seconds)

The names imported below are the public ones; use them as `fastcifar.NAME`. They are stable: a release that renames,
removes or redefines one says so in its notes, and takes the old way for one release more, with a warning. Anything else
in the modules may change with any release.

Public names are imported on first use, so that `import fastcifar` costs nothing.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # the one list, a line a name: type checkers read it, and so does __getattr__ below
    from fastcifar.catalogue import dataset as dataset
    from fastcifar.corruptions.apply import corrupt as corrupt
    from fastcifar.data import Dataset as Dataset
    from fastcifar.data import EpochPlan as EpochPlan
    from fastcifar.data import Loader as Loader
    from fastcifar.data import Split as Split
    from fastcifar.data import load_dataset as load_dataset
    from fastcifar.diagnose import Activations as Activations
    from fastcifar.diagnose import Curvature as Curvature
    from fastcifar.diagnose import DiagnoseActivations as DiagnoseActivations
    from fastcifar.diagnose import DiagnoseCurvature as DiagnoseCurvature
    from fastcifar.diagnose import DiagnoseForgetting as DiagnoseForgetting
    from fastcifar.diagnose import DiagnosePlasticity as DiagnosePlasticity
    from fastcifar.diagnose import DiagnoseUpdates as DiagnoseUpdates
    from fastcifar.diagnose import Forgetting as Forgetting
    from fastcifar.diagnose import Plasticity as Plasticity
    from fastcifar.diagnose import Updates as Updates
    from fastcifar.diagnose import read_diagnosis as read_diagnosis
    from fastcifar.errors import NonFiniteLoss as NonFiniteLoss
    from fastcifar.errors import Notice as Notice
    from fastcifar.errors import OutOfMemory as OutOfMemory
    from fastcifar.errors import UserError as UserError
    from fastcifar.experiments import Experiment as Experiment
    from fastcifar.experiments import Job as Job
    from fastcifar.experiments import Result as Result
    from fastcifar.experiments import experiment as experiment
    from fastcifar.models import ConvBN as ConvBN
    from fastcifar.models import ConvResBlock as ConvResBlock
    from fastcifar.models import GhostBatchNorm as GhostBatchNorm
    from fastcifar.models import GlobalMaxPool as GlobalMaxPool
    from fastcifar.models import Head as Head
    from fastcifar.models import Network as Network
    from fastcifar.models import PatchWhitening as PatchWhitening
    from fastcifar.models.alexnet import AlexNet as AlexNet
    from fastcifar.models.davidnet import DavidNet as DavidNet
    from fastcifar.models.lenet import LeNet as LeNet
    from fastcifar.models.mlp import MLP as MLP
    from fastcifar.models.myrtle import MyrtleNet as MyrtleNet
    from fastcifar.models.resnet import ResNet18 as ResNet18
    from fastcifar.models.speedrun import SpeedrunNet as SpeedrunNet
    from fastcifar.models.wideresnet import WideResNet as WideResNet
    from fastcifar.optim import LARS as LARS
    from fastcifar.optim import SGD as SGD
    from fastcifar.optim import FlatModel as FlatModel
    from fastcifar.optim import FlatOptimizer as FlatOptimizer
    from fastcifar.optim import GroupOptimizer as GroupOptimizer
    from fastcifar.optim import Lookahead as Lookahead
    from fastcifar.optim.muon import Muon as Muon
    from fastcifar.recipes import Augment as Augment
    from fastcifar.recipes import EvaluateConfig as EvaluateConfig
    from fastcifar.recipes import NetworkConfig as NetworkConfig
    from fastcifar.recipes import OptimizerConfig as OptimizerConfig
    from fastcifar.recipes import Recipe as Recipe
    from fastcifar.recipes import TransformConfig as TransformConfig
    from fastcifar.recipes import change as change
    from fastcifar.recipes import get_recipe as get_recipe
    from fastcifar.recipes import network as network
    from fastcifar.recipes import optimizer as optimizer
    from fastcifar.recipes import setting as setting
    from fastcifar.recipes import transform as transform
    from fastcifar.recipes import trick as trick
    from fastcifar.recipes.networks.alexnet import AlexNetConfig as AlexNetConfig
    from fastcifar.recipes.networks.davidnet import DavidNetConfig as DavidNetConfig
    from fastcifar.recipes.networks.lenet import LeNetConfig as LeNetConfig
    from fastcifar.recipes.networks.mlp import MLPConfig as MLPConfig
    from fastcifar.recipes.networks.myrtle import MyrtleConfig as MyrtleConfig
    from fastcifar.recipes.networks.resnet18 import ResNet18Config as ResNet18Config
    from fastcifar.recipes.networks.speedrun import SpeedrunConfig as SpeedrunConfig
    from fastcifar.recipes.networks.wideresnet import WideResNetConfig as WideResNetConfig
    from fastcifar.recipes.optimizers.lars import LARSConfig as LARSConfig
    from fastcifar.recipes.optimizers.muon import MuonConfig as MuonConfig
    from fastcifar.recipes.optimizers.sgd import SGDConfig as SGDConfig
    from fastcifar.report import AccuracyPair as AccuracyPair
    from fastcifar.report import Baseline as Baseline
    from fastcifar.report import EffectiveRobustness as EffectiveRobustness
    from fastcifar.report import KeptRuns as KeptRuns
    from fastcifar.report import Runs as Runs
    from fastcifar.report import effective_robustness as effective_robustness
    from fastcifar.report import fit_baseline as fit_baseline
    from fastcifar.report import plot_effective_robustness as plot_effective_robustness
    from fastcifar.report import published_baseline as published_baseline
    from fastcifar.report import published_pairs as published_pairs
    from fastcifar.report import read_runs as read_runs
    from fastcifar.report.by_class import confusion_matrix as confusion_matrix
    from fastcifar.report.by_class import precision_recall as precision_recall
    from fastcifar.start import ColdStart as ColdStart
    from fastcifar.start import Dash as Dash
    from fastcifar.start import Fire as Fire
    from fastcifar.start import ShrinkPerturb as ShrinkPerturb
    from fastcifar.start import Start as Start
    from fastcifar.start import WarmStart as WarmStart
    from fastcifar.track.csv import CSV as CSV
    from fastcifar.track.tensorboard import TensorBoard as TensorBoard
    from fastcifar.track.wandb import WandB as WandB
    from fastcifar.training import Checkpoints as Checkpoints
    from fastcifar.training import EpochRow as EpochRow
    from fastcifar.training import Evaluation as Evaluation
    from fastcifar.training import Listener as Listener
    from fastcifar.training import Run as Run
    from fastcifar.training import RunRecord as RunRecord
    from fastcifar.training import Trainer as Trainer
    from fastcifar.training import TrainingState as TrainingState
    from fastcifar.training import evaluate as evaluate
    from fastcifar.training import load_run as load_run
    from fastcifar.training import load_weights as load_weights
    from fastcifar.training import train as train
    from fastcifar.training.predict import predict as predict
    from fastcifar.transfer import recipe_for as recipe_for
    from fastcifar.transforms import *  # noqa: F403 (its __all__, read by type checkers as by _names below)

else:  # hidden from type checkers: they assume that a module with a __getattr__ has every name

    def _names(node: ast.ImportFrom) -> list[str]:
        """Return the names of an import, for `import *` those in the package's __all__, without importing it."""
        if node.names[0].name != "*":
            return [alias.name for alias in node.names]
        path = Path(__file__).parents[1].joinpath(*node.module.split("."), "__init__.py")
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__":
                return ast.literal_eval(line.value)
        raise ImportError(f"{path} has no __all__")

    _HOMES = {
        name: str(node.module)
        for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastcifar.")
        for name in _names(node)
    }
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return __all__
