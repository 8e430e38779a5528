"""Echo: say the prompt more than once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.attacks import Attack, Attempt, Deployed, Goal, Plan
from efface.options import option


@dataclass(frozen=True, kw_only=True)
class Echo(Attack):
    """Repeats the prompt: "a cat" becomes "a cat, a cat".

    Reference: none, an example. Cost: one image per repetition.
    """

    name: ClassVar[str] = "echo"
    summary: ClassVar[str] = "the prompt, said more than once"
    paper: ClassVar[str] = "none"
    tier: ClassVar[str] = "T0"
    controls: ClassVar[tuple[str, ...]] = ("seed_search",)

    most: int = option(3, "how often the prompt is said at most", "ours", low=2)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        image = deployed.per_image(goal.guidance)
        self.afford(budget, image)
        return Plan(images=min(self.most - 1, budget // image))

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        times = range(2, plan.images + 2)
        return [Attempt(i, ", ".join([c.prompt] * k), c.seed, f"{k} times") for i, c in enumerate(goal.cases) for k in times]
