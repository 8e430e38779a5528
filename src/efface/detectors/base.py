"""What a detector is: something that looks at images and names what they show, independent of the model under test."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

Parts = Mapping[str, Sequence[float]]
"""What was found in one image: class -> the score of each of its detections."""


@dataclass(frozen=True)
class Seen:
    """What a detector says about B images. Rows of images with a pixel that is not finite are NaN throughout."""

    probabilities: Tensor
    """(B, len(names)) probability of every name; the names of a head sum to 1."""
    features: Tensor
    """(B, d) vectors that lie near each other for images alike; they tell an image from anything the base model makes."""
    parts: Sequence[Parts] | None = None
    """Of each image what was found where, from a detector that draws boxes."""
    unread: Sequence[Mapping[str, str]] | None = None
    """Of each image the names about which the detector has no answer, with the reason: for them the image is invalid."""


class Detector(abc.ABC):
    """Abstract. A final subclass is built with the names that it has to tell apart and fills :meth:`look`.

    A package registers its class under the entry-point group ``efface.detectors``; a class in a file of your own runs as
    ``--detector path/to/file.py:Name``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    describes: ClassVar[bool] = True
    """Whether its features describe the whole image. Those of a detector of one thing may not."""
    takes: ClassVar[str] = ""
    """What stands behind its name and a colon, and is handed to it beside the names; "" for a detector that takes nothing."""
    names: Sequence[str]
    """What it can name, at least one of them meaning "none of the others"."""
    facts: Mapping[str, Any]
    """What a record must say about it: name, weights, thresholds, calibration."""

    @property
    def heads(self) -> Sequence[Sequence[str]]:
        """The names in groups that exclude each other, in the order of ``names``: an image has one object and one style. Here all
        names are one group."""
        return (self.names,)

    @classmethod
    def known(cls, names: Sequence[str]) -> list[str]:
        """Those of the names that it can tell apart; here all. What is left is for a detector beside it."""
        return list(names)

    @abc.abstractmethod
    def __init__(self, names: Sequence[str]) -> None:
        """Raises UnknownName or BadOption for names that it cannot tell apart."""

    @abc.abstractmethod
    def look(self, images: Tensor) -> Seen:
        """images: (B, 3, H, W) float in [0, 1]. Deterministic; a row does not depend on the other images of the batch."""
