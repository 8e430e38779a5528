"""Erasure methods. To add one: write one file beside these and one import line here; see CONTRIBUTING.md."""

from .age import AGE
from .ap import AP
from .base import Method, option
from .esd import ESD
from .uce import UCE

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (ESD, AP, AGE, UCE)}

ROWS: dict[str, type[Method]] = {"naive": AP, "l2": AP, "neutral": AP, "fixed": AP}
"""Baselines that are a method with the preset of their own name laid over the model's: they differ from it in that alone."""

__all__ = ["AGE", "AP", "ESD", "METHODS", "ROWS", "UCE", "Method", "option"]
