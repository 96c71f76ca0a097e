"""`fastcifar finetune`: a training that begins with given weights, of their network and normalized as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from fastcifar.catalogue import dataset_for, find
from fastcifar.cli import train
from fastcifar.cli.arguments import asks_help, last_given, parse, quick_recipe, quick_train_size, read_recipe
from fastcifar.cli.options import Switch
from fastcifar.errors import UserError
from fastcifar.input import weights_file
from fastcifar.interval import AUTO
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.transfer import own_side, refuse_other_side, say_normalization, with_weights

PROG = "fastcifar finetune"


@dataclass(frozen=True)
class Options(train.Options):
    """Train on from given weights, all of them or, with --freeze backbone, the classifier alone.

    The classifier is fresh where the classes are others than those of the weights. Network and normalization are those
    of a saved run, or of torchvision's ResNet-18; of a file of weights those of --recipe, and --network. Without
    --recipe it is finetune-sgd without its normalization. docs/transfer.md says more.

    All else is as with fastcifar train, whose --resume goes on with what was broken off.
    """

    weights: Annotated[str, arg(metavar="FILE|RUN|torchvision:IMAGENET1K_V1", help_behavior_hint="(required)")] = ""
    """The weights: a file, .safetensors, or .pt, .pth or .ckpt of torch.save; the folder of a saved run; or those that
    torchvision publishes, which must be on this machine."""
    reset_head: Switch = False
    """Begin with a fresh classifier, whatever its shape in the weights."""
    checkpoint_every: Annotated[str, arg(metavar="E")] = AUTO
    """How often the state of the training is kept, for fastcifar train --resume: epochs, as in 2 or 0.5, a time, as in
    10min, or never; auto: in runs of more than about two minutes, so that it costs less than 1% of their time."""
    evaluate_at_start: Switch = True
    """Without the flag epoch 0 is an evaluation before the first step, on the training images also."""
    hidden: ClassVar[tuple[str, ...]] = (
        *("cold_start", "warm_start", "start", "shrink", "perturb", "shrink_layers", "fit_head", "reset", "resume"),
    )
    everyday: ClassVar[tuple[str, ...]] = ("freeze", "reset_head")
    prog: ClassVar[str] = PROG


def main(args: Sequence[str]) -> int:
    """Run `fastcifar finetune`."""
    phases = Phases("start of Python")
    with phases("command line"):
        options = _read(args)
    return train.run(options, args, phases)


def _read(args: Sequence[str]) -> Options:
    if (broken_off := last_given(args, "--resume")) is not None and not asks_help(args):
        raise UserError(
            f"finetune has no --resume; allowed: fastcifar train --resume {broken_off or 'RUN'} goes on with it"
        )
    weights, name = last_given(args, "--weights"), last_given(args, "--recipe") or ""
    if not weights and not asks_help(args):
        raise UserError("--weights is not given; allowed: a saved run, a file, or torchvision:IMAGENET1K_V1")
    base = with_weights(weights, name or None) if weights else get_recipe(name or "finetune-sgd")

    def shorten(recipe: Recipe) -> Recipe:
        return dataclasses.replace(quick_recipe(recipe), network=recipe.network)  # its weights are given

    recipe, rest = read_recipe(args, "", default=base, shorten=shorten)
    usual = {"network": recipe.network.kind, "optimizer": recipe.optimizer.kind, "train_size": quick_train_size(args)}
    usual |= {"recipe": name or recipe.name, "dataset": dataset_for(name, recipe.name)}
    options = parse(rest, Options(settings=recipe, **usual), PROG)
    if not options.weights:
        return options
    options = _with_side(options)
    say_normalization(options.weights, options.settings)
    file: Path = weights_file(options.weights)
    return dataclasses.replace(options, warm_start=file, fit_head=not options.reset_head)


def _with_side(options: Options) -> Options:
    """Return the options with the --resize that the weights ask for, where their network takes one side."""
    network, entry = options.settings.network, find(options.dataset)[0]
    side = own_side(options.weights, network)
    if options.resize is not None:
        refuse_other_side(options.weights, network, options.resize)
    elif side and (entry.images is None or entry.side != side):
        return dataclasses.replace(options, resize=side)
    return options
