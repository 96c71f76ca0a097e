"""Cold start, warm start and shrink-perturb: the weights that a training begins with.

Those that are computed from given ones, FIRE's and DASH's, are `methods.py`'s.

With shrink s and perturb p (a warm start is s = 1, p = 0):

- Trained parameters become s * source + p * fresh. Fresh ones are drawn from the run's seed by the network's own
  initialization, so that each kind is perturbed on its own scale (Ash and Adams 2020).
- Running statistics become the mean (s * source + p * fresh) / (s + p): a variance must not shrink with the weights.
  Training replaces them within some tens of steps.
- Frozen parameters are not scaled, nor the running statistics of norms that a recipe freezes in evaluation mode: they
  are the source's if s > 0, else fresh. So the whitening, which the source's weights rely on, is kept, and is fitted
  to the training images only if s = 0.
- What is reset, such as the classifier, is fresh, whatever s and p are; the source need not have it.

A term with the factor 0 is left out, not multiplied: s = 0 and p = 1 is the cold start and s = 1 and p = 0 the warm
start to the last bit. Optimizer state and averages start afresh in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fastcifar.errors import UserError, brief, notify
from fastcifar.input import weights_file
from fastcifar.models import Network
from fastcifar.models.freezing import layers_of, never_train
from fastcifar.recipes import NetworkConfig
from fastcifar.recipes.layers import longest, refuse_unknown
from fastcifar.start import LAYERS, ColdStart, FromSource, Start
from fastcifar.training.weights import COUNTS, fitted, read_weights, refuse_another, without_prefixes
from fastcifar.transfer import refuse_other_side


@torch.no_grad()
def initialize(model: Network, start: Start, sha256: object = None) -> set[str]:
    """Change the freshly initialized `model`, float32 on the CPU, in place as `start` says, and return the names of the
    tensors that are reset. A `Fire` or `Dash` gives the weights that it is then computed from.

    sha256: what `start.describe` said of its file, if it is to be checked.

    Raises UserError where the source cannot be read or its tensors do not fit. torch's counts of batches
    (num_batches_tracked) are skipped.
    """
    frozen = never_train(model)
    if isinstance(start, ColdStart):
        for parameter in model.module.parameters() if start.scale != 1 else ():
            if id(parameter) not in frozen and parameter.dim() > 1:
                parameter.mul_(start.scale)
        return set()
    assert isinstance(start, FromSource)
    if start.reset_head and not model.head:
        raise UserError("reset_head is true; allowed: false for a network whose one head is not known")
    if isinstance(model.config, NetworkConfig):
        refuse_other_side(start.source, model.config, model.side)
    module, file = model.module, weights_file(start.source)
    tensors, read = read_weights(file)
    if sha256 not in (None, read):
        raise UserError(f"{file} changed while it was read; allowed: a file that nothing writes to")
    refuse_another(start.source, file, read)
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    fresh = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTS)}
    hint = ", the classifier's apart with --reset-head (reset_head=True)"
    left_out = reset_names(model, start.reset)
    reset = start.reset_head
    if reset is None:
        reset = bool(model.head) and not _head_fits(without_prefixes(tensors, fresh, start.source), fresh, model.head)
    left_out += (f"{model.head}.",) if reset else ()
    source = fitted(tensors, fresh, start.source, left_out, hint)
    if start.reset_head is None:
        said = "fresh, since its shape there is another" if reset else "kept"
        notify(f"the classifier of the weights in {start.source} is {said}")
    parameters, buffers = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    trains = {name: id(parameter) not in frozen for name, parameter in parameters}
    evaluated = [(name, each) for name, each in module.named_modules() if name and not each.training]
    trains |= {f"{name}.{buffer}": False for name, each in evaluated for buffer, _ in each.named_buffers(recurse=False)}
    own, averaged, done = start.by_layer(), {name for name, _ in buffers}, set()
    refuse_unknown(own, [name for name in trains if trains[name]], LAYERS)
    for name, tensor in fresh.items():  # they share the model's memory
        if name not in source or tensor.data_ptr() in done:  # a layer that is reset, tied parameters
            continue
        done.add(tensor.data_ptr())
        shrink, perturb = own.get(longest(own, name) or "", (start.shrink, start.perturb))
        if not trains.get(name, True):
            shrink, perturb = (1.0, 0.0) if start.keeps_frozen else (0.0, 1.0)
        elif name in averaged:
            shrink, perturb = shrink / (shrink + perturb), perturb / (shrink + perturb)
        tensor.copy_(_mix(shrink, source[name], perturb, tensor))
    return fresh.keys() - source.keys()


def reset_names(model: Network, words: Sequence[str]) -> tuple[str, ...]:
    """Return what the names of tensors begin with that these words of `FromSource.reset` name. Raises UserError for
    more layers than the network has others."""
    found: list[str] = []
    for word in words:
        if word == "statistics":
            norms = [n for n, each in model.module.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
            found += [f"{name}.running_" if name else "running_" for name in norms]
            continue
        layers, count = list(layers_of(model.module)), int(word.removeprefix("last-"))
        if len(networks := model.members or model.made_of) > 1:
            said = f"reset has {brief(word)} for a network of {len(networks)}"
            raise UserError(f"{said}; allowed: statistics, or one network")
        if count >= len(layers):
            said = f"reset has {brief(word)}, and the network has {len(layers)} layers with parameters"
            raise UserError(f"{said}; allowed: up to last-{len(layers) - 1}")
        names = [name for name, _ in model.module.named_modules()]
        found += [f"{name}." for name in names[names.index(layers[-count]) :]]  # norms without parameters too
    return tuple(found)


def _head_fits(source: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor], head: str) -> bool:
    theirs, ours = (
        {name: tensor.shape for name, tensor in each.items() if name.startswith(f"{head}.")} for each in (source, fresh)
    )
    return theirs == ours


def _mix(shrink: float, source: torch.Tensor, perturb: float, fresh: torch.Tensor) -> torch.Tensor:
    if perturb == 0:
        return shrink * source
    return perturb * fresh if shrink == 0 else shrink * source + perturb * fresh
