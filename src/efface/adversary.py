"""Vectors among the words of a prompt: what an attack that trains alongside moves to bring the target back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import BadOption
from .models.base import DiffusionModel
from .models.cond import Cond

PLACES = ("prefix", "suffix", "insert", "replace")
"""Before the prompt's words, after them, in their middle, or in their place."""


def word_rows(model: DiffusionModel) -> tuple[list[str], Tensor]:
    """The vocabulary's words that are one token, and their (V, e) input embeddings. Whole words survive being written and read
    again, which fragments do not."""
    vocabulary = model.vocabulary()
    words = [w for w, ids in zip(vocabulary, model.token_ids(vocabulary), strict=True) if len(ids) == 3]
    parts = [model.embed(words[i : i + 512]).embeddings[:, 1] for i in range(0, len(words), 512)]
    return words, torch.cat(parts).float()


def drawn_words(table: Tensor, drawn: Sequence[int], tokens: int) -> Tensor:
    """(B, k, e) embeddings of B k drawn vocabulary words; table: (V, e)."""
    return table[list(drawn)].reshape(-1, tokens, table.shape[1]).clone()


def worded(model: DiffusionModel, prompts: Sequence[str], rows: Tensor, place: str) -> Cond:
    """Conditionings of B prompts with k vectors each in ``place``; rows: (B, k, e). Differentiable in them and in the weights
    of the model's text encoder. Raises BadOption for an unknown place, PromptTooLong where the vectors do not fit."""
    if place not in PLACES:
        raise BadOption(f"vectors stand in one of {', '.join(PLACES)}, not {place!r}.")
    found: dict[int, Cond] = {}
    for prompt in dict.fromkeys(prompts):
        mine = [i for i, p in enumerate(prompts) if p == prompt]
        soft = model.embed([prompt] * len(mine))
        words = soft.lengths[0] - 2
        start, stop = {"prefix": (1, 1), "suffix": (1 + words,) * 2, "insert": (1 + words // 2,) * 2, "replace": (1, 1 + words)}[
            place
        ]
        c = model.encode_soft(soft.splice(start, stop, rows[mine]))
        found |= {i: c[k] for k, i in enumerate(mine)}
    return Cond.cat([found[i] for i in range(len(prompts))])
