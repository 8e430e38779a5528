"""Zero-shot naming by any CLIP checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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

    def __init__(
        self, names: Sequence[str], scorer: ClipScorer | None = None, source: str = "", heads: Sequence[Sequence[str]] = ()
    ) -> None:
        """``heads``: the names in groups that exclude each other; () for one group of all."""
        self.scorer = scorer or ClipScorer(source or None)
        groups = [list(dict.fromkeys(head)) for head in (heads or (names,))]
        nothing = [f"{self.NOTHING}{f' ({i + 1})' if i else ''}" for i in range(len(groups))]
        self._heads = [[*group, end] for group, end in zip(groups, nothing, strict=True)]
        self.names = [name for head in self._heads for name in head]
        self.facts = {"name": f"zero-shot {source}", "vocabulary": len(self.names), "calibrated": False}

    def look(self, images: Tensor) -> Seen:
        features = self.scorer.embed_images(images)
        texts = [[*head[:-1], self.NOTHING] for head in self._heads]
        return Seen(torch.cat([self.scorer.name_probabilities(features, t) for t in texts], 1), features)

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        return self._heads
