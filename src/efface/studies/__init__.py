"""Studies of what erasing one concept does to the others. To add one, write one file here and add
one import line to this one."""

from .base import Study
from .collapse import Collapse
from .impact import Impact
from .lab import Erasure, Lab
from .locality import Locality
from .preserve import Preserve
from .search import SearchStudy
from .spectrum import Spectrum
from .text_similarity import TextSimilarity

STUDIES: dict[str, type[Study]] = {
    cls.name: cls for cls in (Impact, Spectrum, Preserve, SearchStudy, TextSimilarity, Collapse, Locality)
}

__all__ = ["STUDIES", "Erasure", "Lab", "Study"]
