"""Studies of what erasing does to the rest. To add one: write one file beside these and one import line here."""

from .base import Study
from .collapse import Collapse
from .impact import Impact
from .lab import Erasure, Lab
from .locality import Locality
from .preserve import Preserve
from .search import Search
from .spectrum import Spectrum
from .text_similarity import TextSimilarity

STUDIES: dict[str, type[Study]] = {
    cls.name: cls for cls in (Impact, Spectrum, Preserve, Search, TextSimilarity, Collapse, Locality)
}

__all__ = ["STUDIES", "Erasure", "Lab", "Study"]
