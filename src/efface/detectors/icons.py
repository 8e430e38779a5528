"""What the report detectors of worlds of icons share. No detector is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnknownName
from ..models.icon_world import IconWorld
from .base import Detector, Seen
from .mini import MiniDetector


class IconReport(Detector):
    """Abstract. A small CNN that was trained on a world's pictures and shares no weights with its models.

    It names concepts, styles, backgrounds, and the categories of concepts by the sum of their members' probabilities.
    """

    def _of(self, net: MiniDetector, icons: IconWorld, facts: Mapping[str, Any], names: Sequence[str]) -> None:
        """Fill in what a detector is. Raises UnknownName for names that it has no output for."""
        self.net, self.facts = net, dict(facts)
        groups = {name: icons.categories.get(name, ()) for name in icons.group_words}
        families = [("category", groups)]
        families += [(f, {n: m.names for n, m in found.items()}) for f, found in icons.families.items() if found]
        self._heads = (
            net.labels.concepts,
            (*(f"{s} style" for s in net.labels.styles[:-1]), "no style"),
            (*(f"{b} background" for b in net.labels.backgrounds[:-1]), "no background"),
            *((*members, f"no {family}") for family, members in families),
        )
        self.names = [name for head in self._heads for name in head]
        self._sums = [_sums(net.labels.concepts, list(members.values())) for _, members in families]
        """(concepts + 1, categories + 1) each: sum the probabilities of the categories' members."""
        for name in names:
            if name not in self.names:
                raise UnknownName("concept of the report detector", name, self.names)

    def look(self, images: Tensor) -> Seen:
        scores = self.net.score(images)
        heads = (scores.concept, scores.style, scores.background, *(scores.concept @ s for s in self._sums))
        return Seen(torch.cat(heads, 1), scores.features)

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        return self._heads


def _sums(concepts: Sequence[str], categories: Sequence[Sequence[str]]) -> Tensor:
    """(concepts, categories + 1): 1 where the concept is a member; the last column is for those of no category."""
    members = [set(names) for names in categories]
    of = torch.tensor([[float(c in names) for names in members] for c in concepts])
    return torch.cat([of, 1 - of.sum(1, keepdim=True)], 1)
