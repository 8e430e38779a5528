"""Whether an erasure survives what users do with a model: other precision, schedulers, sizes, LoRAs, merges, fine-tuning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks.resurge import Resurge
from ..concepts.request import names_of
from ..conditions import Condition, Plain, Setting, conditions
from ..errors import BadFile, BadOption, EffaceError, EvaluationError, UnknownName
from ..evaluation.cache import base_cost, quantised
from ..evaluation.driver import Judge, System, anchor_cases, calibrate, judge_facts, refuse_unseen, score
from ..evaluation.profiles import Profile
from ..evaluation.records import Entrant
from ..evaluation.survival import MARGIN, Look, compared, needed
from ..io.files import check_writable, claimed, write_text
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..registry import build_attack, preset_for
from ..reporting.survival import write_survival
from ..versions import versions
from .attack import goal_of, one_target
from .cost import announce
from .export import import_patch
from .hub import load_patch
from .subject import judge_for, known_to, profile_for, suite_for

RECORD_VERSION = 1
FILE, PAGE = "survive.json", "survive.html"


def survive(
    model: Any,
    patch: Patch,
    *,
    out: str | Path,
    only: Sequence[str] = (),
    target: str | None = None,
    cases: int | None = None,
    profile: str = "mini-lite",
    lora: str | Path | None = None,
    merge: Patch | str | Path | None = None,
    updates: int = 100,
    margin: float = MARGIN,
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Draw the same cases of the unmodified and of the erased model under many conditions, and say where the target comes back.

    ``only``: names of conditions (:func:`efface.conditions.conditions`); all without it. ``target``: needed when the patch has
    several. ``cases``: how many of the profile's prompts that name the target; all without it. ``lora``: a LoRA file to stack,
    ``merge``: another patch of the same base to merge with; without them a LoRA is trained for ``updates`` steps on images of
    other concepts, as in the attack ``resurge``. ``margin``: see :func:`efface.evaluation.survival.compared`, which says what
    the result means.
    Writes survive.json, after every condition, and survive.html to ``out``, and returns what is in the former; a stopped run goes
    on with the next condition. A condition that the model cannot be used under is "not testable". Raises UsageError before
    anything is computed, EvaluationError where the unmodified model does not draw the target. Cost: two sets of images per
    condition, and the fine-tunings.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> found = efface.survive("mini", patch, out="survive", only=["float16", "euler"], cases=4, profile="smoke")
    >>> [row["name"] for row in found["conditions"]]
    ['float16', 'euler']
    >>> {row["status"] for row in found["conditions"]} <= {"survives", "comes back", "undecided", "not testable"}
    True

    """
    model, folder, only = load_model(model), Path(out), names_of(only, "only")
    model.require("efface survive", ("unrounded",))
    patch.check_base(model)
    name, request = one_target(model, patch, target)
    sibling = _sibling(model, merge)
    known = conditions(lora is not None, sibling is not None)
    for wanted in only:
        if wanted not in known:
            raise UnknownName("condition", wanted, known)
    if not 0 < margin < 1:
        raise BadOption(f"a margin of {margin:g} is no share between 0 and 1.")
    if updates < 1:
        raise BadOption(f"{updates} updates of fine-tuning: give 1 or more.")
    chosen = {n: c for n, c in known.items() if not only or n in only}
    found = profile_for(model, profile)
    suite = suite_for(model, [name], near, far, kind=request.kind, known=known_to(detector, clip))
    direct = [c for c in suite.cases(found) if c.axis == "direct"]
    count = len(direct) if cases is None else cases
    if not 1 <= count <= len(direct):
        raise BadOption(f"profile {found.name} has {len(direct)} cases of the target, {count} were asked for.")
    setting = Setting(
        model,
        patch,
        name,
        tuple(direct[:count]),
        found.steps,
        goal_of(model, suite, direct[:count], {}).called,
        _tuning(model, updates),
        updates,
        import_patch(model, lora, targets=[name]) if lora is not None else None,
        sibling,
    )
    judge = judge_for(model, suite.names, clip, detector, suite.heads)
    check_writable(folder)
    key = _key(setting, judge, margin)
    with claimed(folder):
        record = _open(folder, key, setting, judge, margin, command)
        done = {row["name"] for row in record["conditions"]}
        left = {n: c for n, c in chosen.items() if n not in done}
        evals = 0.0
        if left:
            anchors, drawn = [patch.card.request.anchor], _profile(setting)
            evals = base_cost(model, [anchor_cases(anchors, drawn)], drawn)
            evals += sum(2 * c.evals(setting) for c in [Plain(), *left.values()])
        enough = needed(margin)
        told = f"{len(left)} conditions of {name!r} with {patch.card.method}, {count} cases each, drawn by both models"
        if count < enough:
            told += f"; with fewer than {enough} cases nothing can be called surviving"
        announce(note, model, evals, told, gradients=True)
        if left:
            _run(record, setting, left, judge, folder, margin, on_image)
        write_survival(record, folder / PAGE)
    return record


