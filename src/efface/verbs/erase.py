"""Erase concepts: from a checked request to a patch."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..concepts.request import CATEGORY, KINDS, OBJECT, EraseRequest, names_of, normalised
from ..errors import BadOption, BadRequest, MethodError, OutOfMemory, UnknownName
from ..methods import Method
from ..models.base import DiffusionModel
from ..models.load import load_model, pick_device
from ..patches import Patch
from ..registry import METHODS, build_method, preset_for
from ..training import Run
from .cost import Spent
from .memory import check_fit, check_folder, less_memory

AUTO = "auto"
"""The kind of a target that the model's world knows by its name; an object elsewhere."""


def request_for(
    model: DiffusionModel, targets: Sequence[str], anchor: str = "", preserve: Sequence[str] = (), kind: str = AUTO
) -> EraseRequest:
    """A checked request on a plain model: names exist where the world is closed, the model's tokenizer tells them apart, and
    nothing is longer than it reads. Names of a closed world are spelled as the world spells them. Warns of a target that reads
    like a list.

    ``kind``: what the targets are, one of :data:`efface.concepts.request.KINDS`; by default the model's world says it, and
    without a world they are objects. All targets are of one kind. A category needs a world, which knows its members.
    """
    if kind not in (AUTO, *KINDS):
        raise UnknownName("kind of target", kind, (AUTO, *KINDS))
    targets, preserve = names_of(targets, "targets"), names_of(preserve, "preserve")
    asked = EraseRequest(targets, anchor, preserve, OBJECT if kind == AUTO else kind)
    model.check_plain()
    request = _of_a_world(model, asked, kind) if model.concept_names else asked
    if request.kind == CATEGORY and not request.of:
        raise BadRequest(
            f"{model.name} has no world that lists the members of the category {targets[0]!r}; name each member with --target."
        )
    for name in request.targets:
        if any(sign in name for sign in ",;|"):
            warnings.warn(
                f"the target {name!r} is one phrase: a comma does not separate targets. For several targets name each by itself.",
                stacklevel=2,
            )
    model.encode([*request.targets, request.anchor, *request.preserve])
    _told_apart(model, request)
    if not model.concept_names:
        _unknown_words(model, [*request.targets, request.anchor, *request.preserve])
    return request


def _of_a_world(model: DiffusionModel, asked: EraseRequest, kind: str) -> EraseRequest:
    """The request in the spelling of a model whose names are known, with the names of a category's members in its place.

    Raises UnknownName, and BadRequest for targets that are of another kind than was said, or of several.
    """
    world = model.world
    names = world.names() if world is not None else model.concept_names
    known = {normalised(n): n for n in names}
    for name in (*asked.targets, *asked.preserve):
        if normalised(name) not in known:
            raise UnknownName(f"concept of {model.name}", name, names)
    targets, preserve = (tuple(known[normalised(n)] for n in group) for group in (asked.targets, asked.preserve))
    anchor = known.get(normalised(asked.anchor), asked.anchor)
    if world is None:
        return replace(asked, targets=targets, anchor=anchor, preserve=preserve)
    kinds = {name: world.kind_of(name) for name in targets}
    for name, found in kinds.items():
        if kind not in (AUTO, found):
            raise BadRequest(f"{name!r} is of the kind {found} in {model.name}, not {kind}; leave --kind out.")
    if len(set(kinds.values())) > 1:
        mixed = ", ".join(f"{name!r} ({found})" for name, found in kinds.items())
        raise BadRequest(f"targets of several kinds are erased one kind at a time, and their patches stacked: {mixed}.")
    texts, kept = (tuple(t for name in group for t in world.texts(name)) for group in (targets, preserve))
    return EraseRequest(texts, anchor, kept, kinds[targets[0]], targets if texts != targets else ())


def _unknown_words(model: DiffusionModel, names: Sequence[str]) -> None:
    """Warns of words that the tokenizer reads in pieces: a name with a typo is erased without an error, and what it was meant for
    stays."""
    vocabulary = set(model.vocabulary())
    for name in names:
        for word in re.findall(r"[^\W\d_]{2,}", name.lower()):
            if word.isascii() and word not in vocabulary:
                close = difflib.get_close_matches(word, vocabulary, n=1, cutoff=0.75)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                warnings.warn(
                    f"the tokenizer of {model.name} has no word {word!r} and reads it in pieces: check the spelling of "
                    f"{name!r}.{hint} Whether the model draws it is what efface evaluate measures first.",
                    stacklevel=3,
                )


