"""What the attacks share that ask with other words. No attack is here."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..concepts.prompts import Case, filled
from ..errors import BadOption, PromptTooLong
from .base import Attack, Attempt, Called, Deployed, Goal, Plan, rng_of


@dataclass(frozen=True, kw_only=True)
class Textual(Attack):
    """Abstract. Ask with every known wording on the case's seed, then with the wordings in turn on
    fresh seeds.

    A wording that the original model does not understand tests nothing, so an attempt counts only
    where the original model shows the target for the same prompt and seed. A wording that is longer
    than the model reads is left out.

    Cost: as many images for each case as the budget allows.
    """

    tier: ClassVar[str] = "T0"
    gate: ClassVar[str] = "own"

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        self.check(goal)
        return self.images_alone(deployed, goal, budget)

    def check(self, goal: Goal) -> None:
        """Raises BadOption where there is nothing to ask with: here, where no wording is known."""
        if not all(goal.call(i).wordings.get(self.name) for i in range(len(goal.cases))):
            raise BadOption(
                f"no {self.name} wording of {goal.target!r} is known; give some (wordings={{{self.name!r}: [...]}} from Python)."
            )

    def prompts(self, called: Called, prompt: str) -> list[str]:
        """The variants of one prompt. Here they are whole descriptions, which take no article and
        no template."""
        return [f.format(words) for f in ("{}", "a picture: {}") for words in called.wordings[self.name]]

    def _fitting(self, deployed: Deployed, called: Called, case: Case) -> list[str]:
        """The variants of a case's prompt that the model reads as a whole, the plain prompt where none is one."""
        found = []
        for prompt in self.prompts(called, case.prompt):
            with suppress(PromptTooLong):
                deployed.original.token_ids([prompt])
                found.append(prompt)
        return found or [case.prompt]

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        attempts = []
        for i, case in enumerate(goal.cases):
            variants, rng = self._fitting(deployed, goal.call(i), case), rng_of(self.seed, case)
            fresh = torch.randint(2**31, (plan.images,), generator=rng).tolist()
            for k in range(plan.images):
                seed = case.seed if k < len(variants) else fresh[k]
                attempts.append(Attempt(i, variants[k % len(variants)], seed, f"wording {k % len(variants) + 1}"))
        return attempts


def reworded(prompt: str, name: str, words: str) -> str:
    """The prompt with ``words`` in the place of the name; "a" and "an" follow the first letter of
    the words."""
    article = re.sub(rf"\b(a|an) {re.escape(name)}\b", lambda _: with_article(words), prompt)
    return re.sub(rf"\b{re.escape(name)}\b", lambda _: words, article)


def with_article(words: str) -> str:
    """The words behind "a" or "an"; a proper name has no article."""
    return filled("a {}", words)
