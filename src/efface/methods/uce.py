"""Unified Concept Editing (UCE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.request import EraseRequest
from ..equations.closed_form import apply_edit, shared_edit
from ..models.base import DiffusionModel
from ..models.select import selection
from ..patches import Patch
from ..training import Run
from .base import Method, option

TEMPLATES = ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")


@dataclass(frozen=True, kw_only=True)
class UCE(Method):
    """Rewrite keys and values so that the target's text vectors act like the anchor's; one exact solve, no training.

        min_W'  sum_erase a |W' c - W c_anchor|^2 + sum_preserve b |W' c - W c|^2 + lam |W' - W|_F^2    for every K and V

    All layers share the input space, so the solution is W' = W (I + D) with one d x d matrix D (closed_form.shared_edit),
    where the official codes build and invert the same matrix once per layer.

    ``rows``: which token positions of a prompt are edited. "last": the last word (code of 2025). "last..end": from the last
    word through EOS and padding, aligned at the last word (code of 2023). ``preserve_rows``: positions of preserved prompts,
    "all" (2023) or "last" (2025).
    Reference: Gandikota et al., WACV 2024, arXiv:2308.14761. Code: rohitgandikota/unified-concept-editing.
    Deviations: float64 Cholesky in delta form instead of a float32 inverse (0.2-2 % error of the weights); with ``rows=last``
    an empty anchor means the BOS vector, as officially. Debiasing and moderation are not here yet.
    Cost: 0 UNet evaluations.
    """

    name: ClassVar[str] = "uce"
    summary: ClassVar[str] = "closed form: the target's keys and values become the anchor's"
    paper: ClassVar[str] = "Gandikota et al., WACV 2024, arXiv:2308.14761"
    presets: ClassVar = {
        "paper": {},
        "2023": {"rows": "last..end", "preserve_rows": "all", "preserve_scale": 0.1, "preserve_empty": True},
        "2025": {},
        "mini": {"rows": "last..end", "preserve_rows": "all", "preserve_scale": 0.1, "preserve_empty": True},
        "tiny": {},
    }

    rows: str = option(
        "last", "edited token positions", "uce_sd_erase.py; train_erase.py last..end", choices=("last", "last..end")
    )
    preserve_rows: str = option(
        "last", "preserved token positions", "uce_sd_erase.py; train_erase.py all", choices=("last", "all")
    )
    preserve_empty: bool = option(False, "preserve the empty prompt when nothing else is", "train_erase.py")
    erase_scale: float = option(1.0, "weight a of erased rows", "both codes", low=1e-12)
    preserve_scale: float = option(1.0, "weight b of preserved rows", "uce_sd_erase.py; train_erase.py 0.1", low=1e-12)
    lam: float = option(0.5, "ridge towards the original weights", "both codes", low=1e-12)
    expand: bool = option(False, "add five templates per erased concept", "uce_sd_erase.py --expand_prompts")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        return 0.0

    @torch.no_grad()
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        spent, select = model.evals.snapshot(), selection("xattn-kv")
        templates = ("{}", *TEMPLATES) if self.expand else ("{}",)
        pairs = [(f.format(e), f.format(request.anchor)) for e in request.targets for f in templates]
        aligned = [self._aligned(model, source, goal) for source, goal in pairs]
        x, y = torch.cat([a for a, _ in aligned]), torch.cat([b for _, b in aligned])
        kept = request.preserve or (("",) if self.preserve_empty else ())
        q = self._preserved(model, kept)
        d = shared_edit(x, y, torch.full((len(x),), self.erase_scale), q, torch.full((len(q),), self.preserve_scale), self.lam)
        base = model.weights(select)
        edited = {name: w.float().cpu() + apply_edit(w.cpu(), d) for name, w in base.items()}
        base_cpu = {name: w.float().cpu() for name, w in base.items()}
        return Patch.between(base_cpu, edited, self.card(model, request, spent))

    def _aligned(self, model: DiffusionModel, source: str, goal: str) -> tuple[Tensor, Tensor]:
        """Rows of the source prompt and the rows they should act like, aligned at the last word. (r, d) each."""
        c, g = model.encode([source]), model.encode([goal])
        f, f_goal = int(c.last[0]), int(g.last[0])
        if self.rows == "last":
            return c.tokens[0, f : f + 1].cpu(), g.tokens[0, f_goal : f_goal + 1].cpu()
        n = c.tokens.shape[1] - max(f, f_goal)
        return c.tokens[0, f : f + n].cpu(), g.tokens[0, f_goal : f_goal + n].cpu()

    def _preserved(self, model: DiffusionModel, prompts: tuple[str, ...]) -> Tensor:
        """(p, d) rows that must act as before; p may be 0."""
        if not prompts:
            return torch.zeros(0, model.encode([""]).tokens.shape[-1])
        c = model.encode(prompts)
        return (c.last_token() if self.preserve_rows == "last" else c.tokens.flatten(0, 1)).cpu()
