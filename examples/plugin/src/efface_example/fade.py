"""Fade: move the target's keys and values to the anchor's, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from efface.concepts.request import EraseRequest
from efface.equations.closed_form import apply_edit, shared_edit
from efface.methods import Method, option
from efface.models.base import DiffusionModel
from efface.models.select import selection
from efface.patches import Patch
from efface.training import Run


@dataclass(frozen=True, kw_only=True)
class Fade(Method):
    """Edits the last word only, with ridge ``lam``.

    Reference: none, an example. Cost: 0 UNet evaluations.
    """

    name: ClassVar[str] = "fade"
    summary: ClassVar[str] = "an example of a method in one file"
    paper: ClassVar[str] = "none"
    presets: ClassVar = {"paper": {}, "mini": {}, "tiny": {}}

    lam: float = option(0.5, "ridge towards the original weights", "ours", low=1e-12)

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        return 0.0

    @torch.no_grad()
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        spent, base = model.evals.snapshot(), model.weights(selection("xattn-kv"))
        x = model.encode(request.targets).last_token()
        y = model.encode([request.anchor] * len(x)).last_token()
        d = shared_edit(x, y, torch.ones(len(x)), x[:0], torch.ones(0), self.lam)
        edited = {name: w + apply_edit(w, d) for name, w in base.items()}
        return Patch.between(base, edited, self.card(model, request, spent))
