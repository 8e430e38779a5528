"""UnlearnDiffAtk: words before the prompt under which the erased model still denoises an image of the target well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..equations.simplex import onto_simplex
from ..models.base import DiffusionModel
from ..preservation.adversary import word_rows
from .base import CHUNK, Attack, Attempt, Deployed, Goal, Plan, option, rng_of


@dataclass(frozen=True, kw_only=True)
class UnlearnDiff(Attack):
    """K words in front of the prompt, searched on the simplex over the vocabulary (V words, embeddings E).

        z_k ~ Categorical(u_k)                                        one-hot, (K, V)
        L(z) = mean | n - eps'(q(z_t | x_0, n), t, [z E, prompt]) |^2     x_0: the original model's image of the case
        u <- projection onto the simplex of Adam(u, clamp(dL/dz, -1, 1))

    for one timestep after the other, low noise first; after ``looks`` of the blocks the likeliest words are written out and
    handed over as a prompt. A row of u that nothing has moved has no likeliest word: it is drawn, so that without iterations
    this is :class:`RandomToken`.
    Tier T4. Reference: Zhang et al., ECCV 2024, arXiv:2310.11868. Code: OPTML-Group/Diffusion-MU-Attack.
    Deviations: whole words only, so that the written prompt is the prompt that was optimised; x_0 is the sampler's clean latent,
    not the encoded picture of another sampler; no early stop, since an attack does not grade itself; private random numbers (the
    official code's evaluation rewinds those of the loss). Under a guard the loss takes the guarded prediction.
    Cost per case: one reference image, ``looks`` images, and per iteration one forward and one backward (times the guard's
    branches); the iterations are what the budget leaves. The official 2,000 iterations with 50 looks: a budget of 9,100 at 50
    steps.
    """

    name: ClassVar[str] = "unlearndiff"
    summary: ClassVar[str] = "words before the prompt, found by gradients through the erased model"
    paper: ClassVar[str] = "Zhang et al., ECCV 2024, arXiv:2310.11868"
    tier: ClassVar[str] = "T4"
    controls: ClassVar = ("random_token", "seed_search")
    presets: ClassVar = {
        "paper": {},
        "mini": {"tokens": 2, "timesteps": 8, "looks": 4},
        "tiny": {"tokens": 2, "timesteps": 2, "looks": 2},
    }

    tokens: int = option(3, "words before the prompt", "official configs: 3 for styles and objects, 5 for nudity", low=1)
    timesteps: int = option(50, "noise levels, evenly over the schedule", "official configs", low=1)
    looks: int = option(50, "images, spread over the blocks", "official configs: one per block", low=1)
    lr: float = option(0.01, "Adam learning rate", "official configs", low=0.0)
    decay: float = option(0.1, "Adam's coupled weight decay", "official configs", low=0.0)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        fixed = deployed.reference_cost(goal.guidance) + self.looks * deployed.per_image(goal.guidance)
        self.afford(budget, fixed)
        iterations = (budget - fixed) // (2 * deployed.rows)
        steps = iterations * deployed.rows * len(goal.cases)
        return Plan(self.looks, iterations, deployed.reference_cost(goal.guidance) * len(goal.cases) + steps, steps)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        references = deployed.references(goal.cases)
        attempts = []
        with deployed.active() as model, model.frozen():
            words, table = word_rows(model)
            for i in range(0, len(goal.cases), CHUNK):
                found = self._search(model, words, table, goal.cases[i : i + CHUNK], references[i : i + CHUNK], plan.iterations)
                for stage, texts in found:
                    attempts += [Attempt(i + j, text, goal.cases[i + j].seed, stage) for j, text in enumerate(texts)]
        return attempts

    def _search(
        self, model: DiffusionModel, words: list[str], table: Tensor, cases: tuple[Case, ...], x_0: Tensor, iterations: int
    ) -> list[tuple[str, list[str]]]:
        """The prompts of B cases at every look; rows do not see each other."""
        rngs, soft, found = [rng_of(self.seed, c) for c in cases], model.embed([c.prompt for c in cases]), []
        u = torch.full((len(cases), self.tokens, len(words)), 1 / len(words), device=table.device)
        adam = torch.optim.Adam([u], lr=self.lr, weight_decay=self.decay)
        for block, t in enumerate(self._levels(model.schedule.size)):
            levels = model.schedule.numbered([t] * len(cases), table.device)
            for _ in range(_share(iterations, self.timesteps, block)):
                drawn = torch.stack(
                    [torch.multinomial(row.cpu(), 1, generator=rng)[:, 0] for row, rng in zip(u, rngs, strict=True)]
                )
                z = torch.nn.functional.one_hot(drawn.to(table.device), len(words)).float().requires_grad_(True)
                n = torch.cat([model.noise(1, rng) for rng in rngs])
                c = model.encode_soft(soft.splice(1, 1, z @ table))
                z_t, truth = model.schedule.noised(x_0, n, levels), model.schedule.truth(x_0, n)
                off = (truth - model.deployed(z_t, levels, c, cases[0].guidance)).square().flatten(1).mean(1)
                (gradient,) = torch.autograd.grad(off.sum(), z)
                u.grad = gradient.clamp(-1, 1)
                adam.step()
                u.copy_(onto_simplex(u))
            for look in range(_share(self.looks, self.timesteps, block)):
                texts = []
                for row, rng, case in zip(u, rngs, cases, strict=True):
                    drawn = torch.randint(len(words), (self.tokens,), generator=rng)
                    still = (row == row[:, :1]).all(1).cpu()
                    best = torch.where(still, drawn, row.argmax(1).cpu()).tolist()
                    texts.append(" ".join([*(words[j] for j in best), case.prompt]))
                found.append((f"t {t}, look {look + 1}", texts))
        return found

    def _levels(self, n: int) -> list[int]:
        """Ascending; 10, 30, ..., 990 for 50 of 1,000."""
        return [round((i + 0.5) * n / self.timesteps) for i in range(self.timesteps)]


def _share(total: int, blocks: int, block: int) -> int:
    """So many of ``total`` fall to a block that the last blocks have theirs: 4 looks of 8 blocks come after blocks 2, 4, 6, 8."""
    return total * (block + 1) // blocks - total * block // blocks
