"""The attack on closed-form edits: one least-squares solve gives the embedding that brings the
concept back."""

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
class BringBack:
    """Embeddings that bring an edited concept back: ``c' = R c`` for every token vector c.

    The edited network answers c' as nearly as possible as the original one answered c.
    """

    matrix: Tensor
    """R, (d, d) float64. For an edit of the form W' = W T it is ``T^-1``."""
    base: tuple[Tensor, ...]
    edited: tuple[Tensor, ...]

    @staticmethod
    def of(model: DiffusionModel, patch: Patch, ridge: float = 0.0) -> BringBack:
        """Solve for R from the model's keys and values before and after the patch; nothing else is
        known. No UNet evaluations.

        ``ridge`` > 0 keeps the embeddings short, in units of the weights' squares. Raises
        BadRequest for a patch that changes no keys and values.
        """
        weights = {n: w.detach().double().cpu() for n, w in model.weights(model.reads()).items()}
        if not any(n in patch.deltas for n in weights):
            raise BadRequest("this patch changes no keys and values of cross-attention: there is nothing to solve for.")
        edited = {n: w + patch.deltas[n].double() if n in patch.deltas else w for n, w in weights.items()}
        base = tuple(weights.values())
        after = tuple(edited.values())
        return BringBack(brought_back(base, after, ridge), base, after)

    def missed(self, rows: Tensor) -> Tensor:
        """(n,) the share of the original answers that stays out of reach, ``|W' R c - W c| / |W
        c|`` over all layers; rows: (n, d).

        0 means that the concept comes back whole.
        """
        c = rows.to(F64)
        back = c @ self.matrix.T
        off = sum((back @ v.T - c @ w.T).square().sum(1) for v, w in zip(self.edited, self.base, strict=True))
        return (off / sum((c @ w.T).square().sum(1) for w in self.base)).sqrt()

    def length(self, rows: Tensor) -> Tensor:
        """(n,) how much longer the embeddings are than the originals, ``|R c| / |c|``. A simple
        detector would notice large values."""
        return (rows.to(F64) @ self.matrix.T).norm(dim=1) / rows.to(F64).norm(dim=1)

    def cond(self, c: Cond) -> Cond:
        """The same encodings with every token vector c replaced by R c, which the attacker gives the edited network."""
        return replace(c, tokens=(c.tokens.cpu().double() @ self.matrix.T).to(c.tokens))

    @contextmanager
    def against(self, model: DiffusionModel) -> Iterator[DiffusionModel]:
        """Inside this context, the patched model encodes every prompt but the empty one as the
        attacker would.

        Use it inside ``patch.applied(model)``. The unconditional branch of guidance stays the
        defender's.
        """

        def attacked(prompts: Sequence[str], plain: Cond) -> Cond:
            named = torch.tensor([bool(p) for p in prompts], device=plain.tokens.device)[:, None, None]
            return replace(plain, tokens=torch.where(named, self.cond(plain).tokens, plain.tokens))

        with model.encoding(attacked):
            yield model
