"""The attack that closed-form edits invite: the embedding that brings the concept back, by one least-squares solve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..equations.closed_form import F64, brought_back
from ..errors import BadRequest
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..patches import Patch


@dataclass(frozen=True)
class WayBack:
    """``c' = R c`` for every token vector c: what to feed the edited network to be answered as the original one would."""

    matrix: Tensor
    """R, (d, d) float64; ``T^-1`` for an edit of the form W' = W T."""
    base: tuple[Tensor, ...]
    edited: tuple[Tensor, ...]

    @staticmethod
    def of(model: DiffusionModel, patch: Patch, ridge: float = 0.0) -> WayBack:
        """White box: knows the model's keys and values before and after the patch, and nothing else. 0 UNet evaluations.

        ``ridge`` > 0 keeps the embeddings short, in units of the weights' squares. Raises BadRequest for a patch that leaves
        keys and values alone.
        """
        weights = {n: w.detach().double().cpu() for n, w in model.weights(model.reads()).items()}
        if not any(n in patch.deltas for n in weights):
            raise BadRequest("this patch changes no keys and values of cross-attention: there is nothing to solve for.")
        edited = {n: w + patch.deltas[n].double() if n in patch.deltas else w for n, w in weights.items()}
        base = tuple(weights.values())
        after = tuple(edited.values())
        return WayBack(brought_back(base, after, ridge), base, after)

    def missed(self, rows: Tensor) -> Tensor:
        """(n,) share of the original answers that stays out of reach: ``|W' R c - W c| / |W c|`` over all layers; 0 is a full
        return of the concept. rows: (n, d)."""
        c = rows.to(F64)
        back = c @ self.matrix.T
        off = sum((back @ v.T - c @ w.T).square().sum(1) for v, w in zip(self.edited, self.base, strict=True))
        return (off / sum((c @ w.T).square().sum(1) for w in self.base)).sqrt()

    def length(self, rows: Tensor) -> Tensor:
        """(n,) how much longer the embeddings are than the originals, ``|R c| / |c|``: a crude detector sees large values."""
        return (rows.to(F64) @ self.matrix.T).norm(dim=1) / rows.to(F64).norm(dim=1)

    def cond(self, c: Cond) -> Cond:
        """Conditionings with every token vector replaced."""
        return replace(c, tokens=(c.tokens.cpu().double() @ self.matrix.T).to(c.tokens))

    @contextmanager
    def against(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """The (patched) model with every prompt but the empty one encoded as the attacker would: use it inside
        ``patch.applied(model)``. The unconditional branch of guidance stays the defender's."""

        def attacked(prompts: Sequence[str], plain: Cond) -> Cond:
            named = torch.tensor([bool(p) for p in prompts], device=plain.tokens.device)[:, None, None]
            return replace(plain, tokens=torch.where(named, self.cond(plain).tokens, plain.tokens))

        with model.encoding(attacked):
            yield model
