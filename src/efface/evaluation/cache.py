"""Images of the base model, kept between evaluations: they are the same for every erasure of one model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..concepts.prompts import Case
from ..errors import BadFile
from ..io.files import atomic_write
from ..models.base import DiffusionModel
from .profiles import Profile

BATCH = 32
"""Images that are drawn together."""


def quantised(images: Tensor) -> Tensor:
    """[0, 1] floats rounded to the 256 levels of a saved picture; non-finite pixels stay NaN."""
    return torch.where(torch.isfinite(images), (images * 255).round() / 255, torch.nan)


def base_images(
    model: DiffusionModel, cases: Sequence[Case], profile: Profile, on_image: Callable[[int], None] = lambda n: None
) -> Tensor:
    """The base model's images of the cases, once per (model, profile, cases): kept in the user's cache by content hash. Those of
    sensitive cases are never written, and so drawn each time."""
    path = _kept_at(model, cases, profile)
    if path.is_file():
        try:
            return load_file(path)["images"].float() / 255
        except Exception:  # noqa: BLE001 - a damaged cache entry is made anew, whatever is wrong with it
            path.unlink()
    parts = []
    for start in range(0, len(cases), BATCH):
        parts.append(quantised(model.sample(cases[start : start + BATCH], profile.steps, batch=BATCH)))
        on_image(min(start + BATCH, len(cases)))
    images = torch.cat(parts)
    if bool(torch.isfinite(images).all()) and not any(case.sensitive for case in cases):
        stored = {"images": (images * 255).round().to(torch.uint8)}
        with suppress(BadFile):  # the cache saves time; without it the result is the same
            atomic_write(path, lambda p: save_file(stored, p))
    return images


def base_cost(model: DiffusionModel, lists: Iterable[Sequence[Case]], profile: Profile) -> int:
    """UNet evaluations that :func:`base_images` will spend on these lists: those in the cache cost nothing."""
    drawn = sum(len(cases) for cases in lists if cases and not _kept_at(model, cases, profile).is_file())
    return drawn * profile.evals_per_image(model)


def _kept_at(model: DiffusionModel, cases: Sequence[Case], profile: Profile) -> Path:
    text = json.dumps([model.digest(), profile.steps, [c.id for c in cases]])
    return cache_folder() / "base" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def cache_folder() -> Path:
    """``EFFACE_CACHE`` or ``~/.cache/efface``."""
    return Path(os.environ.get("EFFACE_CACHE") or Path.home() / ".cache" / "efface")
