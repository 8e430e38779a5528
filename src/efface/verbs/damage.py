"""What else a patch broke."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..concepts.sensitive import sensitive
from ..errors import BadFile
from ..evaluation.damage import TESTS, damage_cost
from ..evaluation.damage import damage as damaged
from ..evaluation.driver import Judge, judge_facts
from ..evaluation.profiles import Profile
from ..evaluation.records import DAMAGE, read_damage
from ..io.files import claimed, write_text
from ..io.images import to_pixels, write_png
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..preservation.candidates import concept_space
from ..versions import versions
from .cost import announce
from .subject import judge_for, profile_for


def damage_space(model: DiffusionModel, space: str, targets: Sequence[str]) -> list[str]:
    return list(concept_space(space, model).without(targets).require(1).candidates)


def keep_damage(
    model: DiffusionModel,
    patch: Patch,
    names: Sequence[str],
    profile: Profile,
    judge: Judge,
    folder: Path,
    count: int,
    by: str = "noise",
    on_image: Callable[[int, int], None] = lambda done, total: None,
    *,
    hidden: bool = False,
) -> dict[str, Any]:
    """The damage of a patch, found in the folder or measured and written to it. Pictures are blurred where a target or a name is
    sensitive, and where ``hidden`` says so."""
    key = [
        patch.digest(),
        model.digest(),
        dataclasses.asdict(profile),
        hashlib.sha256("\n".join(names).encode()).hexdigest(),
        count,
        by,
        judge_facts(judge),
        TESTS,
    ]
    kept = read_damage(folder)
    if kept is not None and kept.get("key") == key:
        return kept
    if kept is not None:
        raise BadFile(
            f"{folder} holds the damage of another patch, model, profile, space or detector; give another --out, or delete it."
        )
    record, pictures = damaged(model, patch, names, profile, judge, count=count, by=by, on_image=on_image)
    hidden = hidden or sensitive((*patch.card.request.asked, *names))
    for i, row in enumerate(record["rows"]):
        for which, image in zip(("before", "after"), pictures[row["name"]], strict=True):
            if bool(torch.isfinite(image).all()):
                write_png(to_pixels(image[None], hidden=hidden)[0], folder / "images" / "damage" / f"{i}-{which}.png")
    record = {**record, "key": key, "versions": versions()}
    write_text(folder / DAMAGE, json.dumps(record, indent=1, allow_nan=False))
    return record


def damage(
    model: Any,
    patch: Patch,
    *,
    out: str | Path,
    count: int = 20,
    space: str = "auto",
    by: str | None = None,
    profile: str = "mini-lite",
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """What else a patch broke: the ``count`` names of a concept space it hurts most, confirmed on held-out seeds.

    ``space``: auto (the model's own names where it has some, else common English words), world, english, vocabulary, or a file.
    ``by``: noise or images, see :func:`efface.evaluation.damage.damage`; by default images for up to 200 names. Writes
    damage.json and pictures before and after to ``out`` and returns the record.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> record = efface.damage("mini", patch, out="what-broke", count=2, profile="smoke")
    >>> record["names"], len(record["rows"])  # names looked at, and those shown with their test on other seeds
    (122, 2)

    """
    model = load_model(model)
    model.require("a search for damage", ("unrounded",))
    chosen = profile_for(model, profile)
    patch.check_base(model)
    names = damage_space(model, space, patch.card.request.targets)
    by = by or ("images" if len(names) <= 200 else "noise")
    judge = judge_for(model, names, clip, detector)
    planned = damage_cost(model, len(names), count, chosen, by) if read_damage(Path(out)) is None else 0
    where = "built-in concepts" if space == "auto" and model.concept_names else f"names of the concept space {space}"
    found = "the change of their noise predictions" if by == "noise" else "the fall of their image-text score"
    announce(note, model, planned, f"{len(names)} {where} are searched for damage by {found}")
    with claimed(Path(out)):
        return keep_damage(model, patch, names, chosen, judge, Path(out), count, by, on_image)
