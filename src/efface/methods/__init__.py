"""Erasure methods. To add one: write one file beside these and one import line here; see CONTRIBUTING.md."""

from .ap import AP
from .base import Method, option
from .esd import ESD
from .mace import MACE
from .naive import Naive
from .realera import RealEra
from .rece import RECE
from .time import TIME
from .uce import UCE

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Naive, ESD, AP, UCE, TIME, RECE, MACE, RealEra)}

__all__ = ["AP", "ESD", "MACE", "METHODS", "RECE", "TIME", "UCE", "Method", "Naive", "RealEra", "option"]
