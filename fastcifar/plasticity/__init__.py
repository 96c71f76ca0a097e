"""What keeps networks able to learn, or makes them so again, for any module and for loops of the user's own."""

from fastcifar.plasticity.dash import dash
from fastcifar.plasticity.fire import fire

__all__ = ["dash", "fire"]
