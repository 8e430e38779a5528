"""Judges: what looks at the images of an evaluation. A judge joins a detector, which names what an image shows, with an
image-text scorer, and says which images cannot be judged at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..detectors.base import Detector, Parts, Seen
from ..detectors.clip_score import ClipScorer
from ..detectors.cloud import QUANTILE, Cloud
from ..detectors.icons import IconReport
from ..detectors.mini import UNIFORM_STD, MiniDetector
from ..detectors.zero_shot import ZeroShot
from ..errors import EvaluationError, UnknownName
from ..models.mini import WEIGHTS, card
from ..models.mini.world import load_world

Finding = tuple[str | None, float | None, str | None]
UNLIKE = "unlike the base model's images"
RANKED = 10
"""Fewest names of one kind among which the place of a name is recorded."""


class DetectorJudge:
    """Any detector, and an image-text scorer where there is one.

    An image is invalid when it is not finite, uniform, or farther from the base model's images than 99 % of those are from each
    other. An image that the detector calls nothing in particular may be valid: the base model's own image of the empty prompt
    often is.
    """

    def __init__(self, detector: Detector, scorer: ClipScorer | None = None, scorer_name: str = "") -> None:
        self.detector, self.scorer = detector, scorer
        self.names: Sequence[str] = detector.names
        ends = list(itertools.accumulate(len(head) for head in detector.heads))
        parts = [range(end - len(head), end) for head, end in zip(detector.heads, ends, strict=True)]
        self._place = {self.names[i]: (i, part) for part in parts for i in part}
        """Name -> its column, and the columns of its head."""
        self.facts: Mapping[str, Any] = {"report": dict(detector.facts), "clip": {"name": scorer_name or "none"}}
        self.cloud: Cloud | None = None
        """The base model's images, to which others are compared; None before :meth:`calibrate`."""
        self._looked: tuple[Tensor, Seen] | None = None
        self._embedded: tuple[Tensor, Tensor] | None = None

    def look(self, images: Tensor) -> Seen:
        """The detector's answer. The last one is kept, because several questions are asked about the same images."""
        if self._looked is None or self._looked[0] is not images:
            seen = self.detector.look(images)
            if seen.probabilities.shape != (len(images), len(self.names)) or len(seen.features) != len(images):
                raise EvaluationError(
                    f"the detector {self.detector.name!r} gave {tuple(seen.probabilities.shape)} probabilities for {len(images)} "
                    f"images and {len(self.names)} names."
                )
            self._looked = images, seen
        return self._looked[1]

    def calibrate(self, images: Tensor) -> None:
        """Learn from the base model's images (n, 3, H, W) what is valid. Raises EvaluationError for too few."""
        self.cloud = Cloud(self.look(images).features)
        self.facts = {**self.facts, "validity": {"images": len(images), "threshold": self.cloud.threshold, "quantile": QUANTILE}}

    def detect(self, images: Tensor, concepts: Sequence[str]) -> list[Finding]:
        """Per image the name the detector gives it among those of the asked concept's kind, the probability of that concept, and
        why the image is invalid, or None.

        Raises UnknownName for a concept that the detector does not know, and EvaluationError before :meth:`calibrate`.
        """
        if self.cloud is None:
            raise EvaluationError(
                f"the judge with the detector {self.detector.name!r} has not learned what a valid image is; give images of the "
                "unmodified model to calibrate() first."
            )
        seen = self.look(images)
        finite = torch.isfinite(images).flatten(1).all(1) & torch.isfinite(seen.probabilities).all(1)
        flat = images.flatten(2).std(2).amax(1) < UNIFORM_STD
        unlike = self.cloud.unlike(seen.features)
        found: list[Finding] = []
        for i, concept in enumerate(concepts):
            if concept not in self._place:
                raise UnknownName("concept of the report detector", concept, self.names)
            if not finite[i]:
                found.append((None, None, "non-finite"))
                continue
            column, head = self._place[concept]
            row = seen.probabilities[i]
            told = seen.unread[i].get(concept) if seen.unread is not None else None
            reason = "uniform" if flat[i] else UNLIKE if unlike[i] else told
            best = head.start + int(row[head.start : head.stop].argmax())
            found.append((self.names[best], float(row[column]), reason))
        return found

    def ranks(self, images: Tensor, concepts: Sequence[str]) -> list[int | None]:
        """Per image the place of the concept among the names of its kind, 1 for the likeliest one; None where there are fewer
        than 10 names, of which the first five say nothing."""
        seen, found = self.look(images), list[int | None]()
        for row, concept in zip(seen.probabilities, concepts, strict=True):
            column, head = self._place[concept]
            known = len(head) >= RANKED and bool(torch.isfinite(row).all())
            found.append(1 + int((row[head.start : head.stop] > row[column]).sum()) if known else None)
        return found

    def parts(self, images: Tensor) -> Sequence[Parts] | None:
        """What the detector found where in each image; None from one that draws no boxes."""
        return self.look(images).parts

    @property
    def backbones(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """What gives features of images, by the name under which records know it: the detector, and the scorer where it is
        another network."""
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        found[str(self.detector.facts["name"])] = lambda images: self.look(images).features
        if self.scorer is not None and not self._one_network:
            found[str(self.facts["clip"]["name"])] = self.embed_images
        return found

    @property
    def _one_network(self) -> bool:
        """Whether the detector names images by the scorer's own features."""
        return isinstance(self.detector, ZeroShot) and self.detector.scorer is self.scorer

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, d) unit vectors of the scorer, or of the detector's features without one; NaN for images that are not finite."""
        if self.scorer is None:
            return normalize(self.look(images).features, dim=-1)
        if self._one_network:
            return self.look(images).features
        if self._embedded is None or self._embedded[0] is not images:
            self._embedded = images, self.scorer.embed_images(images)
        return self._embedded[1]

    def clip_t(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        """100 max(cos, 0) of each image with its own prompt; None where an image is not finite, or without a scorer."""
        if self.scorer is None:
            return [None] * len(images)
        cosines = (self.embed_images(images) * self.scorer.embed_texts(list(prompts))).sum(-1).tolist()
        return [100 * max(c, 0.0) if c == c else None for c in cosines]


class MiniReport(IconReport):
    """The miniature's report detector."""

    name = "mini-report"
    summary = "the report detector of the miniature"

    def __init__(self, names: Sequence[str] = ()) -> None:
        measured = card()["detectors"]["report"]
        kept = {k: measured[k] for k in ("sensitivity", "false_positive") if k in measured}
        self._of(MiniDetector.load("report"), load_world(), {"name": "mini report detector", **kept}, names)


class MiniJudge(DetectorJudge):
    """The miniature's report detector and its image-text scorer."""

    def __init__(self) -> None:
        super().__init__(MiniReport(), ClipScorer(WEIGHTS / "clip"), "mini image-text encoder")


class ClipJudge(DetectorJudge):
    """Zero-shot naming by any CLIP checkpoint, for models without detectors of their own; see :class:`ZeroShot`."""

    def __init__(self, source: str, names: Sequence[str], heads: Sequence[Sequence[str]] = ()) -> None:
        scorer = ClipScorer(source)
        super().__init__(ZeroShot(names, scorer, source, heads), scorer, source)
