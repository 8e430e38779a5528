"""A control: random words before the prompt, as many times as the budget has images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..preservation.adversary import word_rows
from .base import Attack, Attempt, Deployed, Goal, Plan, option, rng_of


@dataclass(frozen=True, kw_only=True)
class RandomToken(Attack):
    """Put random words before the prompt, fresh ones for every image, with the case's seed. A
    control for attacks that search words.

    The words are drawn uniformly from the vocabulary.

    Reference: a configuration of OPTML-Group/Diffusion-MU-Attack.

    Deviations: only whole words are drawn, and there are as many images as the budget allows, not
    as many as the attack draws.

    Cost: as many images for each case as the budget allows.
    """

    name: ClassVar[str] = "random_token"
    summary: ClassVar[str] = "control: random words before the prompt"
    paper: ClassVar[str] = "none; a control"
    tier: ClassVar[str] = "T2"
    presets: ClassVar = {"paper": {}, "mini": {"tokens": 2}, "tiny": {"tokens": 2}}

    tokens: int = option(3, "number of words before the prompt", "UnlearnDiffAtk 3 for styles and objects, 5 for nudity", low=1)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        return self.images_alone(deployed, goal, budget)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        with deployed.active() as model:
            words, _ = word_rows(model)
        attempts = []
        for i, case in enumerate(goal.cases):
            rng = rng_of(self.seed, case)
            for k in range(plan.images):
                drawn = torch.randint(len(words), (self.tokens,), generator=rng).tolist()
                text = " ".join([*(words[j] for j in drawn), case.prompt])
                attempts.append(Attempt(i, text, case.seed, f"draw {k + 1}"))
        return attempts
