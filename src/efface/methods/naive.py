"""Naive erasure: the target's prediction becomes the anchor's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import mse_loss

from ..concepts.request import EraseRequest
from ..models.base import DiffusionModel
from ..models.select import SELECTIONS, selection
from ..patches import Patch
from ..training import Run, training
from .base import Method, option


@dataclass(frozen=True, kw_only=True)
class Naive(Method):
    """Map the target to the anchor and preserve nothing.

        (z_t, t) = the student's guided trajectory for c_e from noise down to a random grid level
        loss     = mean | eps'(z_t, t, c_e) - eps(z_t, t, c_anchor) |^2

    Reference: the first term of adversarial preservation (NeurIPS 2024) alone; no official default set exists, the
    values are those of the legacy ESD code. ``preserve`` of the request is not used: that is what makes it naive.
    Cost: 2 k + 2 evaluations per step, k uniform on 0 .. S-1 (51 at S = 50), one of them with backward.
    """

    name: ClassVar[str] = "naive"
    summary: ClassVar[str] = "map the target to the anchor, preserve nothing"
    paper: ClassVar[str] = "baseline L1 of Bui et al., NeurIPS 2024"
    presets: ClassVar = {
        "paper": {},
        "mini": {"steps": 150, "lr": 5e-4, "sampling_steps": 12, "batch": 4},
        "tiny": {"steps": 3, "sampling_steps": 5},
    }

    steps: int = option(1000, "weight updates", "train-esd.py", low=0)
    lr: float = option(1e-5, "Adam learning rate", "train-esd.py", low=0.0)
    batch: int = option(1, "trajectories per update", "train-esd.py", low=1)
    sampling_steps: int = option(50, "grid of the partial sampling", "train-esd.py", low=2)
    guidance: float = option(3.0, "guidance of the partial sampling", "train-esd.py")
    train: str = option("xattn", "trained parameters", "train-esd.py", choices=tuple(SELECTIONS))
    seed: int = option(0, "training seed", "ours")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        return self.steps * self.batch * (2 * (self.sampling_steps - 1) / 2 + 2)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        spent, select = model.evals.snapshot(), selection(self.train)
        student = model.student(select)
        c_targets, c_anchor = model.encode(request.targets), model.encode([request.anchor] * self.batch)
        for step in training(student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run or Run()):
            c_e = c_targets[[step.randint(len(c_targets)) for _ in range(self.batch)]]
            k = step.randint(self.sampling_steps)
            z_t, t = student.sample_until(c_e, k, self.sampling_steps, model.noise(self.batch, step.rng), self.guidance)
            with torch.no_grad():
                goal = model.predict(z_t, t, c_anchor)
            step.log(k=k)
            step.minimize(erase=mse_loss(student.predict(z_t, t, c_e), goal))
        return Patch.between(model.weights(select), student.weights(select), self.card(model, request, spent))
