"""The corruptions of CIFAR-10-C by name: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations (2019), with the parameters of their program for CIFAR.

Names and parameters need the standard library only; the functions are imported when one is called.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.registry import Registry

LEVELS = (1, 2, 3, 4, 5)
"""The severities, the mildest first."""
EXTRA = ("speckle-noise", "gaussian-blur", "spatter", "saturate")
"""Those that the benchmark's mean leaves out: they are for choices while a method is made."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of images, and how strong it is."""

    kind: str
    """One of `KINDS`."""
    function: str
    """The place, "package.module:name", of `function(images, parameters, generator)`: uint8 `[N, side, side, 3]` to a
    new tensor of the same form, with random choices for each image out of `generator`."""
    parameters: tuple[Any, ...]
    """What the function is given at each of `LEVELS`."""
    package: str = ""
    """The package that it needs, one of the extra `images`."""


KINDS = ("noise", "blur", "weather", "digital")
CORRUPTIONS: Registry[Corruption] = Registry("corruption")
"""In the paper's order, those of `EXTRA` last."""
ABSENT = {
    "frost": "it pastes photographs of frost, which are part of its authors' program",
    "spatter": "it needs OpenCV's edges and distances",
}
"""The corruptions of the archive that are not made here, both of weather, and the reason."""


def _add(kind: str, name: str, *parameters: Any, package: str = "") -> None:
    function = f"fastcifar.corruptions.{kind}:{name.replace('-', '_')}"
    CORRUPTIONS.add(name, Corruption(kind, function, parameters, package))


# Deviations of the noise, photons at full light, shares of values; channels are 0 to 1.
_add("noise", "gaussian-noise", 0.04, 0.06, 0.08, 0.09, 0.10)
_add("noise", "shot-noise", 500, 250, 100, 75, 50)
_add("noise", "impulse-noise", 0.01, 0.02, 0.03, 0.05, 0.07)
# In pixels: radius and smoothing of a disk; deviation, and rounds; radius and deviation; the largest zoom, a factor.
_add("blur", "defocus-blur", (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
_add("blur", "glass-blur", (0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
_add("blur", "motion-blur", (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
_add("blur", "zoom-blur", 1.06, 1.11, 1.15, 1.20, 1.25)
# Mean, deviation, zoom and least of the flakes, radius and deviation of their fall, share of the image that stays.
_add(
    *("weather", "snow"),
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
# Thickness, and the factor by which finer forms of the cloud are flatter.
_add("weather", "fog", (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
# What is added to the largest channel; the share of contrast that stays.
_add("digital", "brightness", 0.05, 0.10, 0.15, 0.20, 0.30)
_add("digital", "contrast", 0.75, 0.5, 0.4, 0.3, 0.15)
# Shares of the side: displacement, its smoothness, shift of the corners.
_add(
    "digital",
    "elastic-transform",
    (0, 0, 0.08),
    (0.05, 0.2, 0.07),
    (0.08, 0.06, 0.06),
    (0.1, 0.04, 0.05),
    (0.1, 0.03, 0.03),
)
# The share of the side; JPEG's quality.
_add("digital", "pixelate", 0.95, 0.9, 0.85, 0.75, 0.65)
_add("digital", "jpeg-compression", 80, 65, 58, 50, 40, package="PIL")
# As the noise, blur and color above: deviations, in pixels for the blur; factor of the saturation, and what is added.
_add("noise", "speckle-noise", 0.06, 0.10, 0.12, 0.16, 0.20)
_add("blur", "gaussian-blur", 0.4, 0.6, 0.7, 0.8, 1.0)
_add("digital", "saturate", (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))


def chosen(words: str, among: Collection[str] = CORRUPTIONS) -> list[str]:
    """Return the corruptions in `words`, which have commas between them: names, a kind for all of it, "all" for all.

    among: those that there are; by default those that can be made here. One that needs a package which is not installed
        is refused by its name, and left out of "all" and its kind.

    Raises UserError for another word.
    """
    found: dict[str, None] = {}
    for word in words.split(","):
        if word in among:
            found[word] = None
            if among is CORRUPTIONS:
                require(word)
            continue
        if word != "all" and word not in KINDS:
            if word in ABSENT and among is CORRUPTIONS:
                raise UserError(f"{word} is not made here: {ABSENT[word]}; allowed: the archive's, by --on")
            known = [*among, *KINDS, "all"]
            raise UserError(f"unknown corruption {brief(word)}{did_you_mean(word, known)}; allowed: {', '.join(known)}")
        of_kind = (name for name in among if word in ("all", _kind(name)))
        found |= dict.fromkeys(name for name in of_kind if among is not CORRUPTIONS or not is_missing(name))
    return list(found)


def _kind(name: str) -> str:
    return CORRUPTIONS[name].kind if name in CORRUPTIONS else "weather" if name in ABSENT else ""


def is_missing(name: str) -> bool:
    """Return True for a corruption whose package is not installed."""
    package = CORRUPTIONS[name].package
    return bool(package) and find_spec(package) is None


def require(name: str) -> None:
    """Raise UserError where a corruption's package is not installed, or there is no such corruption."""
    if is_missing(name):
        raise UserError(f"{name} needs a package that is not installed; allowed: pip install 'fastcifar[images]'")
