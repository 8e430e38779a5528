"""What the output-based methods share: how they train and where their latents come from. No algorithm is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..concepts.request import EraseRequest
from ..equations.diffusion import eps_loss_weight, x0_loss_weight
from ..errors import BadOption
from ..latents import POOLED, SAMPLERS, Latents, Pool, Trajectories, draw_cost
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.select import UNET_SELECTIONS
from .base import Method, option

KEPT = "sampler=" + "|".join(POOLED)


@dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """Abstract. ``sampler`` says where z_t comes from:

    - "student": the network being trained walks to it, as the legacy codes do;
    - "frozen": the frozen model walks to it, as the newer ESD code does;
    - "pool": latents of the frozen model, walked once per concept and drawn from then on: the distribution of "frozen" up to the
      finite number of trajectories;
    - "harvest": latents of the student, walked again after ``lifetime`` updates;
    - "noised": clean latents of the frozen model, walked once and noised to any timestep.
    """

    defaults: ClassVar = {"steps": 100, "lr": 1e-3, "sampling_steps": 12, "batch": 4, "sampler": "pool"}
    """What every output-based method takes on the miniature: the same budget."""
    official_code: ClassVar = {"eta": 1.0, "loss_space": "x0", "metric": "l2", "alignment": "official", "exclude_targets": False}
    """Where the official codes of AP and AGE differ from their papers."""

    steps: int = option(1000, "weight updates", "legacy codes --iterations; esd_sd.py 200", low=0)
    lr: float = option(1e-5, "Adam learning rate", "legacy codes --lr; esd_sd.py 5e-5", low=0.0)
    batch: int = option(1, "rows per update, over all processes", "legacy codes", low=1)
    train: str = option("xattn", "trained parameters", "legacy codes (nudity: noxattn)", choices=UNET_SELECTIONS)
    sampler: str = option("student", "where z_t comes from", "legacy codes student; esd_sd.py frozen", choices=SAMPLERS)
    pool: int = option(8, "trajectories per target of a pooled sampler", "ours", low=1, needs=KEPT)
    lifetime: int = option(10, "updates a harvested trajectory serves", "ours", low=1, needs="sampler=harvest")
    sampling_steps: int = option(50, "grid of the partial sampling", "legacy codes --ddim_steps", low=2)
    solver: str = option(
        "ddim", "solver of the partial sampling", "legacy codes; esd_sd.py plms; dpm ours", choices=("ddim", "dpm", "plms")
    )
    guidance: float = option(3.0, "guidance of the partial sampling", "legacy codes --start_guidance")
    alignment: str = option(
        "exact", "noise level of z_t against t", "esd_sd.py exact; legacy codes official", choices=("exact", "official")
    )
    loss_space: str = option(
        "output",
        "what losses compare: the network's output (eps or v), noise, or clean latents",
        "papers' noise models output; official AP and AGE x0",
        choices=("output", "eps", "x0"),
    )
    seed: int = option(0, "training seed", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler in POOLED and self.official:
            raise BadOption(
                f"sampler={self.sampler} keeps every level of a trajectory, so alignment=official does not exist for it; "
                "use sampler=student."
            )
        if self.solver == "plms" and (self.sampler in POOLED or self.official):
            raise BadOption(
                "solver=plms visits its second level twice, for which there are no pooled latents and no official alignment; use "
                "sampler=student or frozen with alignment=exact, or solver=ddim."
            )

    @property
    def per_candidate(self) -> int:
        """Trajectories of what is drawn beside the targets."""
        return 1

    @property
    def official(self) -> bool:
        return self.alignment == "official"

    def latents(
        self, model: DiffusionModel, student: DiffusionModel, request: EraseRequest, candidates: Sequence[Sequence[str]] = ()
    ) -> Latents:
        """The source that ``sampler`` names; a pool of the frozen model is filled with the targets and their candidates."""
        if self.sampler in POOLED:
            pool = Pool(
                student if self.sampler == "harvest" else model,
                steps=self.sampling_steps,
                trajectories=self.per_candidate,
                more=dict.fromkeys(request.targets, self.pool),
                guidance=self.guidance,
                solver=self.solver,
                seed=self.seed,
                batch=self.batch,
                lifetime=self.lifetime if self.sampler == "harvest" else None,
                forward=self.sampler == "noised",
            )
            if self.sampler != "harvest":
                pool.fill([*request.targets, *(name for group in candidates for name in group)])
            return pool
        return Trajectories(
            student if self.sampler == "student" else model,
            steps=self.sampling_steps,
            guidance=self.guidance,
            official=self.official,
            solver=self.solver,
            batch=self.batch,
        )

    def fill_cost(self, request: EraseRequest, candidates: Sequence[Sequence[str]] = ()) -> int:
        """Evaluations that filling a frozen pool takes; 0 without one. "harvest" has no fixed cost: every concept costs as much
        again each time it is drawn and older than ``lifetime`` updates."""
        per_trajectory = {"pool": 2 * (self.sampling_steps - 1), "noised": 2 * self.sampling_steps}.get(self.sampler, 0)
        kept = {name for group in candidates for name in group} - set(request.targets)
        return per_trajectory * (self.pool * len(request.targets) + self.per_candidate * len(kept))

    def draw_cost(self, groups: int) -> float:
        """Mean evaluations per row of drawing latents for ``groups`` conditionings; 0 for a pool."""
        return 0.0 if self.sampler in POOLED else draw_cost(groups, self.sampling_steps, self.official)

    def mse(self, model: DiffusionModel, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """(B,) mean squared difference per row in the space of ``loss_space``; a, b: (B, C, h, w) predictions at t."""
        square = (a - b).square()
        if self.loss_space != "output":
            if self.official:  # z_t's label is drawn within a grid step, the weight is that of the step's own level
                stride = len(model.schedule.alphas_cumprod) // self.sampling_steps
                t = t // stride * stride + model.schedule.steps_offset
            weight = x0_loss_weight if self.loss_space == "x0" else eps_loss_weight
            square = square * weight(model.schedule.ab(t).to(a), model.schedule.prediction_type)
        return square.flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class Searching(Trained):
    """Abstract. Draws latents for searched concepts, too."""

    pool_kept: int = option(1, "trajectories per candidate of a pooled sampler, which is drawn rarely", "ours", low=1, needs=KEPT)

    @property
    def per_candidate(self) -> int:
        return self.pool_kept

    def need_hard(self, hard: bool) -> None:
        """Raises BadOption for a pooled sampler whose searched concept is a mixture."""
        if self.sampler in POOLED and not hard:
            raise BadOption(
                f"sampler={self.sampler} needs hard=true: a mixture of candidates has no cached latents. Use sampler=student."
            )


def predictions(network: DiffusionModel, parts: Sequence[tuple[Tensor, Cond]], t: Tensor) -> list[Tensor]:
    """The outputs for several (z_t, conditionings) at one t (B,), all in one call; (B, C, h, w) each."""
    z = torch.cat([z for z, _ in parts])
    return list(network.predict(z, t.repeat(len(parts)), Cond.cat([c for _, c in parts])).chunk(len(parts)))
