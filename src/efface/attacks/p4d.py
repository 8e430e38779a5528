"""P4D: find words under which the erased model predicts what the original predicts for the plain prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..models.base import DiffusionModel
from ..models.tokens import SoftPrompt
from ..preservation.adversary import word_rows
from .base import CHUNK, Attack, Attempt, Deployed, Goal, Plan, option, rng_of


@dataclass(frozen=True)
class _Lesson:
    """What the original model predicted for one case: latents, timesteps and predictions of ``pairs`` draws."""

    z: Tensor
    t: Tensor
    said: Tensor


@dataclass(frozen=True, kw_only=True)
class P4D(Attack):
    """Find words under which the erased model predicts the noise that the original model predicts
    for the plain prompt.

    Objective::

        min_w  mean | eps'(z_t, t, [w]) - eps(z_t, t, p) |^2,    z_t = q(z_t | x_0, n)

    eps' is the erased and eps the original model, p the plain prompt, x_0 the original model's image
    of the case. The words w are vectors that AdamW moves. The prediction is made with the vocabulary
    word nearest to each vector by cosine similarity, and its gradient moves the vector.

    ``mode=n`` replaces the whole prompt by ``tokens`` words. ``mode=k`` keeps the prompt and puts one
    word in front of every ``every`` words of it. After each ``1 / pictures`` of the iterations the
    words are written out and drawn as a prompt.

    Tier T4. Reference: Chin et al., ICML 2024, arXiv:2309.06135. Code: joycenerd/P4D.

    Deviations: only whole words are searched, so that the written prompt is the prompt that was
    optimised. x_0 is the sampler's clean latent (the official code encodes the picture without
    scaling it to [-1, 1]). Padding is the tokenizer's own (official: token 0 while optimising). The
    original model's predictions are made once for ``pairs`` draws of t and n, which the iterations
    take in turn (official: anew at every iteration). In mode k, places are counted in words, not in
    tokens. There is no choice among the written prompts: all are drawn, and others judge. Under a
    guard the loss takes the guarded prediction.

    Cost: for each case one reference image, ``pairs`` evaluations of the original model, ``pictures``
    images, and one forward and one backward pass for each iteration (times the guard's branches).
    """

    name: ClassVar[str] = "p4d"
    summary: ClassVar[str] = "words under which the erased model predicts what the original did"
    paper: ClassVar[str] = "Chin et al., ICML 2024, arXiv:2309.06135"
    tier: ClassVar[str] = "T4"
    controls: ClassVar = ("random_token", "seed_search")
    presets: ClassVar = {
        "paper": {},
        "mini": {"tokens": 4, "pairs": 32, "pictures": 3},
        "tiny": {"tokens": 2, "pairs": 2, "pictures": 2},
    }

    mode: str = option("n", "n replaces the prompt by free words, k puts free words between its own", "paper", choices=("n", "k"))
    tokens: int = option(16, "number of free words", "official", low=1, needs="mode=n")
    every: int = option(3, "words of the prompt behind each free word", "official every_k", low=1, needs="mode=k")
    pairs: int = option(256, "draws of noise level and noise that the original model is asked about", "ours", low=1)
    pictures: int = option(60, "images for each case, spread over the iterations", "official: one every 50 of 3000", low=1)
    lr: float = option(0.1, "AdamW learning rate", "official", low=0.0)
    decay: float = option(0.1, "weight decay of AdamW", "official", low=0.0)

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        fixed = deployed.reference_cost(goal.guidance) + self.pairs + self.pictures * deployed.per_image(goal.guidance)
        self.afford(budget, fixed)
        iterations = (budget - fixed) // (2 * deployed.rows)
        steps = iterations * deployed.rows * len(goal.cases)
        asked = (deployed.reference_cost(goal.guidance) + self.pairs) * len(goal.cases)
        return Plan(self.pictures, iterations, asked + steps, steps)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        lessons = self._ask(deployed, goal)
        attempts = []
        with deployed.active() as model, model.frozen():
            words, table = word_rows(model)
            for cases in self._alike(model, goal.cases):
                found = self._search(model, words, table, goal, cases, [lessons[i] for i in cases], plan.iterations)
                attempts += [
                    Attempt(i, text, goal.cases[i].seed, stage)
                    for stage, texts in found
                    for i, text in zip(cases, texts, strict=True)
                ]
        return attempts

    @torch.no_grad()
    def _ask(self, deployed: Deployed, goal: Goal) -> list[_Lesson]:
        """The original model's predictions for every case."""
        model, found = deployed.original, []
        for case, x_0 in zip(goal.cases, deployed.references(goal.cases).split(1), strict=True):
            rng = rng_of(self.seed, case)
            numbers = torch.randint(model.schedule.size, (self.pairs,), generator=rng).tolist()
            t, n = model.schedule.numbered(numbers, x_0.device), model.noise(self.pairs, rng)
            z = model.schedule.noised(x_0.expand(self.pairs, -1, -1, -1), n, t)
            c = model.encode([case.prompt])
            said = [
                model.prediction(z[i : i + CHUNK], t[i : i + CHUNK], c.repeat(len(t[i : i + CHUNK])))
                for i in range(0, self.pairs, CHUNK)
            ]
            found.append(_Lesson(z, t, torch.cat(said)))
        return found

    def _alike(self, model: DiffusionModel, cases: Sequence[Case]) -> list[list[int]]:
        """Cases whose free words stand at the same places, as many as are attacked in one batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, case in enumerate(cases):
            groups.setdefault(tuple(self._places(model, case.prompt)), []).append(i)
        return [rows[i : i + CHUNK] for rows in groups.values() for i in range(0, len(rows), CHUNK)]

    def _places(self, model: DiffusionModel, prompt: str) -> list[int]:
        """The token positions in front of which free words are put: the start of an empty prompt, or
        every ``every`` words."""
        if self.mode == "n":
            return [model.starts] * self.tokens
        words = prompt.split()
        begun = [" ".join(words[:i]) for i in range(0, len(words), self.every)]
        return [len(ids) - model.ends for ids in model.token_ids(begun)]

    def _written(self, prompt: str, free: Sequence[str]) -> str:
        if self.mode == "n":
            return " ".join(free)
        words = prompt.split()
        parts = [words[i : i + self.every] for i in range(0, len(words), self.every)]
        return " ".join(w for word, part in zip(free, parts, strict=True) for w in (word, *part))

    def _search(
        self,
        model: DiffusionModel,
        words: list[str],
        table: Tensor,
        goal: Goal,
        cases: Sequence[int],
        lessons: Sequence[_Lesson],
        iterations: int,
    ) -> list[tuple[str, list[str]]]:
        """The prompts of B cases each time that they are written out. The cases do not influence each
        other."""
        prompts = [goal.cases[i].prompt for i in cases]
        rngs = [rng_of(self.seed + 1, goal.cases[i]) for i in cases]
        places = self._places(model, prompts[0])
        drawn = torch.stack([torch.randint(len(words), (len(places),), generator=rng) for rng in rngs])
        free = table[drawn.to(table.device)].clone().requires_grad_(True)
        soft = model.embed([""] * len(cases) if self.mode == "n" else prompts)
        adam = torch.optim.AdamW([free], lr=self.lr, weight_decay=self.decay)
        units = torch.nn.functional.normalize(table, dim=1)
        found = []
        for step in range(iterations + 1):
            nearest = (torch.nn.functional.normalize(free.detach(), dim=2) @ units.T).argmax(2)
            for look in range(_due(step, iterations, self.pictures)):
                texts = [self._written(p, [words[j] for j in row]) for p, row in zip(prompts, nearest.tolist(), strict=True)]
                found.append((f"iteration {step}, look {look + 1}", texts))
            if step == iterations:
                break
            projected = table[nearest].requires_grad_(True)
            pair = step % self.pairs
            z, t, said = (torch.stack([getattr(x, part)[pair] for x in lessons]) for part in ("z", "t", "said"))
            c = model.encode_soft(_with(soft, projected, places))
            off = (said - model.deployed(z, t, c, goal.guidance)).square().flatten(1).mean(1)
            (free.grad,) = torch.autograd.grad(off.sum(), projected)
            adam.step()
        return found


def _with(soft: SoftPrompt, rows: Tensor, places: Sequence[int]) -> SoftPrompt:
    """The prompts with vector i in front of position ``places[i]``, all positions counted before anything is put in."""
    for i in reversed(range(len(places))):
        soft = soft.splice(places[i], places[i], rows[:, i : i + 1])
    return soft


def _due(step: int, iterations: int, pictures: int) -> int:
    """How many pictures are due after ``step`` of all iterations: in all ``pictures``, evenly spread, the last at the end."""
    if iterations == 0:
        return pictures
    return pictures * step // iterations - pictures * max(step - 1, 0) // iterations
