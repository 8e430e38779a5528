"""Erasure methods. To add one: write one file beside these and one import line here; see CONTRIBUTING.md."""

from .ap import AP
from .base import Method, option
from .esd import ESD
from .naive import Naive
from .uce import UCE

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Naive, ESD, AP, UCE)}

__all__ = ["AP", "ESD", "METHODS", "UCE", "Method", "Naive", "option"]
