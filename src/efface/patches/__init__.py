"""The product of an erasure: named weight changes with their provenance, in one safetensors file."""

from .patch import Patch, PatchCard

__all__ = ["Patch", "PatchCard"]
