"""Studies of what erasing does to the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..concepts.request import names_of
from ..errors import BadOption, UnknownName
from ..io.files import claimed, write_text
from ..methods import Method
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..preservation.candidates import concept_space
from ..registry import METHODS, build_method, preset_for
from ..studies import STUDIES, Erasure, Lab
from ..studies.figures import write_figure
from ..studies.lab import erasures
from ..versions import versions
from .cost import announce
from .erase import AUTO, erase_request, request_for
from .subject import gold_for, judge_for, profile_for


def study(
    model: Any,
    name: str,
    *,
    out: str | Path,
    targets: Sequence[str] = (),
    kind: str = AUTO,
    methods: Sequence[str] = (),
    seeds: Sequence[int] | int = (),
    images: int | None = None,
    space: str = "auto",
    profile: str = "mini-lite",
    store: str | Path | None = None,
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a study of what erasing does to the rest; see :mod:`efface.studies`. Writes records.jsonl, result.json and figure.svg
    to ``out`` and returns the result.

    What is left out takes the study's own default (targets: two or four of the miniature). ``store``: where erasures and scans
    are kept and found again, by this study after a stop and by the others; default ``out``/store. Raises UsageError before
    anything is computed.

    >>> import efface
    >>> found = efface.study(
    ...     "mini", "impact", out="impact", targets=["rabbit", "dog"], methods=["uce"], images=1, profile="smoke"
    ... )
    >>> found["sentence"].endswith(".")  # what the study found, in words; the numbers stand beside it
    True

    """
    if name not in STUDIES:
        raise UnknownName("study", name, STUDIES)
    cls, model = STUDIES[name], load_model(model)
    model.require("a study", ("unrounded",))
    chosen = dataclasses.replace(profile_for(model, profile), cases={}, damaged=0)
    if not targets and (model.world is None or not model.world.study_targets):
        raise BadOption("this model has no world of its own: name what is erased with --target.")
    targets = names_of(targets, "targets") or (
        model.world.study_targets[: cls.default_targets] if model.world is not None else ()
    )
    wanted = request_for(model, targets, kind=kind)
    targets = wanted.asked
    kept = concept_space(space, model).require(2).without(wanted.targets).candidates
    order = [n for n in concept_space(space, model).candidates if n in targets or n in kept]
    names = tuple(dict.fromkeys([*order, *targets]))
    built = cls(
        targets=targets,
        names=names,
        methods=names_of(methods, "methods") or cls.default_methods,
        seeds=(seeds,) if isinstance(seeds, int) else tuple(seeds) or cls.default_seeds,
        images=cls.default_images if images is None else images,
    )
    world = model.world
    unseen = world.unseen if world is not None else ()
    lab = Lab(
        model,
        judge_for(model, names, clip, detector),
        names,
        chosen,
        Path(store) if store is not None else Path(out) / "store",
        lambda e: _row_method(model, e),
        lambda method, request, run: erase_request(model, method, request, run),
        on_progress,
        world.groups if world is not None else {},
        gold_for(model) if set(targets) & set(unseen) else None,
        unseen,
        requests={t: request_for(model, [t], kind=kind) for t in targets},
    )
    wants = built.wants(lab)
    planned = lab.cost(wants)
    what = f"Study {name} needs {len(erasures(wants))} erasures on {model.name} and scans of {len(names)} names"
    announce(note, model, planned, what, gradients=True)
    with claimed(lab.store):
        lab.fulfil(wants)
    numbers = built.conclude(lab)
    records = numbers.pop("records")
    facts = {
        "study": name,
        "question": cls.question,
        "targets": list(targets),
        "methods": list(built.methods),
        "seeds": list(built.seeds),
        "images": built.images,
        "names": len(names),
        "space": space,
        "profile": profile,
        "model": {**model.info, "digest": model.digest()},
        "versions": versions(),
    }
    result = {**facts, **numbers}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "records.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in records))
    write_figure(built.draw(numbers), folder / "figure.svg")
    write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False))
    return result


def _row_method(model: DiffusionModel, e: Erasure) -> Method:
    """The method of a study's row with the preset that fits the model, and its training seed where it has one."""
    name = e.method or e.row
    cls = METHODS.find(name)
    seed = {"seed": e.seed} if "seed" in cls.__dataclass_fields__ else {}
    return build_method(name, preset=preset_for(cls, model), settings={**dict(e.settings), **seed})
