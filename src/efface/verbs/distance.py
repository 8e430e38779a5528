"""How far an erasure moved the images of everything else, as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..concepts.sensitive import sensitive
from ..equations.statistics import mean_interval
from ..errors import BadOption
from ..evaluation.distances import LEAST
from ..evaluation.distances import distance as between
from ..evaluation.judges import DetectorJudge
from ..evaluation.scan import case_images
from ..io.files import check_writable, write_text
from ..models.load import load_model
from ..patches import Patch
from ..versions import versions
from .cost import announce
from .damage import damage_space
from .subject import judge_for, profile_for


def distance(
    model: Any,
    patch: Patch,
    *,
    out: str | Path | None = None,
    images: int = 200,
    space: str = "auto",
    profile: str = "mini-lite",
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The Fréchet and the kernel distance between images of the erased and the unmodified model, on the same prompts and seeds.

    The names of a concept space, without the targets, take turns over ``images`` seeds. Beside the distance stands its control:
    that of the unmodified model's images to its own on other seeds. An erasure that changes nothing has the distance 0; one whose
    distance exceeds the control moved the images as a whole, which fresh seeds do not. Every number carries the name of the
    network whose features it rests on: FD[EfficientNet-Lite0] is not the FID of papers, which takes Inception-v3 and photographs.
    ``similarity`` is the mean cosine of the pairs' features.

    ``out``: a JSON file. Cost: 3 x ``images`` images, those of the unmodified model from the cache where they are there. Raises
    BadOption for too few images and without the package torchmetrics, EvaluationError for images that have no features.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> found = efface.distance("mini", patch, images=50, profile="smoke")["backbones"]["mini report detector"]
    >>> sorted(found["distance"]), 0 < found["similarity"]["value"] < 1
    (['fd', 'kid', 'kid_std'], True)

    """
    model = load_model(model)
    model.require("a distance of pictures", ("unrounded",))
    chosen = profile_for(model, profile)
    patch.check_base(model)
    if images < LEAST:
        raise BadOption(f"images={images} are too few for a distance of sets; give at least {LEAST}.")
    if out is not None:
        check_writable(Path(out))
    names = damage_space(model, space, patch.card.request.targets)
    judge = judge_for(model, names, clip, detector)
    if not isinstance(judge, DetectorJudge):
        raise BadOption("the judge of this model's world gives no features; name a detector with --detector.")
    sets = [[_case(n, seed, chosen.guidance) for n, seed in _turns(names, images, first)] for first in (0, 1)]
    planned = 3 * images * chosen.evals_per_image(model)
    announce(note, model, planned, f"{images} images of {len(names)} names are drawn by both models, and again on other seeds")
    drawn: list[Tensor] = []
    for p, cases in ((None, sets[0]), (patch, sets[0]), (None, sets[1])):
        done = images * len(drawn)
        drawn.append(case_images(model, p, cases, chosen, lambda n, done=done: on_image(done + n, 3 * images)))  # type: ignore[misc]
    found = {name: _compared(*(features(images) for images in drawn)) for name, features in judge.backbones.items()}
    record = {
        "targets": list(patch.card.request.asked),
        "method": patch.card.method,
        "model": {**model.info, "digest": model.digest()},
        "images": images,
        "names": len(names),
        "profile": chosen.name,
        "backbones": found,
        "versions": versions(),
    }
    if out is not None:
        write_text(Path(out), json.dumps(record, indent=1, allow_nan=False))
    return record


def _case(name: str, seed: int, guidance: float) -> Case:
    return Case("distance", name, name, seed, guidance, sensitive([name]))


def _turns(names: Sequence[str], images: int, first: int) -> list[tuple[str, int]]:
    """Names in turn with their seeds; ``first`` 0 and 1 share none."""
    return [(names[i % len(names)], 2 * (i // len(names)) + first) for i in range(images)]


def _compared(base: Tensor, erased: Tensor, other: Tensor) -> dict[str, Any]:
    cosines = torch.cosine_similarity(base.double(), erased.double(), dim=1).tolist()
    mean, low, high = mean_interval(cosines)
    return {
        "distance": between(base, erased).json(),
        "control": between(base, other).json(),
        "similarity": {"value": mean, "low": low, "high": high, "n": len(cosines)},
    }
