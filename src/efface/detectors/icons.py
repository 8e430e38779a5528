"""What the report detectors of worlds of icons share. No detector is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnknownName
from ..models.icon_world import IconWorld
from .base import Detector, Seen
from .mini import NONE, MiniDetector


class IconReport(Detector):
    """Abstract. A small CNN that was trained on a world's pictures and shares no weights with its models.

    It names concepts, styles, backgrounds, and the categories of concepts by the sum of their members' probabilities.
    """

    def _of(self, net: MiniDetector, icons: IconWorld, facts: Mapping[str, Any], names: Sequence[str]) -> None:
        """Fill in what a detector is. Raises UnknownName for names that it has no output for."""
        self.net, self.facts = net, dict(facts)
        groups = list(icons.group_words)
        self._heads = (
            net.labels.concepts,
            (*(f"{s} style" for s in net.labels.styles[:-1]), "no style"),
            (*(f"{b} background" for b in net.labels.backgrounds[:-1]), "no background"),
            (*groups, "no category"),
        )
        self.names = [name for head in self._heads for name in head]
        of = [groups.index(icons[c].group) if c != NONE else len(groups) for c in net.labels.concepts]
        self._sum = torch.nn.functional.one_hot(torch.tensor(of), len(groups) + 1).float()
        """(concepts + 1, groups + 1): sums the probabilities of a category's members."""
        for name in names:
            if name not in self.names:
                raise UnknownName("concept of the report detector", name, self.names)

    def look(self, images: Tensor) -> Seen:
        scores = self.net.score(images)
        heads = (scores.concept, scores.style, scores.background, scores.concept @ self._sum)
        return Seen(torch.cat(heads, 1), scores.features)

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        return self._heads