def _run(
    record: dict[str, Any],
    setting: Setting,
    left: dict[str, Condition],
    judge: Judge,
    folder: Path,
    margin: float,
    on_image: Callable[[int, int], None],
) -> None:
    """Draw and judge the conditions that are left, and write after each."""
    model, cases = setting.model, list(setting.cases)
    plain, total, done = Plain(), 2 * (1 + len(left)) * len(cases), 0
    images = quantised(plain.draw(setting, None))
    system = System(Entrant("none", "none", "trivial"), setting.patch)
    calibrate(judge, model, [system], images, profile=_profile(setting))
    embedded = judge.embed_images(images)

    def looked(images: Tensor) -> list[Look]:
        nonlocal done
        done += len(cases)
        on_image(done, total)
        return [Look(r.valid, r.hit) for r in score("none", cases, quantised(images), embedded, judge)]

    base = looked(images)
    refuse_unseen(score("none", cases, images, embedded, judge), [setting.target])
    erased = looked(plain.draw(setting, setting.patch))
    for i, (name, condition) in enumerate(left.items(), 1):
        done, before = 2 * i * len(cases), model.digest()
        try:
            looks = [looked(condition.draw(setting, patch)) for patch in (None, setting.patch)]
            row = compared(base, erased, looks[0], looks[1], margin)
        except (EffaceError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            # A network that does not take other sizes, a number format that this machine lacks: nothing was tested.
            nothing = [Look(False, False)] * len(cases)
            row = compared(base, erased, nothing, nothing, margin)
            row["why"] = f"this model cannot be used so: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        if model.digest() != before:
            raise EvaluationError(f"the condition {name} left other weights in the model than it found: nothing can be trusted.")
        record["conditions"].append({"name": name, "told": condition.told, **row})
        write_text(folder / FILE, json.dumps(record, indent=1, allow_nan=False))


def _profile(setting: Setting) -> Profile:
    return Profile("survive", setting.steps, setting.cases[0].guidance, {})


def _tuning(model: DiffusionModel, updates: int) -> Resurge:
    found = build_attack("resurge", preset=preset_for(Resurge, model), settings={"checkpoints": f"0,{updates}"})
    assert isinstance(found, Resurge)
    return found


def _sibling(model: DiffusionModel, source: Patch | str | Path | None) -> Patch | None:
    if source is None:
        return None
    found = source if isinstance(source, Patch) else load_patch(source)
    found.check_base(model)
    return found


def _key(setting: Setting, judge: Judge, margin: float) -> str:
    facts = [
        RECORD_VERSION,
        setting.model.digest(),
        setting.patch.digest(),
        [c.id for c in setting.cases],
        setting.steps,
        setting.tuning.plain(),
        setting.lora.digest() if setting.lora is not None else None,
        setting.sibling.digest() if setting.sibling is not None else None,
        judge_facts(judge),
        margin,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _open(folder: Path, key: str, setting: Setting, judge: Judge, margin: float, command: str) -> dict[str, Any]:
    """The record of this very run so far, or a new one. Raises BadFile where the folder holds another."""
    path = folder / FILE
    if path.is_file():
        try:
            kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
            same = kept["key"] == key
        except (ValueError, KeyError, TypeError) as error:
            raise BadFile(f"{path} is damaged ({error!r}); give another --out, or delete it.") from error
        if not same:
            raise BadFile(f"{folder} holds the survival of another patch, or with other cases. Give another --out, or delete it.")
        return kept
    return {
        "record_version": RECORD_VERSION,
        "kind": "survival",
        "key": key,
        "command": command,
        "target": setting.target,
        "model": {**setting.model.info, "digest": setting.model.digest()},
        "patch": {"method": setting.patch.card.method, "digest": setting.patch.digest()},
        "cases": len(setting.cases),
        "steps": setting.steps,
        "guidance": setting.cases[0].guidance,
        "updates": setting.updates,
        "margin": margin,
        "detectors": judge_facts(judge),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "conditions": [],
    }
