"""Concept inversion: learn one new word for the target against the erased model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..models.cond import Cond
from ..preservation.adversary import word_rows
from ..training.learned import Learned
from .base import Attack, Attempt, Deployed, Goal, Plan, option, own_and_fresh, rng_of

TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}", "an image of a {}")


@dataclass(frozen=True, kw_only=True)
class ConceptInversion(Attack):
    """Learn one new word that makes the erased model draw the target, from images by the original
    model.

    Objective::

        v* = argmin_v  E_{x_0, t, n} mean | n - eps'(q(z_t | x_0, n), t, [template with v]) |^2

    v is an input embedding in the place of the target's name; everything else is frozen. eps' is
    the erased model, n is noise and q(z_t | x_0, n) is x_0 noised to timestep t. x_0 are
    ``references`` images of the target by the original model, on seeds of their own. v starts at
    the mean of the vocabulary. One v serves all cases: in every prompt it stands where the name
    stood.

    Tier T4. Reference: Pham et al., ICLR 2024, arXiv:2308.01508. The code has no licence, so this
    was written from the description.

    Deviations: Adam has no weight decay and works on float32. x_0 is the sampler's clean latent.
    The start is no word (officially "art", "object" or "person"). Under a guard the loss takes the
    guarded prediction. Learning a word can also teach a concept: what counts is by how much the
    result exceeds that for a concept which the attacked model never saw.

    Cost: the budgets of all cases are put together. They pay for ``references`` images of the
    original model, for ``pictures`` images for each case and, for each step, ``batch`` forward and
    backward passes (times the guard's branches). The official 5,000 steps of 16 cost 160,000 UNet
    evaluations and the images.
    """

    name: ClassVar[str] = "concept_inversion"
    summary: ClassVar[str] = "a new word for the target, learned against the erased model"
    paper: ClassVar[str] = "Pham et al., ICLR 2024, arXiv:2308.01508"
    tier: ClassVar[str] = "T4"
    controls: ClassVar = ("seed_search",)
    teaches: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {"looks": "pictures"}
    presets: ClassVar = {
        "paper": {},
        "mini": {"references": 8, "batch": 8, "lr": 0.01},
        "tiny": {"references": 2, "batch": 2, "pictures": 1},
    }

    references: int = option(25, "images of the original model to learn from", "official train.sh", low=1)
    batch: int = option(16, "training examples in each step", "official 4 x 4 accumulated", low=1)
    lr: float = option(0.08, "Adam learning rate", "official 5e-3, scaled by 4 x 4", low=0.0)
    pictures: int = option(2, "images for each case, the first with the case's seed", "ours", low=1)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        n = len(goal.cases)
        fixed = self.references * deployed.reference_cost(goal.guidance) + n * self.pictures * deployed.per_image(goal.guidance)
        self.afford(budget, -(-fixed // n))
        iterations = (n * budget - fixed) // (2 * self.batch * deployed.rows)
        steps = iterations * self.batch * deployed.rows
        return Plan(self.pictures, iterations, self.references * deployed.reference_cost(goal.guidance) + steps, steps)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        calls = goal.calls
        texts = [TEMPLATES[i // len(calls) % len(TEMPLATES)].format(calls[i % len(calls)].phrase) for i in range(self.references)]
        first = replace(
            goal.cases[0], prompt=f"references of {goal.target}", seed=0
        )  # one search serves all cases, so it has no case of its own
        rng = rng_of(self.seed, first)
        seeds = torch.randint(2**31, (self.references,), generator=rng).tolist()
        x = deployed.references([replace(first, prompt=p, seed=s) for p, s in zip(texts, seeds, strict=True)])
        with deployed.active() as model, model.frozen():
            v = Learned([word_rows(model)[1].mean(0)[None]], self.lr)

            def encoded(prompt: str, word: str, n: int) -> Cond:
                place = model.locate(prompt, word)
                return model.encode_soft(model.embed([prompt] * n).splice(place.start, place.stop, v.values[0]))

            for _ in range(plan.iterations):
                which = torch.randint(len(x), (self.batch,), generator=rng)
                t = model.schedule.numbered(torch.randint(model.schedule.size, (self.batch,), generator=rng).tolist(), x.device)
                template = TEMPLATES[int(torch.randint(len(TEMPLATES), (1,), generator=rng))]
                own = int(which[0]) % len(calls)  # all images of a step are of one object, which the text names
                mine = torch.arange(own, len(x), len(calls))
                which = mine[which // len(calls) % len(mine)]
                text, word = template.format(calls[own].phrase), calls[own].word
                n, x_0 = model.noise(self.batch, rng), x[which.to(x.device)]
                z_t, truth = model.schedule.noised(x_0, n, t), model.schedule.truth(x_0, n, t)
                (truth - model.deployed(z_t, t, encoded(text, word, self.batch), goal.guidance)).square().mean().backward()
                v.update([0])
            attempts = []
            with torch.no_grad():
                for i, case in enumerate(goal.cases):
                    seeds = own_and_fresh(case, plan.images, rng_of(self.seed, case))
                    word = goal.call(i).word
                    c, shown = encoded(case.prompt, word, 1), case.prompt.replace(word, "<learned>")
                    for k, seed in enumerate(seeds):
                        attempts.append(Attempt(i, shown, seed, f"look {k + 1}", c))
        return attempts
