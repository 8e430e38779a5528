"""Several detectors as one: each names what it knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Detector, Seen


class Several(Detector):
    """Detectors side by side. Every one is a head of its own: a name competes with those of its own detector only.

    Features, which tell an image from anything the base model makes, are those of the first detector that describes images.
    """

    name = "several"
    summary = "detectors side by side"

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = list(detectors)
        self._heads: list[list[str]] = []
        for detector in self.detectors:
            taken = {n for head in self._heads for n in head}
            self._heads += [[f"{n} ({detector.name})" if n in taken else n for n in head] for head in detector.heads]
        self.names = [n for head in self._heads for n in head]
        self.facts = {"name": ", ".join(str(d.facts["name"]) for d in self.detectors)}
        self.facts |= {d.name: dict(d.facts) for d in self.detectors}
        self._eyes = next((i for i, d in enumerate(self.detectors) if d.describes), 0)

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        return self._heads

    def look(self, images: Tensor) -> Seen:
        seen = [d.look(images) for d in self.detectors]
        parts = next((s.parts for s in seen if s.parts is not None), None)
        said = [s.unread for s in seen if s.unread is not None]
        unread = [{name: why for one in of for name, why in one.items()} for of in zip(*said, strict=True)]
        return Seen(torch.cat([s.probabilities for s in seen], 1), seen[self._eyes].features, parts, unread or None)
