"""Erasure methods, one file each. To add one, write one file and register its class; CONTRIBUTING.md has an example."""

from .ablation import ConceptAblation
from .advunlearn import AdvUnlearn
from .age import AGE
from .ap import AP
from .base import Method, option
from .baselines import L2, Fixed, Naive, Neutral
from .esd import ESD
from .forget_me_not import ForgetMeNot
from .kpop import KPOP
from .mace import MACE
from .rap import RAP, RAPAttack
from .realera import RealEra
from .rece import RECE
from .stereo import STEREO
from .time import TIME
from .trce import TRCE
from .uce import UCE

__all__ = [
    "AGE",
    "AP",
    "ESD",
    "KPOP",
    "L2",
    "MACE",
    "RAP",
    "RECE",
    "STEREO",
    "TIME",
    "TRCE",
    "UCE",
    "AdvUnlearn",
    "ConceptAblation",
    "Fixed",
    "ForgetMeNot",
    "Method",
    "Naive",
    "Neutral",
    "RAPAttack",
    "RealEra",
    "option",
]
