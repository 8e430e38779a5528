"""The product of an erasure: named weight changes with their provenance, in one safetensors file."""

from .card import PatchCard
from .patch import Patch

__all__ = ["Patch", "PatchCard"]
