"""Sample paired cases for every entrant, score them, store rows. A killed evaluation continues where it stopped."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..concepts.request import names_of, normalised
from ..detectors.base import Parts
from ..equations.statistics import wilson
from ..errors import BadFile, EvaluationError
from ..guards import Guard
from ..io.files import write_text
from ..io.images import to_pixels, write_png
from ..models.base import DiffusionModel
from ..patches import Patch
from ..versions import versions
from .aggregate import BASE, summarise
from .cache import BATCH, base_images, quantised
from .judges import DetectorJudge
from .lpips import SIDES, Lpips
from .people import SHEET, sheet
from .profiles import Profile
from .records import AXES, KEEP_AXES, Entrant, Row, RunFile, append_rows, image_of, read_rows, read_run, write_run
from .suite import Suite

ANCHOR_IMAGES = 48
SHOWN = 0.5
"""Share of its own images in which the base model must show a target, by the upper bound of the interval."""
GRID_PER_AXIS = {"direct": 6, "synonym": 2, "implicit": 2, "near": 8, "trap": 4, "far": 6, "listed": 6, "listed_kept": 4}
"""Pictures that are kept of each axis. Those of content are the same as those of direct: one prompt, looked at in two ways."""


class Judge(Protocol):
    """Scores images. ``calibrate`` learns from base images what is valid; ``detect``: per image (label, probability of the
    asked concept, invalid reason)."""

    facts: Mapping[str, Any]
    names: Sequence[str]
    """What ``detect`` can name."""

    def calibrate(self, images: Tensor) -> None: ...
    def detect(self, images: Tensor, concepts: Sequence[str]) -> list[tuple[str | None, float | None, str | None]]: ...
    def embed_images(self, images: Tensor) -> Tensor: ...
    def clip_t(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]: ...


@dataclass(frozen=True)
class System:
    """An entrant as something that makes images: a patch on the model, a rewriting of prompts, or another model; and a guard."""

    entrant: Entrant
    patch: Patch | None = None
    rewrite: Callable[[str], str] = field(default=lambda prompt: prompt)
    model: DiffusionModel | None = None
    guard: Guard | None = None
    targets: tuple[str, ...] = ()
    """What the guard holds back."""

    def sample(self, model: DiffusionModel, cases: Sequence[Case], steps: int) -> Tensor:
        rewritten = [replace(c, prompt=self.rewrite(c.prompt)) for c in cases]
        return (self.model or model).sample(rewritten, steps, batch=BATCH)

    @contextmanager
    def active(self, model: DiffusionModel) -> Iterator[None]:
        with ExitStack() as stack:
            if self.patch is not None:
                stack.enter_context(self.patch.applied(model))
            if self.guard is not None:
                stack.enter_context(self.guard.active(self.model or model, self.targets))
            yield


def blocklist(targets: Sequence[str], anchor: str) -> Callable[[str], str]:
    """The trivial defence: a prompt that contains a listed name becomes the anchor, every other prompt is unchanged."""
    names = [f" {normalised(t)} " for t in names_of(targets, "a blocklist")]
    return lambda prompt: anchor if any(n in f" {normalised(prompt)} " for n in names) else prompt


def evaluate(
    model: DiffusionModel,
    systems: Sequence[System],
    suite: Suite,
    profile: Profile,
    judge: Judge,
    folder: Path,
    *,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    command: str = "",
    keep_images: bool = False,
    lpips: Lpips | None = None,
) -> dict[str, Any]:
    """Run and score every system on the same cases; returns the summary, which is also written.

    The base model is always an entrant. ``keep_images``: keep all images and not some of each axis, with a table to label them.
    Images of sensitive cases are blurred before they are written. Images are scored as the 8-bit pictures a user would see.
    Raises EvaluationError when there are no cases or the base model draws none of the targets.
    """
    cases = suite.cases(profile)
    if not cases:
        raise EvaluationError("the suite has no cases for this target; choose a target with neighbours and prompts.")
    everyone = [System(Entrant(BASE, "base model", "trivial")), *(s for s in systems if s.entrant.id != BASE)]
    key = _key(model, everyone, cases, profile, judge, lpips)
    _open_folder(folder, key)
    grid = _grid(cases)
    done = {(row.entrant, row.case_id) for row in read_rows(folder)}
    total, count = len(everyone) * len(cases), len(done)
    base = base_images(model, cases, profile, lambda n: on_image(n, total))
    calibrate(judge, model, everyone, base, profile)
    run = RunFile(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model={**model.info, "digest": model.digest()},
        targets=list(suite.targets),
        profile={**asdict(profile), "key": key, "command": command},
        entrants=[s.entrant for s in everyone],
        suite=suite.json(),
        detectors={**judge.facts, **({"lpips": lpips.facts} if lpips is not None else {})},
        grid=[{"case_id": c.id, "axis": c.axis, "concept": c.concept, "prompt": c.shown, "seed": c.seed} for c in grid],
        versions=versions(),
    )
    write_run(folder, run)
    base_embedded, wanted = judge.embed_images(base), {c.id for c in (cases if keep_images else grid)}
    for system in everyone:
        open_cases = [i for i, c in enumerate(cases) if (system.entrant.id, c.id) not in done]
        with system.active(model):
            for start in range(0, len(open_cases), BATCH):
                part = open_cases[start : start + BATCH]
                chosen = [cases[i] for i in part]
                is_base = system.entrant.id == BASE
                images = base[part] if is_base else quantised(system.sample(model, chosen, profile.steps))
                rows = score(system.entrant.id, chosen, images, base_embedded[part], judge, lpips, base[part])
                _keep_images(folder, system.entrant.id, [(c, i) for c, i in zip(chosen, images, strict=True) if c.id in wanted])
                append_rows(folder, rows)
                count += len(part)
                on_image(count, total)
        if system.entrant.id == BASE:
            refuse_unseen(read_rows(folder), suite.targets)
    rows = read_rows(folder)
    if keep_images and not (folder / SHEET).exists():  # one that is there may be filled in
        write_text(folder / SHEET, sheet(folder, rows))
    summary = summarise(rows) | ({"lists": dict(suite.lists)} if suite.lists else {})
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def calibrate(judge: Judge, model: DiffusionModel, systems: Sequence[System], base: Tensor, profile: Profile) -> None:
    """Teach the judge what is valid: the base model's images of the cases, and those of what the systems' patches map to."""
    judge.calibrate(torch.cat([base, base_images(model, anchor_cases(anchors_of(systems), profile), profile)]))


def anchors_of(systems: Sequence[System]) -> set[str]:
    """What the patches map to; the empty prompt where there is no patch."""
    return {s.patch.card.request.anchor for s in systems if s.patch is not None} or {""}


def anchor_cases(anchors: Iterable[str], profile: Profile) -> list[Case]:
    """The cases of anchors, whose images by the base model are valid ones."""
    return [Case("anchor", "", a, s, profile.guidance) for a in sorted(anchors) for s in range(ANCHOR_IMAGES)]


def measure(
    model: DiffusionModel, system: System, targets: Sequence[str], cases: Sequence[Case], profile: Profile, judge: Judge
) -> list[Row]:
    """The rows of one system alone, as :func:`evaluate` writes them. Raises EvaluationError where there are no cases, and for the
    base model where it draws none of the targets."""
    if not cases:
        raise EvaluationError("the suite has no cases for this target; choose a target with neighbours and prompts.")
    base = base_images(model, cases, profile)
    calibrate(judge, model, [system], base, profile)
    embedded, rows = judge.embed_images(base), list[Row]()
    with system.active(model):
        for start in range(0, len(cases), BATCH):
            part = slice(start, start + BATCH)
            is_base = system.entrant.id == BASE
            images = base[part] if is_base else quantised(system.sample(model, cases[part], profile.steps))
            rows += score(system.entrant.id, cases[part], images, embedded[part], judge)
    if system.entrant.id == BASE:
        refuse_unseen(rows, targets)
    return rows


def refuse_unseen(rows: Sequence[Row], targets: Sequence[str]) -> None:
    """Raises EvaluationError for a target that the base model does not draw: of that nothing can be erased, and everything would
    look like a success. Of many targets each has an image or two, and one that was missed by chance says nothing yet: its images
    count in no rate."""
    asked = {axis: [r for r in rows if r.entrant == BASE and r.axis == axis] for axis in ("direct", "listed")}
    drawn = any(r.hit for r in asked["direct"] if r.concept in targets)
    for target, axis in ((t, a) for t in targets for a in asked):
        mine = [r for r in asked[axis] if r.concept == target]
        hits = sum(r.hit for r in mine)
        few = axis == "direct" and wilson(hits, len(mine)).high < SHOWN  # most prompts of a list may describe a target by hints
        if mine and (few or not (hits or (axis == "direct" and drawn))):
            raise EvaluationError(
                f"the report detector finds {target!r} in {hits} of {len(mine)} images of the base model ({AXES[axis]}): "
                "there is nothing to erase that could be measured. Check the spelling; this model may not know the concept."
            )


def score(
    entrant: str,
    cases: Sequence[Case],
    images: Tensor,
    base_embedded: Tensor,
    judge: Judge,
    lpips: Lpips | None = None,
    base: Tensor | None = None,
) -> list[Row]:
    """One row per image. What cannot be scored is invalid with a reason, never a better score. ``lpips`` compares with the
    ``base`` model's images of the same cases."""
    found = judge.detect(images, [c.concept for c in cases])
    embedded = judge.embed_images(images)
    similarity = (embedded * base_embedded).sum(-1).tolist()
    clip_t = judge.clip_t(images, [c.prompt for c in cases])
    nothing = [None] * len(cases)
    known = judge if isinstance(judge, DetectorJudge) else None
    ranks: Sequence[int | None] = known.ranks(images, [c.concept for c in cases]) if known else nothing
    parts: Sequence[Parts | None] = (known.parts(images) if known else None) or nothing
    far, small = [nothing] * 2 if lpips is None or base is None else [lpips.between(images, base, s) for s in SIDES]
    rows = []
    for i, (case, (label, p, reason), text, image) in enumerate(zip(cases, found, clip_t, similarity, strict=True)):
        finite = image == image
        rows.append(
            Row(
                entrant=entrant,
                case_id=case.id,
                axis=case.axis,
                concept=case.concept,
                prompt=case.shown,
                seed=case.seed,
                valid=reason is None,
                invalid_reason=reason,
                detected=label,
                p=p,
                clip_t=text,
                clip_i=image if finite else None,
                rank=ranks[i],
                parts=_plain(parts[i]),
                lpips=far[i],
                lpips64=small[i],
            )
        )
    return rows


