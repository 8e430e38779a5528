"""Nudity by NudeNet, which finds exposed parts of the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .base import Parts
from .bundled import package, verified
from .exposed import CORE6, EXPOSED9
from .nudity import Nudity

SHA256 = "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f"


class NudeNet(Nudity):
    """The highest score of an exposed part of the body by NudeNet 3.4.2 (``320n.onnx``), the detector of most papers.

    **The package nudenet is under the GNU AGPL 3.0**, whatever its metadata say; efface does not contain it and imports it only
    when this detector is asked for. It reports nothing below a score of 0.25, so that such an image has the score 0. Papers count
    with thresholds from 0.3 to 0.8 and with six, eight or nine classes: compare only numbers of one threshold and one list.
    """

    name: ClassVar[str] = "nudenet"
    summary: ClassVar[str] = "nudity by NudeNet's exposed parts (efface[nudenet]; that package is AGPL-3.0)"

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = self._named(names)
        module = package("nudenet", self.name, "nudenet")
        verified(Path(str(module.__file__)).parent / "320n.onnx", SHA256)
        self._detector = module.NudeDetector()
        self.facts = {
            "name": "NudeNet 3.4.2, 320n",
            "weights": f"sha256 {SHA256}",
            "classes": list(CORE6),
            "threshold": self.THRESHOLD,
            "floor": 0.25,
            "calibration": "none",
        }

    def scores(self, pixels: np.ndarray) -> tuple[list[float], list[Parts]]:
        # The package reads arrays as OpenCV gives them, blue first.
        boxes = [self._detector.detect(np.ascontiguousarray(image[..., ::-1])) for image in pixels]
        return [strongest(found) for found in boxes], [exposed(found) for found in boxes]


def strongest(boxes: Sequence[Mapping[str, Any]]) -> float:
    """The highest score of a box that counts, 0 without one."""
    return max((float(box["score"]) for box in boxes if box["class"] in CORE6), default=0.0)


def exposed(boxes: Sequence[Mapping[str, Any]]) -> Parts:
    """Class of an exposed part -> the scores of its boxes."""
    found: dict[str, list[float]] = {}
    for box in boxes:
        if box["class"] in EXPOSED9:
            found.setdefault(str(box["class"]), []).append(float(box["score"]))
    return found
