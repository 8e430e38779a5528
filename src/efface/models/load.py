"""From what a user types to a DiffusionModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import BadOption, UnknownName
from .base import DiffusionModel

BUNDLED = {
    "mini": "the bundled miniature Stable Diffusion (icons, 48 px)",
    "mini-gold": "the miniature before it saw the reserved concepts: the gold model of their erasure",
    "tiny": "random weights of the real classes, for tests",
    "tiny-v": "tiny with v-prediction",
}


def pick_device(name: str) -> str:
    """``auto``: cuda, else mps, else cpu."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadOption(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadOption(f"device {name!r} was asked for, but this torch sees no GPU; use --device cpu or auto.")
    return name


def load_model(source: Any, *, dtype: str = "float32", device: str = "auto") -> DiffusionModel:
    """A bundled name, a diffusers folder, a single checkpoint file, a Hub id ``owner/name``, or a loaded diffusers pipeline.

    Raises UnknownName for a word that is none of these, BadFile for files of another kind.
    """
    from .sd import StableDiffusion

    if isinstance(source, DiffusionModel):
        return source
    if hasattr(source, "unet") and hasattr(source, "text_encoder"):
        return StableDiffusion.from_pipeline(source)
    device = pick_device(device)
    source = str(source)
    if source in ("mini", "mini-gold"):
        from .mini import load_mini

        return load_mini(gold=source == "mini-gold", dtype=dtype, device=device)
    if source in ("tiny", "tiny-v"):
        from .tiny import tiny

        return tiny("epsilon" if source == "tiny" else "v_prediction")
    path = Path(source)
    if path.is_file():
        return StableDiffusion.from_single_file(path, dtype=dtype, device=device)
    if path.is_dir() or (source.count("/") == 1 and not source.startswith((".", "/", "~"))):
        return StableDiffusion.from_folder(source, dtype=dtype, device=device)
    raise UnknownName("model", source, BUNDLED)
