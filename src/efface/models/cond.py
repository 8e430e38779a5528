"""Text conditioning as the network receives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

POSITIONS = ("last", "last+eos", "last..end", "all")
"""Which token positions of a prompt a closed-form edit uses: the last word, also the end token behind it, everything from the
last word through the padding, or every position."""

POOLED = "pooled"
"""The extra that SDXL reads: one vector per prompt."""

GUIDANCE = "guidance"
"""The extra that a guidance-distilled network reads: the scale of classifier-free guidance, one number per prompt."""


MASK = "mask"
"""The extra of a family whose network does not read padding: 1 where a token is read, (B, L)."""


@dataclass(frozen=True)
class Cond:
    """A batch of conditionings. ``tokens``: (B, L, d) last hidden states; ``last``: (B,) index of the last word token
    (0, the BOS position, for an empty prompt)."""

    tokens: Tensor
    last: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Per row, what a network or a guard needs beside the tokens, such as the pooled text of SDXL: (B, ...) each."""
    split: int = 0
    """Where the tokens of a second tokenizer begin (T5 of SD3); 0 where there is one alone."""
    second: Tensor | None = None
    """With ``split``: (B,) index of the last word among the second tokenizer's tokens."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cond:
        rows = [index] if isinstance(index, int) else index
        extras = {k: v[rows] for k, v in self.extras.items()}
        return Cond(self.tokens[rows], self.last[rows], extras, self.split, None if self.second is None else self.second[rows])

    def repeat(self, n: int) -> Cond:
        """Each row n times in sequence: a, a, b, b."""
        extras = {k: v.repeat_interleave(n, 0) for k, v in self.extras.items()}
        second = None if self.second is None else self.second.repeat_interleave(n, 0)
        return Cond(self.tokens.repeat_interleave(n, 0), self.last.repeat_interleave(n, 0), extras, self.split, second)

    def bare(self) -> Cond:
        """Only what a network reads, without what a guard has put beside it."""
        return replace(self, extras={k: v for k, v in self.extras.items() if k in (POOLED, GUIDANCE, MASK)})

    def detached(self) -> Cond:
        """The same without a gradient."""
        return replace(self, tokens=self.tokens.detach(), extras={k: v.detach() for k, v in self.extras.items()})

    def mixture(self, weights: Tensor, last: int) -> Cond:
        """One conditioning, the sum of all rows with weights (n,); its last word is that of row ``last``."""
        mixed = {k: torch.einsum("n,n...->...", weights.to(v), v)[None] for k, v in self.extras.items()}
        tokens = torch.einsum("n,nld->ld", weights.to(self.tokens), self.tokens)[None]
        return replace(self[[last]], tokens=tokens, extras=mixed)

    def last_token(self) -> Tensor:
        """(B, d) hidden state of each prompt's last word token."""
        return self.tokens[torch.arange(len(self)), self.last]

    def end_token(self) -> Tensor:
        """(B, d) encoding of the token behind each prompt's last word, which has read all of them; where none is read there, of
        the last that is."""
        behind = torch.minimum(self.last + 1, torch.tensor(self.counts()) - 1)
        return self.tokens[torch.arange(len(self)), behind]

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """All rows; extras that every part has."""
        shared = set.intersection(*(set(c.extras) for c in conds))
        extras = {k: torch.cat([c.extras[k] for c in conds]) for k in sorted(shared)}
        second = torch.cat([c.second for c in conds if c.second is not None]) if conds[0].second is not None else None
        return Cond(torch.cat([c.tokens for c in conds]), torch.cat([c.last for c in conds]), extras, conds[0].split, second)

    def rows(self, kind: str) -> Tensor:
        """(n, d) hidden states of the positions ``kind`` (one of POSITIONS) of every prompt and tokenizer, on the CPU."""
        return torch.cat([tokens[_first(f, kind) : _stop(f, len(tokens), kind)] for tokens, f in self._each()])

    def aligned(self, goal: Cond, kind: str) -> tuple[Tensor, Tensor]:
        """Pairs of token encodings: those of each prompt, and those of ``goal``, the prompt it should act like; (n, d) each, on
        the CPU.

        The two prompts are laid on each other at their last words, word on word and end token on end token; aligning their
        first words instead would replace words by padding. ``kind`` is one of the kinds of :meth:`rows`. With ``last..end`` each
        of the two gives L - max(f, f_goal) encodings, where L is the number of token positions and f and f_goal are the positions
        of the last words. The last word of an empty goal is its first position, the start token.
        Where padding is masked, only encodings that are read are given, and a goal that is too short goes on as its end token.
        """
        xs, ys = [], []
        for (x, f), (y, f_goal) in zip(self._each(), goal._each(), strict=True):
            start, goal_start = _first(f, kind), _first(f_goal, kind)
            if MASK in self.extras:  # where padding is not read, what is longer than the goal acts like the goal's end
                y = torch.cat([y, y[-1:].expand(len(x), -1)])
            n = _stop(0, len(x), kind) if kind in ("last", "last+eos") else len(x)
            n = min(n, len(x) - start, len(y) - goal_start)
            xs.append(x[start : start + n])
            ys.append(y[goal_start : goal_start + n])
        return torch.cat(xs), torch.cat(ys)

    def counts(self) -> list[int]:
        """How many tokens of every prompt the network reads: with padding, unless it is masked."""
        mask = self.extras.get(MASK)
        return [self.tokens.shape[1]] * len(self) if mask is None else (mask > 0).sum(1).tolist()

    def _each(self) -> list[tuple[Tensor, int]]:
        """Of every prompt, the tokens of every tokenizer that the network reads, and among them the index of the last word."""
        if self.second is None:
            read = self.counts()
            return [(x[:n], f) for x, n, f in zip(self.tokens.cpu(), read, self.last.tolist(), strict=True)]
        found = []
        for tokens, first, second in zip(self.tokens.cpu(), self.last.tolist(), self.second.tolist(), strict=True):
            found += [(tokens[: self.split], first), (tokens[self.split :], second)]
        return found


def _first(last: int, kind: str) -> int:
    return 0 if kind == "all" else last


def _stop(last: int, length: int, kind: str) -> int:
    return {"last": last + 1, "last+eos": last + 2}.get(kind, length)
