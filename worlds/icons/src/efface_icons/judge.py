"""What looks at the images of this world: its report detector and its image-text scorer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from efface.detectors.base import Detector, Seen
from efface.detectors.clip_score import ClipScorer
from efface.detectors.mini import MiniDetector
from efface.errors import UnknownName
from efface.evaluation.judges import DetectorJudge

from . import measured, table, weights


class IconsReport(Detector):
    """A small CNN that was trained on the world's pictures and shares no weights with its models."""

    name = "icons-report"
    summary = "the report detector of the world of icons"

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.net = MiniDetector.load("report", weights() / "detectors", table())
        self.names = list(self.net.labels.concepts)
        for name in names:
            if name not in self.names:
                raise UnknownName("concept of the report detector", name, self.names)
        known = measured("card.json")["detectors"]["report"]
        self.facts = {"name": "icons report detector", **{k: known[k] for k in ("sensitivity", "false_positive")}}

    def look(self, images: Tensor) -> Seen:
        scores = self.net.score(images)
        return Seen(scores.concept, scores.features)


class IconsJudge(DetectorJudge):
    """The report detector and the image-text scorer."""

    def __init__(self) -> None:
        super().__init__(IconsReport(), ClipScorer(weights() / "clip"), "icons image-text encoder")
