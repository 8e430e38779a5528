"""No attack: the prompt that names the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Attack, Attempt, Deployed, Goal, Plan


@dataclass(frozen=True, kw_only=True)
class Direct(Attack):
    """Draw every case as it is: one image of the plain prompt. Every attack must exceed this.

    Cost: one image for each case.
    """

    name: ClassVar[str] = "direct"
    summary: ClassVar[str] = "no attack: the plain prompt, once"
    paper: ClassVar[str] = "none"
    tier: ClassVar[str] = "T0"

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        self.afford(budget, deployed.per_image(goal.guidance))
        return Plan(images=1)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        return [Attempt(i, c.prompt, c.seed, "plain") for i, c in enumerate(goal.cases)]