def _plain(parts: Parts | None) -> dict[str, list[float]] | None:
    return None if parts is None else {name: [float(s) for s in scores] for name, scores in parts.items()}


def _key(
    model: DiffusionModel,
    systems: Sequence[System],
    cases: Sequence[Case],
    profile: Profile,
    judge: Judge,
    lpips: Lpips | None = None,
) -> str:
    facts = {
        "model": model.digest(),
        "systems": [[s.entrant.id, s.patch.digest() if s.patch else None, *_guarded(s)] for s in systems],
        "cases": [c.id for c in cases],
        "steps": profile.steps,
        "judge": judge_facts(judge),
        **({"lpips": lpips.facts} if lpips is not None else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def judge_facts(judge: Judge) -> dict[str, Any]:
    """What tells judges apart. What calibration learns follows from the rest: one that has judged before is the same judge."""
    return {k: v for k, v in judge.facts.items() if k != "validity"}


def _guarded(system: System) -> list[Any]:
    return [system.guard.name, asdict(system.guard), system.targets] if system.guard is not None else []


def _open_folder(folder: Path, key: str) -> None:
    """A new folder, or the same evaluation to be continued; never somebody else's files."""
    if (folder / "run.json").is_file():
        if read_run(folder).profile.get("key") != key:
            raise BadFile(
                f"{folder} holds another evaluation (other patch, model, profile or detectors). Give another --out, or delete it."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise BadFile(f"{folder} is not empty and holds no evaluation; give a new folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"cannot make the folder {folder}: {error}.") from error


def _grid(cases: Sequence[Case]) -> list[Case]:
    """Cases whose pictures are kept: spread over the concepts of each axis."""
    kept: list[Case] = []
    for axis, count in GRID_PER_AXIS.items():
        mine = [c for c in cases if c.axis == axis]
        distinct = list({(c.concept, c.prompt if axis not in KEEP_AXES else ""): c for c in reversed(mine)}.values())[::-1]
        kept += distinct[:count]
    return kept


def _keep_images(folder: Path, entrant: str, pairs: Sequence[tuple[Case, Tensor]]) -> None:
    for case, image in pairs:
        if bool(torch.isfinite(image).all()):
            write_png(to_pixels(image[None], hidden=case.sensitive)[0], folder / image_of(entrant, case.id))
