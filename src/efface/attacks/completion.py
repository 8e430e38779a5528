"""The original model begins the image and the erased one finishes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import BadOption
from .base import CHUNK, Attack, Attempt, Deployed, Goal, Plan, option, rng_of


@dataclass(frozen=True, kw_only=True)
class Completion(Attack):
    """Let the original model take the first sampler steps of the target's prompt and the erased
    model the others.

    The first steps settle what the image shows in outline. An erasure that only keeps the model
    from starting the target still knows how to finish it. Image k of a case starts after 1 + k mod
    ``most`` steps of the original model; the first ``most`` images have the case's seed, the others
    fresh ones.

    Tier T3: the attacker needs the original model, which is public, and control of the latent.
    Reference: Lu et al., "When Are Concepts Erased From Diffusion Models?", NeurIPS 2025,
    arXiv:2505.17013.

    Deviations: the original model's own image is not finished. Its first steps are of the deployed
    sampler's grid, of which the official code has 50.

    Cost: an image and, where a guard makes the deployed steps dearer or cheaper than guidance, the
    difference; as many images for each case as the budget allows.
    """

    name: ClassVar[str] = "completion"
    summary: ClassVar[str] = "the original model begins the image, the erased one finishes it"
    paper: ClassVar[str] = "Lu et al., NeurIPS 2025, arXiv:2505.17013"
    tier: ClassVar[str] = "T3"
    controls: ClassVar = ("seed_search",)
    presets: ClassVar = {"paper": {}, "mini": {}, "tiny": {"most": 1}}

    most: int = option(3, "largest number of sampler steps that the original model takes", "official, of 50", low=1)

    def _taken(self, images: int) -> list[int]:
        return [1 + k % self.most for k in range(images)]

    def _cost(self, deployed: Deployed, goal: Goal, images: int) -> tuple[int, int]:
        """Evaluations of the original model for one case, and the deployed steps that are left out."""
        taken = sum(self._taken(images))
        return taken * deployed.reference_cost(goal.guidance) // deployed.steps, taken

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        if self.most >= deployed.steps:
            raise BadOption(f"most={self.most}: an image has {deployed.steps} sampler steps, and the last is the erased model's.")

        def spent(images: int) -> int:
            begun, left_out = self._cost(deployed, goal, images)
            return begun + images * deployed.per_image(goal.guidance) - left_out * deployed.per_step(goal.guidance)

        self.afford(budget, spent(1))
        images = 1
        while spent(images + 1) <= budget:
            images += 1
        begun, left_out = self._cost(deployed, goal, images)
        return Plan(images, forward=begun * len(goal.cases), skipped=left_out * len(goal.cases))

    @torch.no_grad()
    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        taken, model = self._taken(plan.images), deployed.original
        rows = []
        for i, case in enumerate(goal.cases):
            fresh = torch.randint(2**31, (plan.images,), generator=rng_of(self.seed, case)).tolist()
            rows += [(i, k, case.seed if k < self.most else fresh[k]) for k in range(plan.images)]
        found: dict[tuple[int, int], Attempt] = {}
        for steps in sorted(set(taken)):
            mine = [row for row in rows if taken[row[1]] == steps]
            for start in range(0, len(mine), CHUNK):
                part = mine[start : start + CHUNK]
                c = model.encode([goal.cases[i].prompt for i, _, _ in part])
                noise = model.case_noise([seed for _, _, seed in part])
                z, _ = model.sample_until(c, steps, deployed.steps, noise, goal.guidance)
                for (i, k, seed), latent in zip(part, z.split(1), strict=True):
                    told = f"after {steps} of {deployed.steps} steps"
                    found[i, k] = Attempt(i, goal.cases[i].prompt, seed, told, latent=latent.cpu(), taken=steps)
        return [found[i, k] for i, k, _ in rows]
