"""Guards at sampling time. To add one: write one file beside these and one import line here."""

from .base import Guard
from .negative import Negative
from .safree import SAFREE
from .sld import SLD

GUARDS: dict[str, type[Guard]] = {cls.name: cls for cls in (Negative, SLD, SAFREE)}

__all__ = ["GUARDS", "SAFREE", "SLD", "Guard", "Negative"]
