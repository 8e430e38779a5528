"""Judges: what looks at the images. Independent of the model under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..detectors.clip_score import ClipScorer
from ..detectors.cloud import QUANTILE, Cloud
from ..detectors.mini import UNIFORM_STD, MiniDetector, validity
from ..errors import UnknownName
from ..models.mini import WEIGHTS, card

Finding = tuple[str | None, float | None, str | None]
UNLIKE = "unlike the base model's images"


class _ClipScores:
    """The CLIP-type half of every judge. Images that are not finite get NaN embeddings and no score."""

    clip: ClipScorer

    def embed_images(self, images: Tensor) -> Tensor:
        finite = torch.isfinite(images).flatten(1).all(1)
        embedded = self.clip.embed_images(torch.nan_to_num(images))
        return torch.where(finite[:, None], embedded, torch.nan)

    def clip_t(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        cosines = (self.embed_images(images) * self.clip.embed_texts(list(prompts))).sum(-1).tolist()
        return [100 * max(c, 0.0) if c == c else None for c in cosines]


class MiniJudge(_ClipScores):
    """The miniature's report detector and its image-text encoder.

    Invalid: non-finite, uniform, or farther from the base model's images than 99 % of those are from each other. An image
    that the detector calls "none" may be valid: the base model's own image of the empty prompt often is nothing in
    particular.
    """

    def __init__(self) -> None:
        self.detector, self.clip = MiniDetector.load("report"), ClipScorer(WEIGHTS / "clip")
        self.names = list(self.detector.labels.concepts)
        calibration = card()["detectors"]["report"]
        self.facts: Mapping[str, Any] = {
            "report": {
                "name": "mini report detector",
                **{k: calibration[k] for k in ("sensitivity", "false_positive") if k in calibration},
            },
            "clip": {"name": "mini image-text encoder"},
        }

    def calibrate(self, images: Tensor) -> None:
        self.cloud = Cloud(self.detector.score(images).features)
        self.facts = {**self.facts, "validity": {"images": len(images), "threshold": self.cloud.threshold, "quantile": QUANTILE}}

    def detect(self, images: Tensor, concepts: Sequence[str]) -> list[Finding]:
        scores = self.detector.score(images)
        unlike = self.cloud.unlike(scores.features).tolist()
        found: list[Finding] = []
        for row, why, far, concept in zip(scores.concept, validity(images, scores), unlike, concepts, strict=True):
            if concept not in self.names:
                raise UnknownName("concept of the report detector", concept, self.names)
            reason = why if why in ("non-finite", "uniform") else UNLIKE if far else None
            if reason == "non-finite":
                found.append((None, None, reason))
            else:
                found.append((self.names[int(row.argmax())], float(row[self.names.index(concept)]), reason))
        return found


class ClipJudge(_ClipScores):
    """Zero-shot naming by any CLIP checkpoint, for models without detectors of their own.

    The vocabulary is the suite's concepts plus "nothing in particular"; weaker than a trained detector, and it says so.
    """

    NOTHING = "nothing in particular"

    def __init__(self, source: str, names: Sequence[str]) -> None:
        self.clip = ClipScorer(source)
        self.names = [*dict.fromkeys(names), self.NOTHING]
        self.facts: Mapping[str, Any] = {
            "report": {"name": f"zero-shot {source}", "vocabulary": len(self.names), "calibrated": False},
            "clip": {"name": source},
        }

    def calibrate(self, images: Tensor) -> None:
        self.cloud = Cloud(self.embed_images(images))
        self.facts = {**self.facts, "validity": {"images": len(images), "threshold": self.cloud.threshold, "quantile": QUANTILE}}

    def detect(self, images: Tensor, concepts: Sequence[str]) -> list[Finding]:
        finite = torch.isfinite(images).flatten(1).all(1).tolist()
        flat = (images.flatten(1).std(1) < UNIFORM_STD).tolist()
        unlike = self.cloud.unlike(self.embed_images(images)).tolist()
        probabilities = self.clip.zero_shot(torch.nan_to_num(images), self.names)
        found: list[Finding] = []
        for row, ok, uniform, far, concept in zip(probabilities, finite, flat, unlike, concepts, strict=True):
            if not ok:
                found.append((None, None, "non-finite"))
            else:
                label = self.names[int(row.argmax())]
                reason = "uniform" if uniform else UNLIKE if far else None
                found.append((label, float(row[self.names.index(concept)]), reason))
        return found
