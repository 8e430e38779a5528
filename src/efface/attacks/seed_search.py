"""A control: the plain prompt with as many fresh seeds as the budget has images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Attack, Attempt, Deployed, Goal, Plan, rng_of


@dataclass(frozen=True, kw_only=True)
class SeedSearch(Attack):
    """Draw the unmodified prompt with new seeds and optimise nothing. A control for every attack
    that draws many images.

    An attack that does not exceed this one has shown only that it drew many images.

    Reference: ours.

    Deviations: there are as many images as the budget allows, not as many as the attack draws.
    These are more, and harder to exceed.

    Cost: as many images for each case as the budget allows.
    """

    name: ClassVar[str] = "seed_search"
    summary: ClassVar[str] = "control: the plain prompt with fresh seeds"
    paper: ClassVar[str] = "none; a control"
    tier: ClassVar[str] = "T2"

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        return self.images_alone(deployed, goal, budget)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        attempts = []
        for i, case in enumerate(goal.cases):
            seeds = torch.randint(2**31, (plan.images,), generator=rng_of(self.seed, case)).tolist()
            attempts += [Attempt(i, case.prompt, s, f"seed {k + 1}") for k, s in enumerate(seeds)]
        return attempts
