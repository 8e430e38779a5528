"""Measure an erasure on paired cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..concepts.prompts import Case
from ..concepts.request import OBJECT, names_of
from ..errors import BadOption
from ..evaluation.cache import base_cost
from ..evaluation.damage import damage_cost
from ..evaluation.driver import Judge, System, anchor_cases, anchors_of, blocklist
from ..evaluation.driver import evaluate as run_evaluation
from ..evaluation.gold import NAME as GOLD_NAME
from ..evaluation.gold import gold_cost, looked_at, to_gold
from ..evaluation.lpips import Lpips
from ..evaluation.profiles import Profile
from ..evaluation.records import GOLD, Entrant, read_damage, read_gold, read_rows
from ..evaluation.suite import Suite
from ..guards import Guard
from ..io.files import claimed, write_text
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..patches.patch import empty_like, noise_like
from ..registry import build_guard
from .cost import announce
from .damage import damage_space, keep_damage
from .erase import AUTO
from .listed import Lists, lists_of, measured_alone, scored_whole, told_of, with_lists
from .subject import asked_of, drawn_with, gold_for, judge_for, known_to, named_suite, profile_for, suite_for


def evaluate(
    model: Any,
    patch: Patch | None,
    *,
    out: str | Path,
    targets: Sequence[str] = (),
    kind: str = AUTO,
    guard: Guard | str | None = None,
    profile: str | Profile = "mini-lite",
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
    suite: Suite | str | None = None,
    judge: Judge | None = None,
    others: Sequence[tuple[str, Patch]] = (),
    trivial: bool = True,
    keep_images: bool = False,
    prompts: Lists = (),
    rows: int | None = None,
    sensitive: bool = False,
    lpips: str | Path | None = None,
    lpips_heads: str | Path | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure an erasure on paired cases; writes rows, pictures and summary to ``out`` and returns the summary.

    Beside the patch stand the base model ``none``, and with ``trivial`` also ``noise`` (same norm on the same tensors) and
    ``blocklist`` (prompts that contain the name become the anchor). ``others``: further (label, patch) entrants.
    ``clip``: a CLIP checkpoint that names images of models other than the miniature; ``near``, ``far``: concepts that must stay
    there, and ``synonyms``: other names of each target, without which no erasure is called supported. ``suite``: a suite, or the
    name of a registered one, in place of all these. ``guard``: stands on the
    patch, or on the bare model when ``patch`` is None and ``targets`` says against what and ``kind`` of which kind that is; an
    instance, a name, or ``NAME:option=value``.
    ``keep_images``: keep every image, with a table ``labels.csv`` for people who say what they see; see ``efface.agreement``.
    ``prompts``: published prompt lists, by their sources or as :func:`efface.load_prompts` gives them, measured on the axis
    ``listed`` (their prompts for other concepts on ``listed_kept``) beside the suite; on a model without a world and without
    ``near``, ``far`` and ``suite``, only they and the target by name are measured. ``rows``: at most so many prompts of each
    list, spread evenly over it. ``sensitive``: you say that the list or the target is sensitive, which a list that is needs.
    Images of a sensitive evaluation are blurred before they are written, and its prompts are in no record; a target whose name
    or synonym is sexual or graphic is sensitive without being called so. ``lpips``: the weights of torchvision's AlexNet, a
    file of yours, for LPIPS between every image and the unmodified model's of the same case (LPIPS_e on target axes, LPIPS_u on
    the others); ``lpips_heads``: its linear weights, by default torchmetrics'. Profiles that look for damage (all but smoke)
    add :func:`damage`, found by noise predictions, to the summary of a patch. Where the gold model of the model's world never
    saw the targets, it is an entrant, and ``gold`` says how far every other is from it. Cost: 2 x steps (a guard: its branches x
    steps) UNet evaluations per image and entrant, :func:`efface.evaluation.damage.damage_cost` and
    :func:`efface.evaluation.gold.gold_cost`; the base model's images are cached, except those of sensitive cases.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> summary = efface.evaluate("mini", patch, out="rabbit", profile="smoke", trivial=False)
    >>> list(summary["entrants"])
    ['none', 'uce']
    >>> near = summary["entrants"]["uce"]["axes"]["near"]["preserved"]  # images of near concepts that are still named
    >>> 0 <= near["low"] <= near["k"] / near["n"] <= near["high"] <= 1
    True

    """
    model = load_model(model)
    model.require("an evaluation", ("unrounded",))
    chosen, lists = profile_for(model, profile), lists_of(prompts)
    request, near, far = asked_of(model, patch, targets, kind), names_of(near, "near"), names_of(far, "far")
    if isinstance(suite, str):
        suite = named_suite(model, suite, request.asked)
    elif suite is None and measured_alone(lists, model, near, far, request.kind):
        suite = Suite(request.asked, (), (), (), {t: tuple(w) for t, w in (synonyms or {}).items()}, {}, kind=OBJECT)
    elif suite is None:
        suite = suite_for(model, request.asked, near, far, synonyms, request.kind, known_to(detector, clip))
        if suite.source and note is not None:
            note(f"{suite.told} Write them to a file that you can edit with: efface suite.")
    suite = replace(suite, hidden=suite.hidden or sensitive)
    if lpips_heads is not None and lpips is None:
        raise BadOption("lpips_heads belong to LPIPS, which needs AlexNet's weights as well: give --lpips FILE.")
    perceptual = Lpips(lpips, lpips_heads) if lpips is not None else None
    if lists:
        suite = with_lists(suite, lists, model, chosen.guidance, allowed=sensitive, rows=rows)
    elif rows is not None:
        raise BadOption("rows counts the prompts of a list; give one with --prompts, or leave --rows out.")
    judge = judge or judge_for(model, suite.names, clip, detector, suite.heads)
    if lists:
        suite = scored_whole(suite, judge)
        told_of(lists, suite, note)
    guard = build_guard(guard) if isinstance(guard, str) else guard
    entrants = [(patch.card.method, patch)] if patch is not None else []
    systems = [System(Entrant(label, label, "patch", _card(p)), p) for label, p in [*entrants, *others]]
    if guard is not None:
        label = f"{patch.card.method}+{guard.name}" if patch is not None else guard.name
        kind = "patch" if patch is not None else "guard"
        card = _card(patch) if patch is not None else None
        guarded = System(Entrant(label, label, kind, card), patch, guard=guard, targets=request.targets)
        systems = [guarded, *systems[len(entrants) :]]
    if trivial and patch is not None:
        noise = noise_like(patch, torch.Generator().manual_seed(0))
        systems.append(System(Entrant("noise", "noise of the same norm", "trivial"), noise))
        systems.append(
            System(
                Entrant("blocklist", "blocklist", "trivial"),
                empty_like(patch, "blocklist"),
                blocklist([suite.words.get(t, t) for t in request.targets], request.anchor),
            )
        )
    unseen = model.world is not None and set(request.targets) <= set(model.world.unseen)
    gold = gold_for(model) if unseen else None
    if gold is not None:
        systems.append(System(Entrant(GOLD_NAME, "gold model (never saw it)", "gold"), None, model=gold))
    ids = [s.entrant.id for s in systems]
    if len(set(ids)) < len(ids) or "none" in ids:
        raise BadOption(f"entrants need distinct names other than 'none', got {ids}.")
    cases = suite.cases(chosen)
    images = len(cases)
    plain = chosen.evals_per_image(model)
    drawn = [chosen.steps * s.guard.branches if s.guard else plain for s in systems]
    left = [n for n in [*near, *far] if n not in request.asked]
    names = damage_space(model, "auto", request.targets) if model.concept_names else left
    searched = patch if chosen.damaged and names else None  # with a list alone, there is nothing that should have stayed
    folder = Path(out)
    scored = read_rows(folder) if (folder / "run.json").is_file() else []
    # What lies in the folder or in the cache of base images is not drawn again.
    open_images = [images - sum(r.entrant == i for r in scored) for i in ids]
    evals = sum(n * cost for n, cost in zip(open_images, drawn, strict=True))
    evals += base_cost(model, [cases, anchor_cases(anchors_of(systems), chosen)], chosen)
    if searched is not None and read_damage(folder) is None:
        evals += damage_cost(model, len(names), chosen.damaged, chosen)
    compared = gold is not None and bool(looked_at(cases))
    if compared and read_gold(folder) is None:
        evals += gold_cost(model, systems, cases, chosen)
    how = drawn_with(suite, chosen)
    what = f"Profile {chosen.name} ({how}) draws {images} images with each of {len(systems) + 1} entrants"
    announce(note, model, evals, what, at_most=True)
    with claimed(folder):
        summary = run_evaluation(
            model,
            systems,
            suite,
            chosen,
            judge,
            folder,
            on_image=on_image,
            command=command,
            keep_images=keep_images,
            lpips=perceptual,
        )
        if searched is not None:
            found = keep_damage(model, searched, names, chosen, judge, folder, chosen.damaged, hidden=suite.sensitive)
            summary = {**summary, "damage": found}
        if compared:
            summary = {**summary, "gold": _keep_gold(folder, model, systems, cases, chosen)}
    return summary


def _keep_gold(
    folder: Path, model: DiffusionModel, systems: Sequence[System], cases: Sequence[Case], chosen: Profile
) -> dict[str, Any]:
    """How far the entrants are from the gold model, found in the folder or measured and written to it."""
    kept = read_gold(folder)
    if kept is None:
        kept = to_gold(model, systems, cases, chosen, read_rows(folder))
        write_text(folder / GOLD, json.dumps(kept, indent=1, allow_nan=False))
    return kept


def _card(patch: Patch) -> dict[str, Any]:
    """What the record says of a patch; by its digest a report tells which attacks are on it."""
    return {**patch.json(), "digest": patch.digest()}