def _told_apart(model: DiffusionModel, request: EraseRequest) -> None:
    """Raises BadRequest for two names of a request that the model's own tokenizer reads as one."""
    names = [*request.targets, *([request.anchor] if request.anchor else []), *request.preserve]
    read: dict[tuple[int, ...], str] = {}
    for i, (name, ids) in enumerate(zip(names, model.token_ids(names), strict=True)):
        first = read.setdefault(tuple(ids), name)
        if first is not name and first in request.targets and (i < len(request.targets) or name != first):
            raise BadRequest(f"the tokenizer of {model.name} reads {first!r} and {name!r} as one; remove one of the two.")


def erase(
    model: Any,
    method: Method | str,
    *,
    targets: Sequence[str],
    anchor: str = "",
    preserve: Sequence[str] = (),
    kind: str = AUTO,
    run: Run | None = None,
) -> Patch:
    """Erase ``targets`` and return the change; the model itself stays as it is.

    ``model``: a DiffusionModel, a loaded diffusers pipeline, or anything :func:`load_model` takes. ``method``: an instance
    such as ``efface.AP(steps=300)``, or a name, which takes the preset that fits the model. ``kind``: object, style, category or
    attribute, see :data:`efface.concepts.request.KINDS`; a model with a world of its own knows it by the target's name.

    >>> import efface
    >>> model = efface.load_model("tiny")
    >>> efface.erase(model, "uce", targets="cat", anchor="dog", preserve=["bus", "rose"])
    <Patch: uce of 'cat' from 'tiny', ... tensors, norm ...>
    >>> efface.erase(model, efface.AP(steps=2, sampling_steps=4, search=efface.Gumbel(nearest=4)), targets="cat")
    <Patch: ap of 'cat' from 'tiny', ... tensors, norm ...>

    """
    cls = METHODS.find(method) if isinstance(method, str) else type(method)
    check_folder(model, cls, {} if isinstance(method, str) else vars(method), "float32", pick_device("auto"))
    model = load_model(model)
    if isinstance(method, str):
        method = build_method(method, preset=preset_for(cls, model))
    return erase_request(model, method, request_for(model, targets, anchor, preserve, kind), run or Run())


def erase_request(model: DiffusionModel, method: Method, request: EraseRequest, run: Run) -> Patch:
    """As :func:`erase`, for a request that :func:`request_for` has checked. The card's log gets an entry ``run`` with what this
    run took; see :class:`efface.verbs.cost.Spent`.

    Raises BadOption for a run that cannot fit into memory, OutOfMemory, with the next setting to try, for one that did not, and
    MethodError for a patch that the model's predictions do not see. Where the patch is lost in the model's half precision, a
    warning says so: it acts on the model in float32.
    """
    model.check_plain()
    if hasattr(method, "sampling_steps"):
        model.schedule.timesteps(method.sampling_steps)  # more than the schedule has is said before anything is spent
    if run.checkpoint is not None and run.checkpoint.exists() and not run.resume and not run.overwrite:
        raise BadOption(
            f"a stopped run left its checkpoint at {run.checkpoint}: continue it with --resume, or discard it and start anew "
            "with --force."
        )
    method.check(model)
    check_fit(model, method)
    run.fingerprint, run.began = run_fingerprint(model, method, request), time.perf_counter()
    try:
        with Spent(model.device) as spent:
            patch = method.erase(model, request, run)
        spent.facts["seconds"] = round(spent.facts["seconds"] + run.before, 3)
        if math.isnan(spent.facts["seconds"]):
            del spent.facts["seconds"]
        patch = replace(patch, card=replace(patch.card, log={**patch.card.log, "run": spent.facts}))
        told = _unseen(patch, model)
    except torch.OutOfMemoryError as error:
        told = f"no memory left on {model.device} ({str(error).splitlines()[0]}). {less_memory(model, method)}"
        # Without its traceback, whose frames hold the tensors of the run: memory must be free for the next one.
        raise OutOfMemory(told) from error.with_traceback(None)
    if told and model.info.get("dtype") == "float32":
        raise MethodError(told)
    if told:
        warnings.warn(told, UserWarning, stacklevel=2)
    return patch


def _unseen(patch: Patch, model: DiffusionModel) -> str:
    """Why the patch does nothing, or nothing at all."""
    try:
        unmoved = patch.without_effect(model)
    except BadOption as error:  # lost in half precision
        return str(error)
    if not unmoved:
        return ""
    return (
        f"the patch (norm {patch.norm():.2g}) does not change what {model.name!r} predicts for {', '.join(unmoved)}: the weights "
        "that it changes are not those the model computes with, or the change is below their precision."
    )


def run_fingerprint(model: DiffusionModel, method: Method, request: EraseRequest) -> str:
    """What must be equal for a checkpoint to be continued."""
    facts = [method.name, method.plain(), request.json(), model.digest(), *(["fp8"] if model.rounded is not None else [])]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
