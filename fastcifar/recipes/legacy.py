"""Recipe files and run folders from before sections had kinds: their old names are read, with one warning.

In them `network` is a name, with a section for every network (`model` is DavidNet's); `optim` holds the settings of all
optimizers, `name` being one; and early crops are two lists. In older ones yet a schedule's lengths count steps.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from fastcifar.errors import RenamedWarning, UserError, brief
from fastcifar.recipes.networks import NETWORKS
from fastcifar.recipes.optimizers import OPTIMIZERS
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.schedule import with_unit

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
"""Removed fields, each with the value that switched it off."""


def modernize(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a recipe's nested dictionaries under today's names; warn (`RenamedWarning`) if any was an old one.

    Raises UserError, without `where`, the place of `values`, for a removed field that is switched on.
    """
    old_networks = _old_networks()
    sections = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    old = [name for name in sections if name in old_networks or name == "optim"]
    for name in old:
        now = "optimizer" if name == "optim" else "network"
        if now in sections:
            raise UserError(f"{name} and {now} are both given; allowed: {now}, its name now")
    said, new = [], {name: value for name, value in values.items() if name not in old}
    if any(name in old_networks for name in old):
        kind = values.get("network", Recipe().network.kind)
        if isinstance(kind, str) and kind in NETWORKS:  # the other networks' sections never had an effect
            section = NETWORKS[kind].formerly
            new["network"] = {"kind": kind, **sections.get(section, {})}
            said.append(f"{section} is now network")
    if "optim" in old:
        optim = {**_OPTIM, **sections["optim"]}
        kind = optim.pop("name")
        if kind in OPTIMIZERS:
            known = {field.name for field in dataclasses.fields(OPTIMIZERS[kind])}
            optim = {name: value for name, value in optim.items() if name in known or name not in _OPTIM}
        new["optimizer"] = {"kind": kind, **optim}
        said.append("optim is now optimizer, its name kind")
    for (section, field), off in GONE.items():
        inside = dict(sections.get(section, {}))
        if field in inside:
            if (value := inside.pop(field)) != off:
                raise UserError(f"{section}.{field} is {brief(value)}; allowed: {off!r}, the field was removed")
            said.append(f"{section}.{field} was removed")
            new[section] = inside
    augment = dict(sections.get("augment", {}))
    if {"early_sizes", "early_shares"} & augment.keys():
        sizes, shares = (augment.pop(name, ()) for name in ("early_sizes", "early_shares"))
        if not all(isinstance(each, list | tuple) for each in (sizes, shares)) or len(sizes) != len(shares):
            lists = f"augment.early_sizes is {brief(sizes)} and augment.early_shares {brief(shares)}"
            raise UserError(f"{lists}; allowed: augment.early_crops, as in [[24, 0.2], [28, 0.6]]")
        new["augment"] = {**augment, "early_crops": [list(pair) for pair in zip(sizes, shares, strict=True)]}
        said.append("augment.early_sizes and early_shares are now augment.early_crops")
    if said:
        warnings.warn(f"{where}: {'; '.join(said)}", RenamedWarning, stacklevel=3)
    return new


def in_steps(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a kept recipe's nested dictionaries, in which a length among the options of a schedule that is a number
    alone counted steps, with that unit: since they count epochs, all are kept with one."""
    schedule = values.get("schedule")
    if not isinstance(schedule, Mapping) or not isinstance(schedule.get("options"), list | tuple):
        return values
    options = [with_unit(each, "steps") if isinstance(each, str) else each for each in schedule["options"]]
    return {**values, "schedule": {**schedule, "options": options}}


def modern_path(path: str, where: str, network: Any = None) -> str:
    """Return today's dotted name of a field; warn (`RenamedWarning`) if `path` is an old one.

    Raises UserError, with `where`, the place of `path`, for a field of another kind of network than `network` (None:
    any).
    """
    section, dot, rest = path.partition(".")
    old_networks = _old_networks()
    if section == "optim":
        new = f"optimizer{dot}{'kind' if rest == 'name' else rest}"
    elif section in old_networks:
        if network not in (None, old_networks[section]):
            raise UserError(f"{where}: {path} is of the network {old_networks[section]}; allowed: fields of {network}")
        new = f"network{dot}{rest}"
    else:
        return path
    warnings.warn(f"{where}: {path} is now {new}", RenamedWarning, stacklevel=3)
    return new


def _old_networks() -> dict[str, str]:
    """Return the kinds of network that had a section of their own, by its name."""
    return {cls.formerly: kind for kind, cls in NETWORKS.items() if cls.formerly}
