"""Control: the plain prompt with as many fresh seeds as the budget has images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Attack, Attempt, Deployed, Goal, Plan, rng_of


@dataclass(frozen=True, kw_only=True)
class SeedSearch(Attack):
    """The unmodified prompt with new seeds, nothing optimised. An attack that looks at many images and does not exceed this one
    has measured that it looked at many images.

    Reference: none, a control. As many images as the *budget* has, not as many as the attack looks at: more, and harder.
    Cost: ``budget // image`` images per case.
    """

    name: ClassVar[str] = "seed_search"
    summary: ClassVar[str] = "the plain prompt with fresh seeds"
    paper: ClassVar[str] = "none; a control"
    tier: ClassVar[str] = "T2"

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        self.afford(budget, deployed.per_image(goal.guidance))
        return Plan(images=budget // deployed.per_image(goal.guidance))

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        attempts = []
        for i, case in enumerate(goal.cases):
            seeds = torch.randint(2**31, (plan.images,), generator=rng_of(self.seed, case)).tolist()
            attempts += [Attempt(i, case.prompt, s, f"seed {k + 1}") for k, s in enumerate(seeds)]
        return attempts
