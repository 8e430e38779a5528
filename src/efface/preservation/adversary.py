"""Vectors among the words of a prompt: what an attack that trains alongside moves to bring the target back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..equations.diffusion import noised
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..training.drawn import surrogate_latents
from ..training.learned import Learned
from ..training.loop import Step
from ..training.processes import share

LOOKS = 8
"""Pictures of a target by which words are judged."""
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


@torch.no_grad()
def agreement(
    model: DiffusionModel, target: str, anchor: str, words: Sequence[str], *, steps: int, guidance: float, seed: int
) -> dict[str, float]:
    """How far each word's prediction is from the target's, over the anchor's distance from it; squares summed over LOOKS pictures
    of the target, noised to levels spread over the schedule. 0 draws the target, 1 is as far off as the anchor.

    Cost: LOOKS times a picture and len(words) + 2 evaluations.
    """
    n = len(model.schedule.alphas_cumprod)
    t = torch.tensor([(2 * i + 1) * n // (2 * LOOKS) for i in range(LOOKS)], device=model.device)
    x = surrogate_latents(model, [target], LOOKS, steps=steps, guidance=guidance, seed=seed)
    z = noised(x, model.noise(LOOKS, torch.Generator().manual_seed(seed)), model.schedule.ab(t).to(x))
    eps_e, eps_0, *eps = (model.predict(z, t, model.encode([p] * LOOKS)) for p in (target, anchor, *words))
    whole = float((eps_0 - eps_e).square().sum()) or torch.finfo(torch.float32).tiny
    return {w: float((e - eps_e).square().sum()) / whole for w, e in zip(words, eps, strict=True)}


def own_and(model: DiffusionModel, name: str, words: Sequence[str]) -> Tensor:
    """(n + 1, e) input embeddings: the mean of the name's own tokens, and n words of one token."""
    span = model.locate(name, name)
    own = model.embed([name]).embeddings[0, span.start : span.stop].mean(0, keepdim=True)
    return torch.cat([own, *(model.embed([w]).embeddings[:, 1] for w in words)]).float()


class Adversary:
    """An attacker that lives as long as the training: one vector per target in the place of its name. It goes on from where the
    last update left it, and starts again at one of ``starts`` (n, e) of its target every ``restart`` updates (0: never).

    Pass it to ``training(carry=...)`` to have it survive an interruption.
    """

    def __init__(
        self, model: DiffusionModel, targets: Sequence[str], starts: Sequence[Tensor], *, lr: float, restart: int
    ) -> None:
        self.model, self.targets, self.starts, self.restart = model, targets, starts, restart
        self.words = Learned([rows[:1] for rows in starts], lr)

    def begin(self, step: Step, first: int) -> None:
        """To be called once per update, before anything else; ``first``: the update in which the attack begins."""
        if step.index == first or (self.restart and step.index % self.restart == 0):
            for i, rows in enumerate(self.starts):
                self.words.begin(i, rows[[step.randint(len(rows))]])

    def cond(self, e: Sequence[int]) -> Cond:
        """This process's rows for the target indices of the whole batch, differentiable in the words."""
        own = share(list(e))
        return worded(self.model, [self.targets[i] for i in own], self.words.rows(own), "replace")

    def follow(self, e: Sequence[int]) -> None:
        """One step of the drawn targets' words down the gradients that a backward pass has left behind."""
        self.words.update(e)

    def state_dict(self) -> dict[str, Any]:
        return self.words.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.words.load_state_dict(state)
