"""fastcifar: train CIFAR-10 networks as fast as the hardware allows, repeatably and measured honestly.

    import fastcifar
    run = fastcifar.train("davidnet", seed=0)
    print(run.tta_accuracy, run.train_seconds)

Public names are imported on first use, so that `import fastcifar` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "fastcifar.data": ("Dataset", "EpochPlan", "Loader", "Split", "load_dataset"),
    "fastcifar.errors": ("NonFiniteLoss", "UserError"),
    "fastcifar.models": ("MLP", "DavidNet", "GhostBatchNorm", "PatchWhitening", "ResNet18"),
    "fastcifar.optim": ("LARS", "SGD", "FlatModel", "Lookahead", "Muon"),
    "fastcifar.recipes": ("Augment", "Recipe", "get_recipe"),
    "fastcifar.start": ("ColdStart", "ShrinkPerturb", "WarmStart"),
    "fastcifar.training": ("Evaluation", "Run", "Trainer", "evaluate", "load_run", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
