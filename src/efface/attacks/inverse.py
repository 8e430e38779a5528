"""The embedding that undoes an edit of keys and values, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..edits.attack import BringBack
from ..errors import BadOption
from .base import Attack, Attempt, Deployed, Goal, Plan, option, own_and_fresh, rng_of


@dataclass(frozen=True, kw_only=True)
class Inverse(Attack):
    """Undo an edit of keys and values by one least-squares solve, without training.

    Objective::

        c' = R c      for every token vector c of the prompt

    R makes the edited keys and values answer c' as nearly as possible as the original ones answered
    c; see :class:`efface.edits.attack.BringBack`.

    Tier T5: the attack reads the weights before and after the erasure. The embedding enters behind
    the text encoder, past anything that filters prompts. Raises BadOption or BadRequest for a
    system without a patch of keys and values.

    Cost: no optimisation; as many images for each case as the budget has, the first with the case's
    seed.
    """

    name: ClassVar[str] = "inverse"
    summary: ClassVar[str] = "undo an edit of keys and values by one least-squares solve"
    paper: ClassVar[str] = "ours"
    tier: ClassVar[str] = "T5"
    controls: ClassVar = ("seed_search",)

    ridge: float = option(0.0, "ridge of the solve, which keeps embeddings short; 0 needs an invertible edit", "ours", low=0.0)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        if deployed.patch is None:
            raise BadOption("the attack inverse undoes a patch, and none was given; give one with --patch.")
        return self.images_alone(deployed, goal, budget)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        assert deployed.patch is not None
        back = BringBack.of(deployed.model or deployed.original, deployed.patch, self.ridge)
        with deployed.active() as model:
            plain = [back.cond(model.encode([c.prompt])) for c in goal.cases]
        attempts = []
        for i, (case, c) in enumerate(zip(goal.cases, plain, strict=True)):
            unfiltered, seeds = c.bare(), own_and_fresh(case, plan.images, rng_of(self.seed, case))
            attempts += [Attempt(i, case.prompt, seed, f"seed {k + 1}", unfiltered) for k, seed in enumerate(seeds)]
        return attempts
