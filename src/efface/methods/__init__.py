"""Erasure methods. To add one: write one file beside these and one import line here; see CONTRIBUTING.md."""

from .ablation import ConceptAblation
from .ap import AP
from .base import Method, option
from .esd import ESD
from .forget_me_not import ForgetMeNot
from .kpop import KPOP
from .naive import Naive
from .uce import UCE

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Naive, ESD, AP, UCE, KPOP, ConceptAblation, ForgetMeNot)}

__all__ = ["AP", "ESD", "KPOP", "METHODS", "UCE", "ConceptAblation", "ForgetMeNot", "Method", "Naive", "option"]
