"""Text conditioning as the network receives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """A batch of conditionings. ``tokens``: (B, L, d) last hidden states; ``last``: (B,) index of the last word token
    (0, the BOS position, for an empty prompt)."""

    tokens: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cond:
        rows = [index] if isinstance(index, int) else index
        return Cond(self.tokens[rows], self.last[rows])

    def repeat(self, n: int) -> Cond:
        """Each row n times in sequence: a, a, b, b."""
        return Cond(self.tokens.repeat_interleave(n, 0), self.last.repeat_interleave(n, 0))

    def last_token(self) -> Tensor:
        """(B, d) hidden state of each prompt's last word token."""
        return self.tokens[torch.arange(len(self)), self.last]

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        return Cond(torch.cat([c.tokens for c in conds]), torch.cat([c.last for c in conds]))
