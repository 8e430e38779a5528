"""How much memory an erasure needs, how much there is, and what makes it need less."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadOption
from ..methods.base import Method
from ..methods.trained import Trained
from ..models.base import DiffusionModel
from ..models.footprint import activations
from ..models.load import family_of
from ..models.parts import named_dtype
from ..models.room import GIB, available_bytes, stored_numbers, trained_numbers

ON_A_GPU = 1.0
"""GiB that CUDA and its libraries take beside all tensors."""
OF_TRAINING = 16
"""Bytes for each trained number: its copy, its gradient and two moments of Adam, all in float32."""
LARGE = 100_000_000
"""Parameters of a network from which on a run that does not fit is refused: counting takes seconds there and saves minutes."""


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


def check_fit(model: DiffusionModel, method: Method) -> None:
    """Raises BadOption for a run that needs more memory than is free, before it is started. Small networks are let pass."""
    if not isinstance(method, Trained) or sum(p.numel() for p in model.network.parameters()) < LARGE:
        return
    checkpointing = bool(getattr(model.network, "is_gradient_checkpointing", False))
    needed, free = sum(needed_bytes(model, method, checkpointing, None).values()), free_bytes(model)
    if free is not None and needed > free:
        raise BadOption(
            f"{method.label} on {model.name!r} needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free on "
            f"{model.device}. {less_memory(model, method)}"
        )


def check_folder(source: Any, method: type[Method], settings: Mapping[str, Any], dtype: str, device: str) -> None:
    """Raises BadOption where a folder's weights and what training needs for each trained number are more than is free. Only the
    headers of its files are read. ``settings`` are the method's options that differ from its defaults. What rows keep for the
    backward pass is counted after loading; see :func:`check_fit`. Anything that is not a folder on disk is let pass."""
    if not issubclass(method, Trained) or not isinstance(source, str | Path) or not (Path(source) / "model_index.json").is_file():
        return
    source, folder, free = str(source), Path(source), available_bytes(torch.device(device))
    family = family_of(source)
    train = settings.get("train", method.__dataclass_fields__["train"].default)
    if free is None or train not in family.selections:
        return  # of a selection that there is not, the model says which it has
    trained = trained_numbers(folder, family.part, family.selections[train])
    weights = stored_numbers(folder) * named_dtype(dtype).itemsize
    training = OF_TRAINING * trained
    if weights + training > free:
        smaller = " Half-precision weights (--dtype bfloat16) take half of the first." if dtype == "float32" else ""
        raise BadOption(
            f"{method.name} on {source!r} needs {weights / GIB:.1f} GiB for the weights and {training / GIB:.1f} GiB for what "
            f"is trained (train={train}), activations not counted, and {free / GIB:.1f} GiB are free on {device}.{smaller} "
            "Train fewer tensors (--set train=xattn-kv), or use a closed form (efface erase uce), which trains none."
        )


def needed_bytes(model: DiffusionModel, method: Method, checkpointing: bool, autocast: str | None) -> dict[str, int]:
    """Bytes of an erasure by what they are for. Raises BadOption for a method whose rows are not known."""
    parts = {"weights of the model as loaded": _weight_bytes(model)}
    if isinstance(method, Trained):
        select = model.select(method.train)
        trained = sum(w.numel() for w in model.weights(select).values())
        loaded = max(model.network.parameters(), key=lambda p: p.numel()).dtype  # diffusers keeps some small layers in float32
        dtype = getattr(torch, autocast) if autocast is not None else loaded
        parts["trained copy, gradients and two moments of Adam, in float32"] = OF_TRAINING * trained
        if dtype != torch.float32:
            parts["half-precision copies of the trained weights, which autocast keeps"] = 2 * trained
        if not method.gradient_rows:
            raise BadOption(f"it is not known how many rows an update of {method.label} differentiates.")
        rows = method.gradient_rows * method.batch
        parts[f"activations that {rows} rows keep for the backward pass"] = rows * activations(
            model, select, dtype, checkpointing=checkpointing
        )
    if model.device.type == "cuda":
        parts["CUDA and its libraries"] = int(ON_A_GPU * GIB)
    return parts


def free_bytes(model: DiffusionModel) -> int | None:
    """Bytes that the run may take, with the loaded weights counted as free."""
    free = available_bytes(model.device)
    return None if free is None else free + _weight_bytes(model)


def _weight_bytes(model: DiffusionModel) -> int:
    """Bytes of all its modules, each once."""
    modules = {id(m): m for m in vars(model).values() if isinstance(m, nn.Module)}.values()
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
