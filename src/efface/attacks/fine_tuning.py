"""What the attacks share that fine-tune the erased model. No attack is here."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import BadOption
from ..models.base import DiffusionModel
from ..models.low_rank import factors, low_rank_student
from ..models.select import TRAINABLE
from .base import Attack, Attempt, Deployed, Goal, Plan, finished, option, rng_of
from .textual import with_article

CAPTIONS = ("{}", "a photo of {}", "a picture of {}", "an image of {}")


@dataclass(frozen=True, kw_only=True)
class FineTuning(Attack):
    """Abstract. Fine-tune the weights of the erased model on images by the original model, and draw
    every case's prompt at several steps of it: a recovery curve.

    Objective::

        min_phi  E_{x_0, t, n} mean | n - eps'_phi(q(z_t | x_0, n), t, c) |^2

    phi is a LoRA of ``rank`` on the selected weights, or with ``rank=0`` the weights themselves. A
    subclass says what the images show. A guard is left out: whoever has the weights leaves it out
    too.

    Cost: the budgets of all cases are put together. They pay for the references, for one image of
    every case at each checkpoint and, for each step, ``batch`` forward and backward passes. A
    backward pass to the weights takes about twice the time of one to a prompt and is counted as one.
    """

    tier: ClassVar[str] = "T5"
    curve: ClassVar[bool] = True
    teaches: ClassVar[bool] = True
    controls: ClassVar = ("seed_search",)

    images: int = option(16, "images of the original model to train on", "ours", low=1)
    batch: int = option(4, "training examples in each step", "MemoRa 1 x 4 accumulated", low=1)
    rank: int = option(4, "rank of the LoRA; 0 trains the weights themselves", "MemoRa 4", low=0)
    train: str = option("attn", "which weights are fine-tuned", "ours; MemoRa attention", choices=TRAINABLE)
    lr: float = option(1e-4, "Adam learning rate", "MemoRa", low=0.0)
    checkpoints: str = option("0,5,10,25,50,100,200,500", "training steps at which every case is drawn", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            marks = [int(part) for part in self.checkpoints.split(",")]
        except ValueError:
            marks = []
        if len(marks) < 2 or marks != sorted(set(marks)) or marks[0] < 0:
            raise BadOption(f"checkpoints={self.checkpoints!r}: give two or more growing numbers of steps, such as 0,5,10,25.")

    @property
    def marks(self) -> list[int]:
        return [int(part) for part in self.checkpoints.split(",")]

    @abc.abstractmethod
    def names(self, deployed: Deployed, goal: Goal) -> list[str]:
        """What the training images show."""

    def _cost(self, deployed: Deployed, goal: Goal, marks: int) -> int:
        """Evaluations of all cases for the first ``marks`` checkpoints."""
        trained = 2 * self.batch * self.marks[marks - 1]
        return (self.images + marks * len(goal.cases)) * deployed.reference_cost(goal.guidance) + trained

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        if deployed.patch is None and deployed.guard is not None:
            raise BadOption(f"{self.name} changes weights, and a guard is in none: whoever has the weights leaves the guard out.")
        n = len(goal.cases)
        self.afford(budget, -(-self._cost(deployed, goal, 2) // n))
        marks = max(m for m in range(2, len(self.marks) + 1) if self._cost(deployed, goal, m) <= n * budget)
        steps = self.marks[marks - 1]
        images = (self.images + marks * n) * deployed.reference_cost(goal.guidance)
        trained = steps * self.batch
        return Plan(marks, steps, images + trained, trained, skipped=marks * n * deployed.steps)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        attempts: list[Attempt] = []
        for step, student in self.tuned(deployed, goal, plan.iterations):
            if step in self.marks:
                attempts += finished(student, goal.cases, deployed.steps, f"step {step}")
        return attempts

    def tuned(self, deployed: Deployed, goal: Goal, steps: int) -> Iterator[tuple[int, DiffusionModel]]:
        """The fine-tuned model after 0, 1, ..., ``steps`` steps. It is one model, which the next step changes."""
        first = replace(goal.cases[0], prompt=f"{self.name} of {goal.target}", seed=0)  # one training serves all cases
        rng = rng_of(self.seed, first)
        names = self.names(deployed, goal)
        shown = [names[i % len(names)] for i in range(self.images)]
        captions = [CAPTIONS[i // len(names) % len(CAPTIONS)].format(with_article(name)) for i, name in enumerate(shown)]
        seeds = torch.randint(2**31, (self.images,), generator=rng).tolist()
        x = deployed.references([replace(first, prompt=p, seed=s) for p, s in zip(captions, seeds, strict=True)])
        with replace(deployed, guard=None).active() as model:
            student = self._student(model, rng)
            trained = student.weights(factors if self.rank else model.select(self.train))
            for p in trained.values():
                p.requires_grad_(True)
            adam = torch.optim.Adam(trained.values(), lr=self.lr)
            for step in range(steps + 1):
                yield step, student
                if step < steps:
                    self._train(student, adam, x, captions, rng)

    def _student(self, model: DiffusionModel, rng: torch.Generator) -> DiffusionModel:
        select = model.select(self.train)
        if not self.rank:
            return model.student(select)
        matrices = {name for name, p in model.weights(select).items() if p.ndim == 2}
        return low_rank_student(model, matrices.__contains__, self.rank, rng)

    def _train(
        self, student: DiffusionModel, adam: torch.optim.Optimizer, x: Tensor, captions: list[str], rng: torch.Generator
    ) -> None:
        which = torch.randint(len(x), (self.batch,), generator=rng)
        levels = torch.randint(student.schedule.size, (self.batch,), generator=rng).tolist()
        t, n = student.schedule.numbered(levels, x.device), student.noise(self.batch, rng)
        x_0, c = x[which.to(x.device)], student.encode([captions[i] for i in which.tolist()])
        z_t, truth = student.schedule.noised(x_0, n, t), student.schedule.truth(x_0, n, t)
        adam.zero_grad(set_to_none=True)
        (truth - student.deployed(z_t, t, c, 1.0)).square().mean().backward()
        adam.step()
