"""Erasure methods. To add one: write one file beside these and one import line here; see CONTRIBUTING.md."""

from .ablation import ConceptAblation
from .advunlearn import AdvUnlearn
from .age import AGE
from .ap import AP
from .base import Method, option
from .esd import ESD
from .forget_me_not import ForgetMeNot
from .kpop import KPOP
from .mace import MACE
from .realera import RealEra
from .rece import RECE
from .stereo import STEREO
from .time import TIME
from .trce import TRCE
from .uce import UCE

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (ESD, AP, AGE, KPOP, ConceptAblation, ForgetMeNot, AdvUnlearn, STEREO, TRCE, UCE, TIME, RECE, MACE, RealEra)
}

ROWS: dict[str, type[Method]] = {"naive": AP, "l2": AP, "neutral": AP, "fixed": AP, "rap": AP, "rap-attack": AP}
"""Baselines that are a method with the preset of their own name laid over the model's: they differ from it in that alone."""

__all__ = [
    "AGE",
    "AP",
    "ESD",
    "KPOP",
    "MACE",
    "METHODS",
    "RECE",
    "ROWS",
    "STEREO",
    "TIME",
    "TRCE",
    "UCE",
    "AdvUnlearn",
    "ConceptAblation",
    "ForgetMeNot",
    "Method",
    "RealEra",
    "option",
]
