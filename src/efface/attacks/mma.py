"""MMA-Diffusion, its text part: words without the target's name that the text encoder reads as the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.request import normalised
from ..models.base import DiffusionModel
from ..models.tokens import SoftPrompt
from ..preservation.adversary import word_rows
from .base import Attack, Attempt, Deployed, Goal, Plan, option, own_and_fresh, rng_of


@dataclass(frozen=True, kw_only=True)
class MMA(Attack):
    """Search words by gradients through the public text encoder, none of which is the target's name.

    Objective::

        min_w  1 - cos( e(w), e(p) )

    e is the end token's vector of the original text encoder, which sums up the prompt, p is the plain
    prompt, and w are ``tokens`` words without the words of the target's name and of what is known to
    mean the same. In each step, the gradient at the words' embeddings gives the ``topk`` best words
    for every place; ``candidates`` lists in which one word is swapped are scored, and the best of
    them is the next list, even if it is worse. The best list of all is drawn, on the case's seed and
    then on fresh ones.

    Tier T1. Reference: Yang et al., CVPR 2024, arXiv:2311.17516, the text modality. The code's licence
    allows no reuse, so this was written from the description.

    Deviations: only whole words are searched. The forbidden words are the target's name and known
    wordings, for any concept (officially a list of sensitive words). The gradient of a place is that
    of its own embedding (in the official code it is off by one place).

    Cost: no UNet evaluation but the images, as many for each case as the budget allows; and ``steps``
    x (``candidates`` + 2) passes through the text encoder for each case.
    """

    name: ClassVar[str] = "mma"
    summary: ClassVar[str] = "words without the name that the public text encoder reads as the prompt"
    paper: ClassVar[str] = "Yang et al., CVPR 2024, arXiv:2311.17516"
    tier: ClassVar[str] = "T1"
    controls: ClassVar = ("random_token", "seed_search")
    presets: ClassVar = {
        "paper": {},
        "quick": {"steps": 60, "topk": 64, "candidates": 64},
        "mini": {"tokens": 6, "steps": 40, "topk": 64, "candidates": 64},
        "tiny": {"tokens": 3, "steps": 3, "topk": 4, "candidates": 6},
    }

    tokens: int = option(20, "number of words", "official", low=1)
    steps: int = option(1000, "steps of the search", "official", low=0)
    topk: int = option(256, "best words of each place, from which a swap is drawn", "official", low=1)
    candidates: int = option(512, "lists with one swapped word that are scored in each step", "official", low=1)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        return self.images_alone(deployed, goal, budget)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        model = deployed.original
        words, table = word_rows(model)
        known = (goal.target, *(w for c in goal.calls for w in (c.word, *(w for names in c.wordings.values() for w in names))))
        forbidden = {part for name in known for part in normalised(name).split() if len(part) > 2}
        allowed = [i for i, word in enumerate(words) if not any(part in word for part in forbidden)]
        words, table = [words[i] for i in allowed], table[allowed]
        attempts = []
        with model.frozen():
            for i, case in enumerate(goal.cases):
                rng = rng_of(self.seed, case)
                text = " ".join(words[j] for j in self._search(model, words, table, case.prompt, rng))
                seeds = own_and_fresh(case, plan.images, rng)
                attempts += [Attempt(i, text, s, f"seed {k + 1}") for k, s in enumerate(seeds)]
        return attempts

    def _search(self, model: DiffusionModel, words: list[str], table: Tensor, prompt: str, rng: torch.Generator) -> list[int]:
        """The best list of words that was seen."""
        sought = model.encode([prompt]).end_token()
        ids = torch.randint(len(words), (self.tokens,), generator=rng)
        start = model.embed([""])

        def scores(lists: Tensor) -> Tensor:
            with torch.no_grad():
                texts = [" ".join(words[j] for j in one) for one in lists.tolist()]
                parts = [model.encode_soft(model.embed(texts[i : i + 64])) for i in range(0, len(texts), 64)]
            return 1 - torch.cosine_similarity(torch.cat([c.end_token() for c in parts]), sought)

        best, least = ids, float(scores(ids[None])[0])
        for _ in range(self.steps):
            gradient = self._gradient(model, start, table, ids, sought)
            promising = (-gradient).topk(min(self.topk, len(words)), dim=1).indices.cpu()
            lists = ids.repeat(self.candidates, 1)
            for k in range(self.candidates):
                place = k % self.tokens
                lists[k, place] = promising[place, int(torch.randint(promising.shape[1], (1,), generator=rng))]
            found = scores(lists)
            ids = lists[int(found.argmin())]
            if float(found.min()) < least:
                best, least = ids, float(found.min())
        return [int(j) for j in best]

    def _gradient(self, model: DiffusionModel, start: SoftPrompt, table: Tensor, ids: Tensor, sought: Tensor) -> Tensor:
        """The gradient of the loss with respect to the one-hot rows of the words ``ids``, (tokens, V): how the loss changes with
        more of each word of the vocabulary at each place. ``start``: the empty prompt, in which the words stand."""
        rows = table[ids][None].clone().requires_grad_(True)
        c = model.encode_soft(start.splice(start.starts, start.starts, rows))
        (gradient,) = torch.autograd.grad((1 - torch.cosine_similarity(c.end_token(), sought)).sum(), rows)
        return gradient[0] @ table.T
