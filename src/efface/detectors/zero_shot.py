"""Zero-shot naming by any CLIP checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Detector, Seen
from .clip_score import ClipScorer


class ZeroShot(Detector):
    """Names images by a CLIP checkpoint: the name whose text lies nearest to the image, or "nothing in particular".

    It is weaker than a trained detector, and every record says that it is not calibrated.
    """

    name = "zero-shot"
    summary = "the nearest text of a CLIP checkpoint"
    NOTHING = "nothing in particular"

    def __init__(self, names: Sequence[str], scorer: ClipScorer | None = None, source: str = "") -> None:
        self.scorer = scorer or ClipScorer(source or None)
        self.names = [*dict.fromkeys(names), self.NOTHING]
        self.facts = {"name": f"zero-shot {source}", "vocabulary": len(self.names), "calibrated": False}

    def look(self, images: Tensor) -> Seen:
        features = self.scorer.embed_images(images)
        return Seen(self.scorer.name_probabilities(features, self.names), features)
