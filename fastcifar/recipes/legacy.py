"""What recipe files and run folders called their fields before sections had kinds: read, with one warning.

Until then `network` was a name, with a section for every network (`model` was DavidNet's); `optim` held the settings of
all optimizers, `name` being one; and early crops were two lists.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from fastcifar.errors import RenamedWarning, UserError
from fastcifar.recipes.networks import NETWORKS
from fastcifar.recipes.optimizers import OPTIMIZERS
from fastcifar.recipes.recipe import Recipe

_OPTIM = {
    "name": "sgd",
    "lr": 1.0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "bias_lr_factor": 64.0,
    "bias_lr": 106.0,
    "head_lr": 1340.0,
    "sgd_momentum": 0.85,
    "ns_steps": 3,
    "ns_coefficients": (3.4445, -4.775, 2.0315),
    "norm_every": 1,
    "norm_growth": 0,
    "filter_decay": 0.0,
    "overlap": True,
    "trust_coefficient": 0.001,
}
"""The section `optim` and its defaults."""

GONE = {("select", "max_skips"): 0}
"""What is there no more, and the value that switched it off."""


def modernize(values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Return the nested dictionaries of a recipe under today's names, those of an old one with a `RenamedWarning`.

    Raises UserError for what is there no more.
    """
    old_sections = _old_networks()
    old = {*old_sections, "optim"}
    said, new = [], {k: value for k, value in values.items() if k not in old or not isinstance(value, Mapping)}
    given = {name: value for name, value in values.items() if name in old_sections and isinstance(value, Mapping)}
    for old_name, new_name in (*((name, "network") for name in given), ("optim", "optimizer")):
        if isinstance(values.get(old_name), Mapping) and isinstance(values.get(new_name), Mapping):
            raise UserError(f"{old_name} and {new_name} are both given; allowed: {new_name}, as it is called now")
    if given:
        kind = values.get("network", Recipe().network.kind)
        if isinstance(kind, str) and kind in NETWORKS:  # whose section alone was read
            section = NETWORKS[kind].formerly
            new["network"] = {"kind": kind, **given.get(section, {})}
            said.append(f"{section} is now network")
    if isinstance(values.get("optim"), Mapping):
        optim = {**_OPTIM, **values["optim"]}
        kind = optim.pop("name")
        if kind in OPTIMIZERS:
            known = {field.name for field in dataclasses.fields(OPTIMIZERS[kind])}
            optim = {name: value for name, value in optim.items() if name in known or name not in _OPTIM}
        new["optimizer"] = {"kind": kind, **optim}
        said.append("optim is now optimizer, its name kind")
    for (section, field), off in GONE.items():
        inside = values.get(section)
        if not (isinstance(inside, Mapping) and field in inside):
            continue
        if inside[field] != off:
            raise UserError(f"{section}.{field} is {inside[field]!r}; allowed: {off!r}, it is there no more")
        said.append(f"{section}.{field} is there no more")
        if section in new:
            new[section] = {name: value for name, value in inside.items() if name != field}
    augment = values.get("augment")
    if isinstance(augment, Mapping) and {"early_sizes", "early_shares"} & augment.keys():
        sizes, shares = (augment.get(name, ()) for name in ("early_sizes", "early_shares"))
        if not all(isinstance(each, list | tuple) for each in (sizes, shares)) or len(sizes) != len(shares):
            lists = f"augment.early_sizes is {sizes!r} and augment.early_shares {shares!r}"
            raise UserError(f"{lists}; allowed: augment.early_crops, as in [[24, 0.2], [28, 0.6]]")
        rest = {name: value for name, value in augment.items() if name not in ("early_sizes", "early_shares")}
        new["augment"] = {**rest, "early_crops": [list(pair) for pair in zip(sizes, shares, strict=True)]}
        said.append("augment.early_sizes and early_shares are now augment.early_crops")
    if said:
        warnings.warn(f"{source}: {'; '.join(said)}", RenamedWarning, stacklevel=3)
    return new


def modern_path(path: str, source: str, network: Any = None) -> str:
    """Return a field's dotted name, that of an old one with a `RenamedWarning`. Raises UserError for a field of another
    kind of network than `network` (None: whatever it is)."""
    section, dot, rest = path.partition(".")
    old_networks = _old_networks()
    if section == "optim":
        new = f"optimizer{dot}{'kind' if rest == 'name' else rest}"
    elif section in old_networks:
        if network not in (None, old_networks[section]):
            raise UserError(f"{source}: {path} is of the network {old_networks[section]}; allowed: fields of {network}")
        new = f"network{dot}{rest}"
    else:
        return path
    warnings.warn(f"{source}: {path} is now {new}", RenamedWarning, stacklevel=3)
    return new


def _old_networks() -> dict[str, str]:
    """The kinds of network that had a section of their own, by its name."""
    return {cls.formerly: kind for kind, cls in NETWORKS.items() if cls.formerly}
