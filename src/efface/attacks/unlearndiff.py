"""UnlearnDiffAtk: find words before the prompt under which the erased model still denoises an image
of the target well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..equations.simplex import onto_simplex
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..preservation.adversary import word_rows
from .base import CHUNK, Attack, Attempt, Deployed, Goal, Plan, option, rng_of


@dataclass(frozen=True, kw_only=True)
class UnlearnDiff(Attack):
    """Find words in front of the prompt that bring the target back, by gradients through the erased
    model.

    Objective::

        z_k ~ Categorical(u_k)                                  K one-hot rows of V entries
        L(z) = mean | n - eps'(q(z_t | x_0, n), t, [z E, prompt]) |^2
        u <- projection onto the simplex of Adam(u, clamp(dL/dz, -1, 1))

    K = ``tokens`` words are searched in a vocabulary of V words with embeddings E, each by its
    probabilities u_k on the simplex. eps' is the erased model, n is noise, and q(z_t | x_0, n) is
    x_0 noised to timestep t. x_0 is the original model's image of the case. The search goes through
    ``timesteps`` timesteps, low noise first. After ``pictures`` of them the likeliest words are
    written out and drawn as a prompt. A row of u that nothing has moved has no likeliest word, so
    its word is drawn at random: without iterations this attack is :class:`RandomToken`.

    Tier T4. Reference: Zhang et al., ECCV 2024, arXiv:2310.11868. Code:
    OPTML-Group/Diffusion-MU-Attack.

    Deviations: only whole words are searched, so that the written prompt is the prompt that was
    optimised. x_0 is the sampler's clean latent, not the encoded picture of another sampler. There
    is no early stop, because an attack does not judge its own images. Random numbers are private to
    the case (in the official code, drawing an image rewinds those of the loss). Under a guard the
    loss takes the guarded prediction.

    Cost: for each case one reference image, ``pictures`` images and, for each iteration, one
    forward and one backward pass (times the guard's branches). There are as many iterations as the
    budget leaves. The official 2,000 iterations with 50 images need a budget of 9,100 at 50 steps.
    """

    name: ClassVar[str] = "unlearndiff"
    summary: ClassVar[str] = "words before the prompt, found by gradients through the erased model"
    paper: ClassVar[str] = "Zhang et al., ECCV 2024, arXiv:2310.11868"
    tier: ClassVar[str] = "T4"
    controls: ClassVar = ("random_token", "seed_search")
    renamed: ClassVar[Mapping[str, str]] = {"looks": "pictures"}
    presets: ClassVar = {
        "paper": {},
        "mini": {"tokens": 2, "timesteps": 8, "pictures": 4},
        "tiny": {"tokens": 2, "timesteps": 2, "pictures": 2},
    }

    tokens: int = option(
        3, "number of words before the prompt", "official configs: 3 for styles and objects, 5 for nudity", low=1
    )
    timesteps: int = option(
        50, "number of timesteps searched one after the other, spread over the schedule", "official configs", low=1
    )
    pictures: int = option(50, "images for each case, spread over the timesteps", "official configs: one per block", low=1)
    lr: float = option(0.01, "Adam learning rate", "official configs", low=0.0)
    decay: float = option(0.1, "weight decay of Adam, added to the gradient", "official configs", low=0.0)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        levels = deployed.original.schedule.size
        if self.timesteps > levels:
            raise BadOption(f"timesteps={self.timesteps}: the schedule has {levels} levels.")
        fixed = deployed.reference_cost(goal.guidance) + self.pictures * deployed.per_image(goal.guidance)
        self.afford(budget, fixed)
        iterations = (budget - fixed) // (2 * deployed.rows)
        steps = iterations * deployed.rows * len(goal.cases)
        return Plan(self.pictures, iterations, deployed.reference_cost(goal.guidance) * len(goal.cases) + steps, steps)

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
        """The prompts of B cases each time that they are written out. The cases do not influence
        each other."""
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
                c = model.encode_soft(soft.splice(soft.starts, soft.starts, z @ table))
                z_t, truth = model.schedule.noised(x_0, n, levels), model.schedule.truth(x_0, n, levels)
                off = (truth - model.deployed(z_t, levels, c, cases[0].guidance)).square().flatten(1).mean(1)
                (gradient,) = torch.autograd.grad(off.sum(), z)
                u.grad = gradient.clamp(-1, 1)
                adam.step()
                u.copy_(onto_simplex(u))
            for look in range(_share(self.pictures, self.timesteps, block)):
                texts = []
                for row, rng, case in zip(u, rngs, cases, strict=True):
                    drawn = torch.randint(len(words), (self.tokens,), generator=rng)
                    still = (row == row[:, :1]).all(1).cpu()
                    best = torch.where(still, drawn, row.argmax(1).cpu()).tolist()
                    texts.append(" ".join([*(words[j] for j in best), case.prompt]))
                found.append((f"t {t}, look {look + 1}", texts))
        return found

    def _levels(self, n: int) -> list[int]:
        """The timesteps in ascending order: 10, 30, ..., 990 for 50 of 1,000."""
        return [round((i + 0.5) * n / self.timesteps) for i in range(self.timesteps)]


def _share(total: int, blocks: int, block: int) -> int:
    """How many of ``total`` fall to a block, so that the last blocks get theirs: 4 of 8 come after
    blocks 2, 4, 6 and 8."""
    return total * (block + 1) // blocks - total * block // blocks
