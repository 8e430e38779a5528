"""What looks at the images of this world: its report detector and its image-text scorer."""

from __future__ import annotations

from collections.abc import Sequence

from efface.detectors.clip_score import ClipScorer
from efface.detectors.icons import IconReport
from efface.detectors.mini import MiniDetector
from efface.evaluation.judges import DetectorJudge

from . import measured, table, weights


class IconsReport(IconReport):
    """The world's report detector."""

    name = "icons-report"
    summary = "the report detector of the world of icons"

    def __init__(self, names: Sequence[str] = ()) -> None:
        known = measured("card.json")["detectors"]["report"]
        facts = {"name": "icons report detector", **{k: known[k] for k in ("sensitivity", "false_positive")}}
        self._of(MiniDetector.load("report", weights() / "detectors", table()), table(), facts, names)


class IconsJudge(DetectorJudge):
    """The report detector and the image-text scorer."""

    def __init__(self) -> None:
        super().__init__(IconsReport(), ClipScorer(weights() / "clip"), "icons image-text encoder")
