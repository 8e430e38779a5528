"""Adaptive Guided Erasure (AGE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..concepts.request import EraseRequest
from ..equations.guidance import away_from
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.select import selection
from ..patches import Patch
from ..preservation.candidates import candidates
from ..preservation.film import Film
from ..preservation.gumbel import GumbelSearch
from ..preservation.search import Chosen
from ..training.latents import Group, Latents
from ..training.loop import Run, Stateful, Step, training
from ..training.processes import share
from .base import option
from .trained import Searching, predictions


@dataclass(frozen=True, kw_only=True)
class AGE(Searching):
    """Map the target to a concept that is searched for, and preserve that concept: one concept in both roles.

        min_theta' max_pi   L1 + lam L2
        L1 = | eps'(z_t, t, c_e) - goal |^2,        goal = eps(z_t, t, c_t) - eta (eps(z_t, t, c_e) - eps(z_t, t, c_t))
        L2 = | eps'(z'_t, t, c_t) - eps(z'_t, t, c_t) |^2
        c_t = G(pi) . M_e,    M_e the ``nearest`` candidates around c_e, z_t drawn for c_e, z'_t for c_t

    The inner maximum of L1 keeps c_t away from synonyms of the target, that of L2 looks for what the erasure hurts. The
    request's anchor is not used: c_t stands in its place.
    Reference: Bui et al., ICLR 2025, "Fantastic Targets for Concept Erasure in Diffusion Models and Where To Find Them" (its
    *target* is our anchor). Code: tuananhbui89/Adaptive-Guided-Erasure, train_age.py.
    Variants: ``through_target=True`` (paper): the search's L1 = | eps'(z_t, t, c_e) - eps(z_t, t, c_t) |^2 has its gradient
    through the frozen model at c_t. False (official code): that term is a constant, so its search is AP's. ``hard=False``: a
    mixture of the ``topk`` largest entries, renormalised (officially for artists). eta 1, x0 space and the shifted alignment are
    the official code's (preset "official"); the paper's Eq. 4-5 have eta 0 in noise space.
    Deviations: targets are excluded from the candidates, with ``apart`` also what lies closer than that to a target: the
    official vocabulary contains the target itself, and c_t = c_e erases nothing and preserves the target. ``request.preserve``
    joins the candidates. Trajectories of c_e and c_t run as one batch from the same start.
    Cost: per row and step, k uniform on 0 .. S-1, less one evaluation where k > 0: descent 4 k + 5 (eta = 0: 4 k + 4), each
    ascent 4 k + 4 with ``through_target`` (two of them with a gradient), else 2 k + 2. With a filled pool: 5 (4) and 4 (2).
    """

    name: ClassVar[str] = "age"
    summary: ClassVar[str] = "map the target to a searched neighbour and preserve that neighbour"
    paper: ClassVar[str] = "Bui et al., ICLR 2025"
    presets: ClassVar = {
        "paper": {},
        "official": {**Searching.official_code, "through_target": False},
        "official-artists": {
            **Searching.official_code,
            "through_target": False,
            "hard": False,
            "topk": 5,
            "tau": 2.0,
            "pi_lr": 1e-3,
        },
        "mini": {**Searching.defaults, "nearest": 48, "pi_lr": 0.1},
        "tiny": {"steps": 3, "sampling_steps": 5, "nearest": 4},
    }

    eta: float = option(0.0, "how far beyond c_t the goal lies", "paper 0; official code 1")
    lam: float = option(1.0, "weight of the preservation term", "official --lamda", low=0.0)
    space: str = option(
        "auto", "candidates: auto, world, english, vocabulary, or a file of names", "officially English or ImageNet words"
    )
    nearest: int = option(100, "candidates kept around each target", "official scripts --gumbel_k_closest 100", low=1)
    metric: str = option("cosine", "distance of candidates", "AP's paper cosine; official code l2", choices=("cosine", "l2"))
    exclude_targets: bool = option(True, "remove the targets from the candidates", "ours; official code forgets")
    apart: float = option(0.0, "smallest distance of a candidate to the target", "ours, against near-synonyms", low=0.0)
    hard: bool = option(True, "one-hot c_t with straight-through gradient", "official scripts --gumbel_hard 1")
    topk: int = option(5, "entries of a soft mixture, 0: all", "official --gumbel_topk", low=0, needs="hard=False")
    tau: float = option(0.1, "Gumbel-Softmax temperature", "official objects script 0.1; default 2", low=1e-6)
    pi_lr: float = option(1e-2, "Adam learning rate of the logits", "official scripts --gumbel_lr", low=0.0)
    through_target: bool = option(True, "the search's L1 has a gradient through c_t", "paper; official code without")
    ascents: int = option(1, "search steps per weight update", "official: one", low=0)
    frames: int = option(0, "pictures of the searched concept kept on the card", "official --save_freq", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_hard(self.hard)

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        descent = self.draw_cost(2) + 4 + (self.eta != 0)
        ascent = self.draw_cost(2) + 4 if self.through_target else self.draw_cost(1) + 2
        pooled = self.fill_cost(request, self.candidates(model, request))
        film = Film.evals(self.frames, self.steps, self.sampling_steps)
        return self.steps * self.batch * (descent + self.ascents * ascent) + film + pooled

    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        """What each target may become."""
        return candidates(
            model,
            self.space,
            request.targets,
            exclude_targets=self.exclude_targets,
            nearest=self.nearest,
            metric=self.metric,
            apart=self.apart,
            always=request.preserve,
        )

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent, select = run or Run(), model.evals.snapshot(), selection(self.train)
        names = self.candidates(model, request)
        c_targets = model.encode(request.targets)
        rows = [model.encode(n) for n in names]
        search = GumbelSearch(names, rows, tau=self.tau, hard=self.hard, lr=self.pi_lr, topk=self.topk)
        student = model.student(select)
        latents = self.latents(model, student, request, names)
        film = Film(self.frames, self.steps, self.sampling_steps, self.guidance)
        carry: dict[str, Stateful] = {"search": search, "latents": latents, "film": film}
        for step in training(student, select, steps=self.steps, lr=self.lr, seed=self.seed, run=run, carry=carry):
            # Descent: the target becomes c_t, and c_t stays what it is.
            e = step.draw(len(request.targets), self.batch)
            chosen = search.choose(e, step)
            film.take(step, model, student, chosen, request.targets[e[0]])
            c_e, c_t = c_targets[list(share(e))], chosen.fixed()
            (z_e, z_t), t = latents.draw(self._groups(request, e, c_e, chosen), step)
            frozen = [(z_e, c_t), (z_t, c_t), *([(z_e, c_e)] if self.eta else [])]
            with torch.no_grad():
                eps_t, kept_t, *eps_e = predictions(model, frozen, t)
            new_e, new_t = predictions(student, [(z_e, c_e), (z_t, c_t)], t)
            goal = away_from(eps_t, eps_e[0], self.eta) if self.eta else eps_t
            step.log(target=request.targets[e[0]], concept=chosen.names[0], **search.facts(e[0]))
            step.minimize(
                erase=self.mse(model, new_e, goal, t).mean(), preserve=self.lam * self.mse(model, new_t, kept_t, t).mean()
            )
            # Ascent: the search climbs both terms with the weights as they are now.
            for _ in range(self.ascents):
                self._ascend(step, model, student, request, search, latents, c_targets)
        searched = [{k: row[k] for k in ("step", "target", "concept", "preserve", "entropy")} for row in run.log]
        log = {
            "adversarial": searched,
            "candidates": {t: list(n) for t, n in zip(request.targets, names, strict=True)},
            **({"film": film.shots} if film.shots else {}),
        }
        return Patch.between(model.weights(select), student.weights(select), self.card(model, request, spent, **log))

    def _groups(self, request: EraseRequest, e: list[int], c_e: Cond, chosen: Chosen) -> list[Group]:
        return [Group([request.targets[i] for i in e], c_e), Group(chosen.names, chosen.fixed())]

    def _ascend(
        self,
        step: Step,
        model: DiffusionModel,
        student: DiffusionModel,
        request: EraseRequest,
        search: GumbelSearch,
        latents: Latents,
        c_targets: Cond,
    ) -> None:
        e = step.draw(len(request.targets), self.batch)
        chosen = search.choose(e, step)
        c_e, c_t = c_targets[list(share(e))], chosen.cond
        groups = self._groups(request, e, c_e, chosen)
        z, t = latents.draw(groups if self.through_target else groups[1:], step)
        with student.frozen():
            with torch.no_grad():
                kept_t = model.predict(z[-1], t, chosen.fixed())
            objective = self.lam * self.mse(model, student.predict(z[-1], t, c_t), kept_t, t)
            if self.through_target:
                with torch.no_grad():
                    new_e = student.predict(z[0], t, c_e)
                # L1 of the search, its gradient through the frozen model's prediction at c_t.
                objective = objective + self.mse(model, new_e, model.predict(z[0], t, c_t), t)
            objective.mean().backward()
            search.follow(e)
