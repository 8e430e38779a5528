"""Erase concepts: from a checked request to a patch."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..concepts.request import EraseRequest
from ..errors import BadOption, MethodError, OutOfMemory, UnknownName
from ..methods import Method
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..registry import METHODS, build_method, preset_for
from ..training import Run


def request_for(model: DiffusionModel, targets: Sequence[str], anchor: str = "", preserve: Sequence[str] = ()) -> EraseRequest:
    """A checked request on a plain model: names exist where the world is closed, and nothing is longer than the tokenizer
    reads."""
    request = EraseRequest(tuple(targets), anchor, tuple(preserve))
    model.check_plain()
    if model.concept_names:
        for name in (*request.targets, *request.preserve):
            if name.lower() not in model.concept_names:
                raise UnknownName(f"concept of {model.name}", name, model.concept_names)
    model.encode([*request.targets, request.anchor, *request.preserve])
    return request


def erase(
    model: Any,
    method: Method | str,
    *,
    targets: Sequence[str],
    anchor: str = "",
    preserve: Sequence[str] = (),
    run: Run | None = None,
) -> Patch:
    """Erase ``targets`` and return the change; the model itself stays as it is.

    ``model``: a DiffusionModel, a loaded diffusers pipeline, or anything :func:`load_model` takes. ``method``: an instance
    such as ``efface.AP(steps=300)``, or a name, which takes the preset that fits the model.
    """
    model = load_model(model)
    if isinstance(method, str):
        method = build_method(method, preset=preset_for(METHODS.find(method), model))
    return erase_request(model, method, request_for(model, targets, anchor, preserve), run or Run())


def erase_request(model: DiffusionModel, method: Method, request: EraseRequest, run: Run) -> Patch:
    """As :func:`erase`, for a request that :func:`request_for` has checked.

    Raises OutOfMemory, with the next setting to try, and MethodError for a patch that the model's predictions do not see. Where
    the patch is lost in the model's half precision, a warning says so: it acts on the model in float32.
    """
    model.check_plain()
    run.fingerprint = run_fingerprint(model, method, request)
    try:
        patch = method.erase(model, request, run)
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


def less_memory(model: DiffusionModel, method: Method) -> str:
    """The next setting that makes a run smaller, in the order of what it costs: half-precision weights, recomputed activations,
    fewer rows, fewer trained tensors."""
    if model.info.get("dtype") == "float32":
        return "Load the weights in half precision (--dtype bfloat16); what is trained stays in float32."
    if not getattr(model.network, "is_gradient_checkpointing", False):
        return "Compute activations again instead of storing them (--checkpointing)."
    rows = getattr(method, "batch", 1)
    if rows > 1:
        return f"Take fewer rows per update than {rows} (--set batch=1)."
    narrower = "" if getattr(method, "train", "xattn-kv") == "xattn-kv" else "Train fewer tensors (--set train=xattn-kv), or u"
    return f"{narrower or 'U'}se a closed form (efface erase uce), which runs on the CPU."


def run_fingerprint(model: DiffusionModel, method: Method, request: EraseRequest) -> str:
    """What must be equal for a checkpoint to be continued."""
    facts = [method.name, method.plain(), request.json(), model.digest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
