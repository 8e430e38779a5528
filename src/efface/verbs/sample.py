"""Draw images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..concepts.prompts import Case
from ..concepts.request import names_of
from ..concepts.sensitive import refuse_minors
from ..errors import BadOption
from ..models.load import load_model
from .subject import model_guidance


def sample(
    model: Any, prompts: Sequence[str], *, n: int = 1, seed: int = 0, steps: int | None = None, guidance: float | None = None
) -> torch.Tensor:
    """``n`` images of every prompt, (len(prompts) * n, 3, H, W) in [0, 1]; seeds seed, seed + 1, ... for each prompt.

    ``steps`` and ``guidance``: by default 16 and 4 on the miniature, elsewhere those of the family's pipeline.

    >>> import efface
    >>> efface.sample("tiny", ["a cat", "a bus"], n=2, steps=4).shape
    torch.Size([4, 3, 16, 16])

    """
    prompts = names_of(prompts, "prompts")
    refuse_minors(prompts, "the prompts")
    if not prompts:
        raise BadOption("no prompt: give at least one.")
    if guidance is not None and not math.isfinite(guidance):
        raise BadOption(f"guidance={guidance!r} is no number.")
    model = load_model(model)
    steps = (16 if model.world is not None else model.usual_steps) if steps is None else steps
    if n < 1 or steps < 1:
        raise BadOption(f"n and steps must be at least 1, got n={n}, steps={steps}.")
    guidance = model_guidance(model) if guidance is None else guidance
    cases = [Case("free", "", p, seed + i, guidance) for p in prompts for i in range(n)]
    return model.sample(cases, steps)
