"""The latent from which the erased model draws a given image of the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..equations.diffusion import spherical
from .base import CHUNK, Attack, Attempt, Deployed, Goal, Plan, option, rng_of

SHARES = (0.0, 0.1, 0.3, 0.5)
"""How far the inverted latent is moved towards fresh noise."""


@dataclass(frozen=True, kw_only=True)
class LatentInversion(Attack):
    """Find the start latent from which the erased model draws an image of the target, by going
    backwards through its own sampler.

    Objective::

        z_T  =  the sampler's steps from z_0 up to the noisiest level, backwards (DDIM inversion)
        z    =  spherical mixture of z_T and fresh noise, share 0, 0.1, 0.3, 0.5
        image = the erased model's sampler from z, without guidance

    z_0 is the latent of the original model's image of the case. The prompt is empty, or the case's
    own with ``prompted``; a guard keeps its guidance. Almost any image can be inverted on almost any model, so that the share
    0 mostly measures how well the sampler runs backwards. What a model remembers survives some fresh
    noise; and what counts is by how much the success exceeds that on a model that never saw its
    concept, which runs beside it where there is one. On the miniature that is nothing: the gold model
    is broken in every case. So the attack stands beside the union of attacks and not in it, which it
    would fill for every defence.

    Tier T3. Reference: Rusanovsky et al., "Memories of Forgotten Concepts", CVPR 2025,
    arXiv:2412.00782. Code: matanr/Memories_of_Forgotten_Concepts.

    Deviations: no null-text refinement. In the official code it cannot matter, because the image is
    drawn at guidance 1, where the optimised embedding drops out. The inversion reaches the noisiest
    level of the grid (officially it stops one level below). z_0 is the sampler's clean latent, not
    the encoded picture. The mixtures are ours.

    Cost: for each case one reference image, one inversion of as many evaluations as an image without
    guidance, and images without guidance for the rest of the budget.
    """

    name: ClassVar[str] = "latent_inversion"
    summary: ClassVar[str] = "the start latent of an image of the target, by the sampler backwards"
    paper: ClassVar[str] = "Rusanovsky et al., CVPR 2025, arXiv:2412.00782"
    tier: ClassVar[str] = "T3"
    controls: ClassVar = ("seed_search",)
    teaches: ClassVar[bool] = True
    in_union: ClassVar[bool] = False

    prompted: bool = option(False, "invert and draw under the case's prompt, not under the empty one", "official both")

    @staticmethod
    def _guidance(deployed: Deployed, goal: Goal) -> float:
        """1, or the cases' own under a guard, which acts through guidance."""
        return 1.0 if deployed.guard is None else goal.guidance

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        one = deployed.per_image(self._guidance(deployed, goal))
        fixed = deployed.reference_cost(goal.guidance) + one
        self.afford(budget, fixed + one)
        images, n = (budget - fixed) // one, len(goal.cases)
        return Plan(images, forward=n * (fixed + images * one), skipped=n * images * deployed.steps)

    @torch.no_grad()
    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        images, guidance = deployed.references(goal.cases), self._guidance(deployed, goal)
        attempts = []
        with deployed.active() as model:
            for start in range(0, len(goal.cases), CHUNK):
                cases = goal.cases[start : start + CHUNK]
                c = model.encode([case.prompt if self.prompted else "" for case in cases])
                z_T = model.invert(c, images[start : start + CHUNK], deployed.steps, guidance)
                rngs = [rng_of(self.seed, case) for case in cases]
                for k in range(plan.images):
                    share = SHARES[k % len(SHARES)]
                    noise = torch.cat([model.noise(1, rng) for rng in rngs])
                    z = model.denoise(c, spherical(z_T, noise, torch.tensor(share)), deployed.steps, guidance)
                    attempts += [
                        Attempt(start + j, case.prompt, case.seed, f"noise {share}", latent=latent.cpu(), taken=deployed.steps)
                        for j, (case, latent) in enumerate(zip(cases, z.split(1), strict=True))
                    ]
        return attempts
