"""KPOP: learnable prompts take the concept in while the weights let it go."""

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
    """Move the concept into a prompt that is dropped, and erase it from the weights.

        with a prompt p = (p_k, p_v), chosen layers attend to K = W_K [c ; p_k], V = W_V [c ; p_v]    (m more tokens)
        transfer   p      <-  Adam on  | eps'(z_t, t, c_e ; p) - eps(z_t, t, c_e) |^2                        weights fixed
        removal    theta' <-  Adam on  | eps'(z_t, t, c_e) - goal |^2  +  lam | eps'(z_t, t, c_e ; p) - aim |^2    p fixed
        goal = eps_anchor - eta (eps_e - eps_anchor)       aim = eps_e ("recover") or goal ("erase")

    z_t comes from guided trajectories without prompt (``sampler``; officially the student's). Every target has its own p; all
    layers of ``place`` share it. "recover": the prompt stays a key that brings the concept back, and the weights need not
    unlearn what it holds. "erase": the prompt is an adversary that the weights must withstand.

    Reference: Bui et al., arXiv:2403.12326 ("Removing Undesirable Concepts in Text-to-Image Diffusion Models with Learnable
    Prompts", since v3 "Hiding and Recovering Knowledge ... via Learnable Prompts").
    Certain: the prompt mechanism and its three places (code left in the repository of AP); two stages that alternate
    (abstract); m = 10, place mid, lam = 0.1, prompt_lr = 1e-5, xattn, lr 1e-5, 1000 iterations, eta 1 (names of released runs).
    Reconstruction: the equations of both stages (neither paper nor code were at hand); which of the two aims is meant.
    Ours: start of the prompt, Adam, one prompt update per weight update on the same (z_t, t), the anchor in place of the null
    prompt, exact noise levels by default. With Adam 1e-5 moves an entry by 0.01 in 1000 updates: tune ``prompt_lr`` before
    believing it.
    Not kept: the learned prompt. The patch holds weights only, so this erases and offers no recovery by key.
    ``preserve`` of the request is not used.
    Cost: 2 k + 4 + ``prompt_updates`` evaluations per row and step, k uniform on 0 .. S-1 (54 at S = 50 and one update); one
    backward through two of them for the weights, one through each of ``prompt_updates`` for the prompt. With a filled pool: 4 +
    ``prompt_updates``.
    """

    name: ClassVar[str] = "kpop"
    summary: ClassVar[str] = "move the target into a learnable prompt that is dropped, and erase it from the weights"
    paper: ClassVar[str] = "Bui et al., arXiv:2403.12326"
    presets: ClassVar = {
        "paper": {},
        "adversary": {"with_prompt_target": "erase"},
        "mini": {**Trained.defaults, "eta": 0.25, "prompt_lr": 1e-2},
        "tiny": {"steps": 3, "sampling_steps": 5, "prompt_size": 2, "prompt_lr": 1e-2},
    }

    eta: float = option(1.0, "how far beyond the anchor the goal lies", "names of released runs")
    lam: float = option(0.1, "weight of the term with prompt", "names of released runs; flag default 0.01", low=0.0)
    with_prompt_target: str = option("recover", "aim of the prediction with prompt", "v3", choices=("recover", "erase"))
    place: str = option("mid", "layers that read the prompt", "names of released runs", choices=("mid", "midout", "inmidout"))
    prompt_size: int = option(10, "tokens of a prompt", "names of released runs; flag default 1", low=1)
    prompt_init: float = option(0.02, "standard deviation of the prompt's start", "ours", low=0.0)
    prompt_lr: float = option(1e-5, "Adam learning rate of the prompt", "names of released runs", low=0.0, needs="prompt_updates")
    prompt_updates: int = option(1, "prompt updates per weight update", "prompt_optk 2: every other iteration", low=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "extra_context")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        per_row = self.draw_cost(1) + 4 + self.prompt_updates
        return self.steps * self.batch * per_row + self.fill_cost(request)

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
