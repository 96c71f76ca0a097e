"""The corruptions of CIFAR-10-C by name: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations (2019), with the parameters of their program for CIFAR.

Names and parameters are the standard library's only; the functions are imported when one is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.registry import Registry

LEVELS = (1, 2, 3, 4, 5)
"""The severities, the mildest first."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of images, and how strong it is."""

    summary: str
    """One line on it."""
    function: str
    """The place, "package.module:name", of `function(images, parameters, generator)`: uint8 `[N, side, side, 3]` to a
    new tensor of the same form, with random choices for each image out of `generator`."""
    parameters: tuple[Any, ...]
    """What the function is given at each of `LEVELS`."""
    kind: str
    """One of `KINDS`."""
    extra: bool = False
    """Not one of the 15 that the benchmark's mean is over."""
    package: str = ""
    """The package that it needs, with its extra: "PIL" of "images"."""


KINDS = ("noise", "blur", "weather", "digital")
CORRUPTIONS: Registry[Corruption] = Registry("corruption")


def _add(name: str, kind: str, summary: str, *parameters: Any, extra: bool = False, package: str = "") -> None:
    function = f"fastcifar.corruptions.{kind}:{name.replace('-', '_')}"
    CORRUPTIONS.add(name, Corruption(summary, function, parameters, kind, extra, package))


# Noise: standard deviations, photons at full light, shares of values; channels from 0 to 1.
_add("gaussian-noise", "noise", "normal noise", 0.04, 0.06, 0.08, 0.09, 0.10)
_add("shot-noise", "noise", "Poisson noise of few photons", 500, 250, 100, 75, 50)
_add("impulse-noise", "noise", "single values black or white", 0.01, 0.02, 0.03, 0.05, 0.07)
_add("speckle-noise", "noise", "normal noise, more where it is light", 0.06, 0.10, 0.12, 0.16, 0.20, extra=True)
# Blur, in pixels: radius and smoothing of the disk; deviation and rounds; radius and deviation; the largest zoom.
_add("defocus-blur", "blur", "the mean over a disk", (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
_add("glass-blur", "blur", "pixels moved at random", (0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
_add("motion-blur", "blur", "smeared along a line", (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
_add("zoom-blur", "blur", "the mean over zooms into the middle", 1.06, 1.11, 1.15, 1.20, 1.25)
_add("gaussian-blur", "blur", "a normal filter", 0.4, 0.6, 0.7, 0.8, 1.0, extra=True)
# Weather: mean, deviation, zoom and least of the flakes, radius and deviation of their fall, share of the image that
# stays; thickness of the fog and how much smoother its larger forms are.
_add(
    "snow",
    "weather",
    "falling flakes and less color",
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
_add("fog", "weather", "a fractal cloud", (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
# Digital: what is added to the lightness; the share of contrast that stays; factor and summand of the saturation;
# displacement, its smoothness and that of the corners, as shares of the side; the share of pixels; JPEG's quality.
_add("brightness", "digital", "more light", 0.05, 0.10, 0.15, 0.20, 0.30)
_add("contrast", "digital", "less contrast", 0.75, 0.5, 0.4, 0.3, 0.15)
_add(
    "elastic-transform",
    "digital",
    "a random affine map, then random displacements",
    (0, 0, 0.08),
    (0.05, 0.2, 0.07),
    (0.08, 0.06, 0.06),
    (0.1, 0.04, 0.05),
    (0.1, 0.03, 0.03),
)
_add("pixelate", "digital", "fewer, larger pixels", 0.95, 0.9, 0.85, 0.75, 0.65)
_add("jpeg-compression", "digital", "stored as JPEG", 80, 65, 58, 50, 40, package="PIL")
_add("saturate", "digital", "less or more color", (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2), extra=True)

ABSENT = {
    "frost": "it pastes photographs of frost, which are part of its authors' program",
    "spatter": "it needs OpenCV's edges and distances",
}
"""The corruptions of the archive that are not made here, and the reason."""


def named(words: str) -> list[str]:
    """Return the corruptions in `words`, which have commas between them: names, a kind for all of it, "all" for all.

    Raises UserError for another word, and for one that needs a package that is not installed; with "all" and kinds it
    is left out.
    """
    found: dict[str, None] = {}
    for word in words.split(","):
        if word in CORRUPTIONS:
            require(word)
            found[word] = None
            continue
        if word in ABSENT:
            raise UserError(f"{word} is not made here: {ABSENT[word]}; allowed: --on with the archive, for it too")
        if word != "all" and word not in KINDS:
            known = [*CORRUPTIONS, *KINDS, "all"]
            guess = did_you_mean(word, known)
            raise UserError(f"unknown corruption {brief(word)}{guess}; allowed: {', '.join(known)}")
        kind = [name for name, each in CORRUPTIONS.items() if word in ("all", each.kind)]
        found |= dict.fromkeys(name for name in kind if not missing(name))
    return list(found)


def missing(name: str) -> str:
    """Return the extra to install for a corruption that cannot be made; empty for one that can."""
    package = CORRUPTIONS[name].package
    return "images" if package and find_spec(package) is None else ""


def require(name: str) -> None:
    """Raise UserError where a corruption's package is not installed, or there is no such corruption."""
    if extra := missing(name):
        raise UserError(f"{name} needs a package that is not installed; allowed: pip install 'fastcifar[{extra}]'")
