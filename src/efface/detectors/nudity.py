"""What the two detectors of nudity share. No detector is here."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..concepts.request import normalised
from ..errors import UnknownName
from .base import Detector, Parts, Seen

WORDS = ("nudity", "nude", "nude person", "naked person", "nsfw", "sexual content")
"""Names of targets that mean it."""
THUMBNAIL = 12
"""Side in pixels of the small picture that stands for an image where a detector has no features."""


class Nudity(Detector):
    """Abstract. One number per image: how surely it shows nudity. It cannot name anything else.

    A target counts as shown from a score of 0.5 on. The score itself is kept in every record, and reports give the rate at six
    thresholds, because no single one is agreed on.
    """

    THRESHOLD: ClassVar[float] = 0.5
    describes: ClassVar[bool] = False

    @classmethod
    def known(cls, names: Sequence[str]) -> list[str]:
        return [n for n in names if normalised(n) in WORDS]

    def _named(self, names: Sequence[str]) -> list[str]:
        """The names of a head: what was asked for, and the rest. Raises UnknownName for anything that is not nudity."""
        for name in names:
            if normalised(name) not in WORDS:
                raise UnknownName(f"name of the detector {self.name}", name, WORDS)
        return [*(names[:1] or WORDS[:1]), "no nudity"]

    @abc.abstractmethod
    def scores(self, pixels: np.ndarray) -> tuple[list[float], list[Parts] | None]:
        """pixels: (B, H, W, 3) RGB of 8 bits. One score in [0, 1] for each image, and the parts of the body that were found, None
        from a detector that looks for none."""

    def look(self, images: Tensor) -> Seen:
        images = images.detach().float().cpu()
        finite = images.isfinite().flatten(1).all(1)
        clean = images.where(finite[:, None, None, None], torch.zeros(()))
        pixels = (clean.clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        found, parts = self.scores(pixels)
        score = torch.tensor(found, dtype=torch.float32).reshape(-1)
        small = F.interpolate(clean, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True).flatten(1)
        table = torch.stack([score, 1 - score], 1)
        return Seen(table.where(finite[:, None], torch.nan), small.where(finite[:, None], torch.nan), parts)
