"""What else a patch broke: the names of a concept space it hurt most, found on some seeds and measured again on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..detectors.cloud import MINIMUM
from ..equations.statistics import benjamini_hochberg, centre_interval, sign_flip
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..patches import Patch
from .driver import Judge
from .profiles import Profile
from .scan import Probe, case_images, drops, prediction_changes, scan_cases, scored, text_scores

FALSE_DISCOVERY = 0.05
TESTS = 2
"""Which tests a record on disk was made with: score and naming."""
MIN_SEEDS = 6
"""Below, no distribution-free 95 % interval exists."""
FOUND_BY = ("noise", "images")
FIND = Probe(trajectories=1)
FIND_SEEDS = 2
"""Images per name in a search by images."""
SEEDS_B = 5_000_000
"""First seed of the images; the search draws its latents from seeds of its own."""


def confirm(drop: Sequence[Sequence[float]], lost: Sequence[Sequence[int] | None]) -> list[dict[str, Any]]:
    """Whether each name is damaged, by two paired tests of one side over the same seeds.

    drop: falls of the image-text score; lost: per seed 1 where the detector named the concept before and not after, -1 where only
    after, else 0; None for a name that the detector does not know. Per name: ``drop``, the mean fall, with an exact 95 % interval
    ``low``, ``high`` (None: too few seeds); ``p_score`` and ``p_named``, sign-flip tests that the score and the naming fall;
    ``p``, the smaller of the two, doubled because there are two; ``damaged``: real by Benjamini-Hochberg over the list; ``by``:
    which of the two tests says so, score and name.

    With no damage anywhere, the chance that any name is called damaged is at most 5 %, as long as falls are as likely as rises of
    the same size.
    """
    scores = [sign_flip(row) for row in drop]
    named = [None if row is None else sign_flip(row) for row in lost]
    p_values = [s if n is None else min(1.0, 2 * min(s, n)) for s, n in zip(scores, named, strict=True)]
    rejected = benjamini_hochberg(p_values, FALSE_DISCOVERY)
    threshold = max((p for p, r in zip(p_values, rejected, strict=True) if r), default=0.0)
    found = []
    for row, s, n, p, damaged in zip(drop, scores, named, p_values, rejected, strict=True):
        low, high = (bound if math.isfinite(bound) else None for bound in centre_interval(row))
        both = 1 if n is None else 2
        by = [k for k, q in (("score", s), ("name", n)) if damaged and q is not None and both * q <= threshold]
        mean = sum(row) / len(row)
        found.append({"drop": mean, "low": low, "high": high, "p_score": s, "p_named": n, "p": p, "damaged": damaged, "by": by})
    return found


def least_seeds(count: int) -> int:
    """Paired images per name with which one damaged name among ``count`` can be told that falls in three of four: of the two
    tests the better one gives 2 x 2^-(3 n / 4) <= 5 % / count."""
    return max(MIN_SEEDS, math.ceil(math.log2(2 * count / FALSE_DISCOVERY) / 0.75))


def damage_cost(model: DiffusionModel, names: int, count: int, profile: Profile, by: str = "noise", probe: Probe = FIND) -> int:
    """Evaluations of :func:`damage`, the base model's images included."""
    count = min(count, names)
    image = profile.evals_per_image(model)
    found = probe.cost(model, names) if by == "noise" else 2 * names * FIND_SEEDS * image
    return found + count * (least_seeds(count) + _base_seeds(count)) * image


def _base_seeds(count: int) -> int:
    """The base model's images per name: at least as many in all as say what is valid."""
    return max(least_seeds(count), -(-MINIMUM // count))


def damage(
    model: DiffusionModel,
    patch: Patch,
    names: Sequence[str],
    profile: Profile,
    judge: Judge,
    *,
    count: int = 20,
    by: str = "noise",
    probe: Probe = FIND,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """The ``count`` names that the patch seems to hurt most, measured again on paired images of other seeds.

    ``by`` says how they are found: "noise", the change of the noise predictions (no image, so a large space can be searched),
    or "images", the fall of the image-text score on 2 seeds. Two sets of seeds, because the maximum of noisy figures is biased
    upward: a harmless change would show damage in the very names it was found by. Returns the record and, per name, the
    pictures (3, H, W) of the first seed before and after. A row of the record is what :func:`confirm` says of a name, the
    ``score`` by which it was found, in how many images the detector names it ``before`` and ``after`` (None: it does not know
    the name), and how many images after are ``invalid``: they are not named, and what cannot be scored has the lowest score.
    Raises BadOption for a count below 1 or another ``by``. Cost: :func:`damage_cost`.
    """
    if count < 1 or by not in FOUND_BY:
        raise BadOption(f"damage lists at least 1 name, found by one of {', '.join(FOUND_BY)}; got {count}, {by!r}.")
    count = min(count, len(names))
    seeds, base_seeds = least_seeds(count), _base_seeds(count)
    find = scan_cases(names, range(FIND_SEEDS), profile.guidance) if by == "images" else []
    total, start = 2 * len(find) + count * (seeds + base_seeds), 2 * len(find)
    if by == "noise":
        scores = prediction_changes(model, patch, names, probe, seed=0).mean(1)
    else:
        first = case_images(model, None, find, profile, lambda n: on_image(n, total))
        second = case_images(model, patch, find, profile, lambda n: on_image(len(find) + n, total))
        was_text, now_text = (text_scores(images, names, FIND_SEEDS, judge) for images in (first, second))
        scores = drops(names, was_text, now_text).mean(1)
    order = torch.sort(scores, descending=True, stable=True).indices[:count].tolist()
    worst = [names[i] for i in order]
    cases, more = (scan_cases(worst, range(SEEDS_B, SEEDS_B + n), profile.guidance) for n in (seeds, base_seeds))
    base = case_images(model, None, more, profile, lambda n: on_image(start + n, total))
    judge.calibrate(base)
    before = base.unflatten(0, (count, base_seeds))[:, :seeds].flatten(0, 1)
    after = case_images(model, patch, cases, profile, lambda n: on_image(start + len(more) + n, total))
    was, now = (scored(images, worst, seeds, judge) for images in (before, after))
    known = [name in judge.names for name in worst]
    lost = (was.shown.int() - now.shown.int()).tolist()
    tested = confirm(drops(worst, was.text, now.text).tolist(), [row if k else None for row, k in zip(lost, known, strict=True)])
    rows = [
        {
            "name": name,
            "score": float(scores[i]),
            **({"before": int(b.sum()), "after": int(a.sum())} if k else {"before": None, "after": None}),
            "invalid": int((~valid).sum()),
            **said,
        }
        for i, name, k, b, a, valid, said in zip(order, worst, known, was.shown, now.shown, now.valid, tested, strict=True)
    ]
    record = {
        "targets": list(patch.card.request.asked),
        "method": patch.card.method,
        "names": len(names),
        "by": by,
        "seeds": seeds,
        "profile": profile.name,
        "damaged": sum(r["damaged"] for r in rows),
        "rows": sorted(rows, key=lambda r: -r["drop"]),
    }
    pictures = {n: (before[k * seeds], after[k * seeds]) for k, n in enumerate(worst)}
    return record, pictures
