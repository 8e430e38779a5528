"""KPOP: learnable prompts take the concept in while the weights let it go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import mse_loss

from ..concepts.request import EraseRequest
from ..equations.guidance import away_from
from ..learned import Learned
from ..models.base import DiffusionModel, mean_walk
from ..models.cond import Cond
from ..models.select import UNET_SELECTIONS, selection
from ..patches import Patch
from ..training import Run, training
from .base import Method, option


@dataclass(frozen=True, kw_only=True)
class KPOP(Method):
    """Move the concept into a prompt that is dropped, and erase it from the weights.

        with a prompt p = (p_k, p_v), chosen layers attend to K = W_K [c ; p_k], V = W_V [c ; p_v]    (m more tokens)
        transfer   p      <-  Adam on  | eps'(z_t, t, c_e ; p) - eps(z_t, t, c_e) |^2                        weights fixed
        removal    theta' <-  Adam on  | eps'(z_t, t, c_e) - goal |^2  +  lam | eps'(z_t, t, c_e ; p) - aim |^2    p fixed
        goal = eps_anchor - eta (eps_e - eps_anchor)       aim = eps_e ("recover") or goal ("erase")

    z_t comes from the student's guided trajectory without prompt. Every target has its own p; all layers of ``place`` share
    it. "recover": the prompt stays a key that brings the concept back, and the weights need not unlearn what it holds.
    "erase": the prompt is an adversary that the weights must withstand.

    Reference: Bui et al., arXiv:2403.12326 ("Removing Undesirable Concepts in Text-to-Image Diffusion Models with Learnable
    Prompts", since v3 "Hiding and Recovering Knowledge ... via Learnable Prompts").
    Certain: the prompt mechanism and its three places (code left in the repository of AP); two stages that alternate
    (abstract); m = 10, place mid, lam = 0.1, prompt_lr = 1e-5, xattn, lr 1e-5, 1000 iterations, eta 1 (names of released runs).
    Reconstruction: the equations of both stages (neither paper nor code were at hand); which of the two aims is meant.
    Ours: start of the prompt, Adam, one prompt update per weight update on the same (z_t, t), the anchor in place of the null
    prompt, exact noise levels. With Adam 1e-5 moves an entry by 0.01 in 1000 updates: tune ``prompt_lr`` before believing it.
    Not kept: the learned prompt. The patch holds weights only, so this erases and offers no recovery by key.
    ``preserve`` of the request is not used.
    Cost: 2 k + 4 + ``prompt_updates`` evaluations per step, k uniform on 0 .. S-1 (54 at S = 50 and one update); one backward
    through two of them for the weights, one through each of ``prompt_updates`` for the prompt.
    """

    name: ClassVar[str] = "kpop"
    summary: ClassVar[str] = "move the target into a learnable prompt that is dropped, and erase it from the weights"
    paper: ClassVar[str] = "Bui et al., arXiv:2403.12326"
    presets: ClassVar = {
        "paper": {},
        "adversary": {"with_prompt_target": "erase"},
        "mini": {"steps": 150, "lr": 5e-4, "sampling_steps": 12, "batch": 4, "prompt_lr": 1e-2},
        "tiny": {"steps": 3, "sampling_steps": 5, "prompt_size": 2, "prompt_lr": 1e-2},
    }

    eta: float = option(1.0, "how far beyond the anchor the goal lies", "names of released runs")
    lam: float = option(0.1, "weight of the term with prompt", "names of released runs; flag default 0.01", low=0.0)
    with_prompt_target: str = option("recover", "aim of the prediction with prompt", "v3", choices=("recover", "erase"))
    place: str = option("mid", "layers that read the prompt", "names of released runs", choices=("mid", "midout", "inmidout"))
    prompt_size: int = option(10, "tokens of a prompt", "names of released runs; flag default 1", low=1)
    prompt_init: float = option(0.02, "standard deviation of the prompt's start", "ours", low=0.0)
    prompt_lr: float = option(1e-5, "Adam learning rate of the prompt", "names of released runs", low=0.0)
    prompt_updates: int = option(1, "prompt updates per weight update", "prompt_optk 2: every other iteration", low=0)
    steps: int = option(1000, "weight updates", "names of released runs", low=0)
    lr: float = option(1e-5, "Adam learning rate", "names of released runs", low=0.0)
    batch: int = option(1, "trajectories per update", "family default", low=1)
    sampling_steps: int = option(50, "grid of the partial sampling", "family default", low=2)
    guidance: float = option(3.0, "guidance of the partial sampling", "names of released runs")
    train: str = option("xattn", "trained parameters", "names of released runs (nudity: noxattn)", choices=UNET_SELECTIONS)
    seed: int = option(0, "training seed", "ours")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        walked = mean_walk(self.sampling_steps, official=False)
        return self.steps * self.batch * (2 * walked + 4 + self.prompt_updates)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        spent, select = model.evals.snapshot(), selection(self.train)
        student = model.student(select)
        c_targets, c_anchor = model.encode(request.targets), model.encode([request.anchor] * self.batch)
        shape = (len(c_targets), 2, self.prompt_size, c_targets.tokens.shape[-1])
        start = self.prompt_init * torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        prompts = Learned(list(start.to(model.device)), self.prompt_lr)  # per target (p_k, p_v): (2, m, d)
        for step in training(
            student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run or Run(), carry={"prompts": prompts}
        ):
            e = [step.randint(len(c_targets)) for _ in range(self.batch)]
            c_e, k = c_targets[e], step.randint(self.sampling_steps)
            z_t, t = student.sample_until(c_e, k, self.sampling_steps, model.noise(self.batch, step.rng), self.guidance)
            with torch.no_grad():
                both = model.predict(torch.cat([z_t, z_t]), torch.cat([t, t]), Cond.cat([c_e, c_anchor]))
            eps_e, eps_anchor = both.chunk(2)
            goal = away_from(eps_anchor, eps_e, self.eta)
            # Transfer: the prompt learns what the weights no longer do.
            for _ in range(self.prompt_updates):
                keys, values = prompts.rows(e).unbind(1)
                with student.frozen(), student.extra_context(keys, values, self.place):
                    transfer = mse_loss(student.predict(z_t, t, c_e), eps_e)
                    transfer.backward()
                prompts.update(e)
                step.log(transfer=float(transfer.detach()))
            # Removal: without the prompt the concept goes; with it, it comes back (or goes as well).
            keys, values = prompts.rows(e).detach().unbind(1)
            with student.extra_context(keys, values, self.place):
                prompted = student.predict(z_t, t, c_e)
            aim = eps_e if self.with_prompt_target == "recover" else goal
            step.log(k=k)
            step.minimize(erase=mse_loss(student.predict(z_t, t, c_e), goal), prompted=self.lam * mse_loss(prompted, aim))
        return Patch.between(model.weights(select), student.weights(select), self.card(model, request, spent))
