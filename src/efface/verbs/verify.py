"""Check a file that somebody gave you, and measure its numbers again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BadOption
from ..evaluation.profiles import Profile
from ..evaluation.suite import suite_from
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..patches.verify import Check, Verification
from ..patches.verify import verify as look_at
from .evaluate import evaluate


def verify(
    path: str | Path,
    model: Any = None,
    *,
    remeasure: bool = False,
    key: str | Path | None = None,
    clip: str | None = None,
    detector: str | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
) -> Verification:
    """Look at a patch, an export or an exported folder; see :func:`efface.patches.verify.verify`.

    ``remeasure``: draw the cases of the recorded evaluation again, and look whether every rate lies in its recorded interval. It
    needs ``model``, the base; ``clip`` and ``detector`` are for models that have no world of their own.
    A wrong file is a failed check and no exception. Raises BadOption where ``remeasure`` has no model. Cost: 0 UNet evaluations;
    with ``remeasure`` those of the evaluation without its trivial entrants.

    >>> import efface
    >>> efface.erase("tiny", "uce", targets="cat").save("no-cat.safetensors")
    >>> found = efface.verify("no-cat.safetensors", "tiny")
    >>> [check.name for check in found.checks if check.status == "failed"]
    []

    """
    if model is None and (remeasure or clip or detector):
        raise BadOption("without a model nothing can be measured: give --model, or leave --remeasure, --clip and --detector out.")
    if not remeasure and (clip or detector):
        raise BadOption("--clip and --detector name the images that --remeasure draws; leave them out or add --remeasure.")
    model = load_model(model) if model is not None else None
    if model is not None:
        model.require("efface verify", ("unrounded",))
    found = look_at(path, model, key)
    if not remeasure or model is None:
        return found
    if not found.ok or found.patch is None:
        return _with(found, Check("measured again", "skipped", "a check before it failed."))
    if not (found.patch.card.measured.get("evaluation") or {}).get("rates"):
        return _with(found, Check("measured again", "failed", "the card has no evaluation that could be repeated."))
    return _with(found, _measured_again(model, found.patch, clip, detector, on_image, note))


def _with(found: Verification, check: Check) -> Verification:
    return replace(found, checks=(*found.checks, check))


def _measured_again(
    model: DiffusionModel,
    patch: Patch,
    clip: str | None,
    detector: str | None,
    on_image: Callable[[int, int], None],
    note: Callable[[str], None] | None,
) -> Check:
    kept: Mapping[str, Any] = patch.card.measured["evaluation"]
    with tempfile.TemporaryDirectory() as folder:
        summary = evaluate(
            model,
            patch,
            out=folder,
            profile=replace(Profile(**kept["profile"]), damaged=0),
            suite=suite_from(kept["suite"]),
            clip=clip,
            detector=detector,
            trivial=False,
            on_image=on_image,
            note=note,
        )
    axes = summary["entrants"][patch.card.method]["axes"]
    told, outside = [], []
    for axis, r in kept["rates"].items():
        now = (axes.get(axis) or {}).get(r["measure"]) or {"k": 0, "n": 0, "value": None}
        inside = now["value"] is not None and r["low"] <= now["value"] <= r["high"]
        told.append(f"{axis} {now['k']}/{now['n']} in [{100 * r['low']:.1f}, {100 * r['high']:.1f}] %")
        if not inside:
            outside.append(
                f"{axis} {now['k']}/{now['n']}, recorded {r['k']}/{r['n']} [{100 * r['low']:.1f}, {100 * r['high']:.1f}] %"
            )
    if outside:
        return Check("measured again", "failed", f"outside of the recorded interval: {'; '.join(outside)}.")
    return Check("measured again", "passed", f"{', '.join(told)}.")
