"""KPOP: learnable prompts take the target in while the weights let it go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..concepts.request import EraseRequest
from ..equations.guidance import away_from
from ..models.base import DiffusionModel
from ..patches import Patch
from ..training.learned import Learned
from ..training.loop import Run
from ..training.processes import share
from ..training.scene import predictions
from .base import option
from .trained import Trained


@dataclass(frozen=True, kw_only=True)
class KPOP(Trained):
    """Move the target into a learnable prompt that is dropped afterwards, and erase it from the
    weights.

    Objective::

        transfer   p      <-  Adam on  | eps'(z_t, t, c_e ; p) - eps(z_t, t, c_e) |^2
        removal    theta' <-  Adam on  | eps'(z_t, t, c_e) - goal |^2
                                       +  lam | eps'(z_t, t, c_e ; p) - aim |^2
        goal = eps_anchor - eta (eps_e - eps_anchor)

    eps' is the network that is trained (weights theta'), eps the frozen model; eps_e and eps_anchor
    are its predictions for the target c_e and for the anchor. p = (p_k, p_v) is the learnable
    prompt: m more tokens that chosen layers attend to, with keys K = W_K [c ; p_k] and values V =
    W_V [c ; p_v]. Transfer moves the prompt alone, removal the weights alone. Every target has a
    prompt of its own, and all layers of ``place`` share it. z_t comes from guided trajectories
    without the prompt (``sampler``; officially the student's).

    Variants: ``with_prompt_target`` sets the aim of the prediction with prompt. "recover": aim =
    eps_e. The prompt stays a key that brings the target back, and the weights need not unlearn what
    it holds. "erase": aim = goal. The prompt is an adversary that the weights must withstand.

    Reference: Bui et al., arXiv:2403.12326 ("Removing Undesirable Concepts in Text-to-Image
    Diffusion Models with Learnable Prompts", since v3 "Hiding and Recovering Knowledge ... via
    Learnable Prompts").

    What is known: the prompt mechanism and its three places (from code that was left in the
    repository of AP); two stages that alternate (from the abstract); m = 10, place mid, lam = 0.1,
    prompt_lr = 1e-5, xattn, lr 1e-5, 1,000 iterations and eta 1 (from the names of released runs).
    What is reconstructed: the equations of both stages, because neither paper nor code were at
    hand, and which of the two aims is meant.

    Deviations: the start of the prompt, Adam, one prompt update per weight update on the same (z_t,
    t), the anchor in place of the empty prompt and exact noise levels by default are ours. With
    Adam, a learning rate of 1e-5 moves an entry by 0.01 in 1,000 updates: tune ``prompt_lr`` before
    you believe it. The learned prompt is not kept. The patch holds weights only, so it erases and
    offers no recovery by key. The request's preserve set is not used.

    Cost: 2 k + 4 + ``prompt_updates`` UNet evaluations per row and step, with k sampler steps to
    z_t, uniform on 0 .. S-1 (54 at S = 50 and one prompt update). One backward pass goes through
    two of them for the weights, and one through each of ``prompt_updates`` for the prompt. With a
    filled pool: 4 + ``prompt_updates``.
    """

    gradient_rows: ClassVar[int] = 2
    name: ClassVar[str] = "kpop"
    summary: ClassVar[str] = "move the target into a learnable prompt that is dropped, and erase it from the weights"
    paper: ClassVar[str] = "Bui et al., arXiv:2403.12326"
    presets: ClassVar = {
        "paper": {},
        "adversary": {"with_prompt_target": "erase"},
        "mini": {**Trained.defaults, "eta": 0.25, "prompt_lr": 1e-2},
        "tiny": {"steps": 3, "sampling_steps": 5, "prompt_size": 2, "prompt_lr": 1e-2},
    }

    eta: float = option(1.0, "how far beyond the anchor, away from the target, the goal lies", "names of released runs")
    lam: float = option(
        0.1, "weight of the term for predictions with the learned prompt", "names of released runs; flag default 0.01", low=0.0
    )
    with_prompt_target: str = option(
        "recover",
        "what is predicted with the prompt: the target (recover) or the goal (erase)",
        "v3",
        choices=("recover", "erase"),
    )
    place: str = option(
        "mid",
        "blocks that attend to the prompt: the middle one, also those after it (midout), or all (inmidout)",
        "names of released runs",
        choices=("mid", "midout", "inmidout"),
    )
    prompt_size: int = option(10, "number of tokens of a prompt", "names of released runs; flag default 1", low=1)
    prompt_init: float = option(0.02, "standard deviation of the prompt's random start", "ours", low=0.0)
    prompt_lr: float = option(1e-5, "Adam learning rate of the prompt", "names of released runs", low=0.0, needs="prompt_updates")
    prompt_updates: int = option(1, "updates of the prompt for each weight update", "prompt_optk 2: every other iteration", low=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "extra_context", *(("places",) if self.place != "inmidout" else ()))

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        per_row = self.draw_cost(model, 1) + 4 + self.prompt_updates
        return self.steps * self.batch * per_row + self.fill_cost(model, request)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent = run or Run(), model.evals.snapshot()
        scene = self.scene(model, request)
        student, c_targets = scene.student, scene.c_targets
        shape = (len(c_targets), 2, self.prompt_size, c_targets.tokens.shape[-1])
        start = self.prompt_init * torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        prompts = Learned(list(start.to(model.device)), self.prompt_lr)  # per target (p_k, p_v): (2, m, d)
        for step in self.updates(scene, run, {"prompts": prompts}):
            drawn, target = scene.draw(step)
            e, c_e = list(share(drawn)), target.cond
            (z_t,), t = scene.latents.draw([target], step)
            with torch.no_grad():
                eps_e, eps_anchor = predictions(model, [(z_t, c_e), (z_t, scene.c_anchor.repeat(len(e)))], t)
            goal = away_from(eps_anchor, eps_e, self.eta)
            # Transfer: the prompt learns what the weights no longer do.
            for _ in range(self.prompt_updates):
                keys, values = prompts.rows(e).unbind(1)
                with student.frozen(), student.extra_context(keys, values, self.place):
                    transfer = scene.distance(student.predict(z_t, t, c_e), eps_e, t).mean()
                    transfer.backward()
                prompts.update(drawn)
                step.log(transfer=float(transfer.detach()))
            # Removal: without the prompt the concept goes; with it, it comes back (or goes as well).
            keys, values = prompts.rows(e).detach().unbind(1)
            with student.extra_context(keys, values, self.place):
                prompted = student.predict(z_t, t, c_e)
            aim = eps_e if self.with_prompt_target == "recover" else goal
            step.minimize(
                erase=scene.distance(student.predict(z_t, t, c_e), goal, t).mean(),
                prompted=self.lam * scene.distance(prompted, aim, t).mean(),
            )
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent))
