"""Draw the plain prompt with a sampler that adds more noise than it should."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from ..equations.diffusion import with_fresh_noise
from ..models.cond import Cond
from .base import CHUNK, Attack, Attempt, Deployed, Goal, Plan, rng_of

ETAS = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
SCALES = (1.0, 1.02, 1.03, 1.04)


@dataclass(frozen=True, kw_only=True)
class NoiseProbe(Attack):
    """Draw the unmodified prompt by a stochastic sampler, and look whether the target survives in
    the parts of the trajectory that a deterministic sampler does not visit.

    Every sampler step replaces part of its noise by fresh noise
    (:func:`efface.equations.diffusion.with_fresh_noise`), more of it than a sampler may: eta takes
    the values 1 to 1.85 in six steps, and the fresh noise is multiplied by 1 to 1.04.

    Tier T3. Reference: Lu et al., "When Are Concepts Erased From Diffusion Models?", NeurIPS 2025,
    arXiv:2505.17013. Code: kevinlu4588/WhenAreConceptsErased.

    Deviations: the start latent is that of the case's seed for every variant. Each variant has
    random numbers of its own (in the official code they go on from variant to variant). After the
    24 pairs of eta and scale, the pairs are drawn again with other noise.

    Cost: as many images for each case as the budget allows. Its control is as many fresh seeds: a
    best of 24 needs no probe.
    """

    name: ClassVar[str] = "noise_probe"
    summary: ClassVar[str] = "the plain prompt by a sampler with too much noise"
    paper: ClassVar[str] = "Lu et al., NeurIPS 2025, arXiv:2505.17013"
    tier: ClassVar[str] = "T3"
    controls: ClassVar = ("seed_search",)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        one = deployed.per_image(goal.guidance)
        self.afford(budget, one)
        images = budget // one
        rows = images * len(goal.cases)
        return Plan(images, forward=rows * one, skipped=rows * deployed.steps)

    @torch.no_grad()
    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        rows = [(i, k) for i in range(len(goal.cases)) for k in range(plan.images)]
        attempts = []
        with deployed.active() as model:
            grid = [*model.schedule.timesteps(deployed.steps), model.schedule.end]
            rngs = {(i, k): torch.Generator().manual_seed(seed) for i, k, seed in self._seeds(goal, plan.images)}
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                eta, scale = (
                    torch.tensor([of[(k // every) % len(of)] for _, k in part], device=model.device).reshape(-1, 1, 1, 1)
                    for of, every in ((ETAS, 1), (SCALES, len(ETAS)))
                )
                c = Cond.cat([model.encode([goal.cases[i].prompt]) for i, _ in part])
                z = model.case_noise([goal.cases[i].seed for i, _ in part])
                steer = model.steering(c, goal.guidance)
                with model.constant_context():
                    for t, t_next in pairwise(grid):
                        after, _ = model.schedule.step(steer(z, t), z, t, t_next, None, "ddim")
                        levels = [tuple(x.to(z) for x in model.schedule.coefficients(level)) for level in (t, t_next)]
                        fresh = torch.cat([model.noise(1, rngs[row]) for row in part])
                        z = with_fresh_noise(z, after, levels[0], levels[1], eta, scale, fresh)
                for (i, _), latent, e, s in zip(part, z.split(1), eta.flatten(), scale.flatten(), strict=True):
                    told = f"eta {float(e):.2f}, noise times {float(s):.2f}"
                    case = goal.cases[i]
                    attempts.append(Attempt(i, case.prompt, case.seed, told, latent=latent.cpu(), taken=deployed.steps))
        return attempts

    def _seeds(self, goal: Goal, images: int) -> list[tuple[int, int, int]]:
        """A seed of the fresh noise for every image of every case."""
        drawn = [torch.randint(2**31, (images,), generator=rng_of(self.seed, case)).tolist() for case in goal.cases]
        return [(i, k, seed) for i, seeds in enumerate(drawn) for k, seed in enumerate(seeds)]
