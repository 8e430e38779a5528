"""Guards at sampling time, one file each. To add one, write one file and register its class; see CONTRIBUTING.md."""

from .base import Guard
from .negative import Negative
from .safree import SAFREE
from .sld import SLD

__all__ = ["SAFREE", "SLD", "Guard", "Negative"]
