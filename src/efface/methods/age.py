"""Adaptive Guided Erasure (AGE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..concepts.request import EraseRequest
from ..equations.guidance import away_from
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..options import part
from ..patches import Patch
from ..preservation.film import Film
from ..preservation.gumbel import Gumbel, GumbelSearch
from ..training.loop import Run, Step
from ..training.scene import Scene, predictions
from .base import option
from .trained import Searching


@dataclass(frozen=True, kw_only=True)
class AGE(Searching):
    """Map the target to a neighbouring concept that is searched for, and preserve that neighbour.

    Objective::

        min_theta' max_pi   L1 + lam L2
        L1 = | eps'(z_t, t, c_e) - goal |^2
        L2 = | eps'(z'_t, t, c_t) - eps(z'_t, t, c_t) |^2
        goal = eps(z_t, t, c_t) - eta (eps(z_t, t, c_e) - eps(z_t, t, c_t))
        c_t = G(pi) . M_e

    eps' is the network that is trained (weights theta'), eps the frozen model. c_e is the encoded
    target and c_t the searched concept, which is the anchor and the preserved concept at once. M_e
    holds the ``search.nearest`` candidates around c_e, and G is the Gumbel-Softmax of one logit pi
    for each candidate. z_t is a latent of c_e, z'_t one of c_t. The maximum of L1 keeps c_t away
    from synonyms of the target; the maximum of L2 looks for what the erasure hurts. The request's
    anchor is not used, because c_t stands in its place.

    Variants: with ``through_target=True`` (the paper) the search's L1 is | eps'(z_t, t, c_e) -
    eps(z_t, t, c_t) |^2, with its gradient through the frozen model at c_t. With False (the
    official code) that term is constant, so that the search is the one of AP. ``search.hard=False``
    takes a mixture of the ``search.topk`` largest entries, scaled to sum to 1 (officially for
    artists). The official presets have eta 1, compare clean latents (x0) and use the official
    code's shifted timesteps; the paper's equations 4 and 5 have eta 0 and compare noise. "official"
    is the script for objects with 100 candidates, "official-artists" thins 1,000 candidates to 100,
    and "official-nudity" trains other weights. The vocabulary is yours to give (``search.space``).

    Reference: Bui et al., ICLR 2025, "Fantastic Targets for Concept Erasure in Diffusion Models and
    Where To Find Them". What the paper calls *target* is what we call anchor. Code:
    tuananhbui89/Adaptive-Guided-Erasure, train_age.py.

    Deviations: the targets are excluded from the candidates, and with ``search.apart`` also the
    names that lie closer to a target than that. The official vocabulary contains the target itself,
    and c_t = c_e erases nothing and preserves the target. The request's preserve set joins the
    candidates. Trajectories of c_e and c_t run as one batch from the same start. Where clean
    latents are compared, the weight is that of the grid's noise level, as officially, although t is
    drawn within a grid step.

    Official preset: agrees with the official operations up to 1e-4 of the change ("official", five
    updates and their search steps on the tiny model in float32, tests/test_official.py), vocabulary
    and excluded names left out.

    Cost: UNet evaluations per row and step, with k sampler steps to z_t, uniform on 0 .. S-1, less
    one evaluation where k > 0: the update 4 k + 5 (4 k + 4 where eta is 0), and each search step 4
    k + 4 with ``through_target`` (two of them with a gradient), else 2 k + 2. With a filled pool: 5
    (4) and 4 (2).
    """

    name: ClassVar[str] = "age"
    summary: ClassVar[str] = "map the target to a neighbour that is searched for, and preserve that neighbour"
    paper: ClassVar[str] = "Bui et al., ICLR 2025"
    presets: ClassVar = {
        "paper": {},
        "official": {**Searching.official_code, "through_target": False},
        "official-artists": {
            **Searching.official_code,
            "through_target": False,
            "search.nearest": 1000,
            "search.centres": 100,
            "search.hard": False,
            "search.topk": 5,
            "search.tau": 2.0,
            "search.lr": 1e-3,
        },
        "official-nudity": {**Searching.official_code, "through_target": False, "search.tau": 2.0, "train": "noxattn"},
        **Searching.on_miniatures,
        "tiny": {"steps": 3, "sampling_steps": 5, "search.nearest": 4},
    }

    eta: float = option(
        0.0, "how far beyond the searched concept, away from the target, the goal lies", "paper 0; official code 1"
    )
    lam: float = option(1.0, "weight of the preservation term", "official --lamda", low=0.0)
    search: Gumbel = part(
        Gumbel.preset("age"),
        "how the concept that replaces the target is found",
        "paper; tau of the official objects script, its default is 2",
        kinds=(Gumbel,),
    )
    through_target: bool = option(True, "let the search follow the erasing term's gradient too", "paper; official code without")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search.update != "alternate":
            raise BadOption("AGE's search has an objective of its own and cannot share the update's; leave search.update out.")

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        names = self.search.candidates(model, request)
        descent = self.draw_cost(model, 2) + 4 + (self.eta != 0)
        ascent = self.draw_cost(model, 2) + 4 if self.through_target else self.draw_cost(model, 1) + 2
        film = Film.evals(self.frames, self.steps, self.sampling_steps, model.branches(self.guidance))
        filled = self.fill_cost(model, request, names, self.per_candidate)
        return self.steps * self.batch * (descent + self.search.ascents * ascent) + film + filled

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent = run or Run(), model.evals.snapshot()
        names = self.search.candidates(model, request)
        scene = self.scene(model, request, names, self.per_candidate)
        search = self.search.begin(scene, names)
        film = Film(self.frames, self.steps, self.sampling_steps, self.guidance)
        for step in self.updates(scene, run, {"search": search, "film": film}):
            # Descent: the target becomes c_t, and c_t stays what it is.
            e, target = scene.draw(step)
            chosen = search.choose(e, step)
            film.take(step, model, scene.student, chosen, target.names[0])
            c_e, c_t = target.cond, chosen.cond
            (z_e, z_t), t = scene.latents.draw(search.groups(target, chosen), step)
            frozen = [(z_e, c_t), (z_t, c_t), *([(z_e, c_e)] if self.eta else [])]
            with torch.no_grad():
                eps_t, kept_t, *eps_e = predictions(model, frozen, t)
            new_e, new_t = predictions(scene.student, [(z_e, c_e), (z_t, c_t)], t)
            goal = away_from(eps_t, eps_e[0], self.eta) if self.eta else eps_t
            step.log(target=target.names[0], concept=chosen.names[0], **search.facts(e[0]))
            step.minimize(
                erase=scene.distance(new_e, goal, t).mean(), preserve=self.lam * scene.distance(new_t, kept_t, t).mean()
            )
            # Ascent: the search climbs both terms with the weights as they are now.
            for _ in range(self.search.ascents):
                self._ascend(step, scene, search)
        log = {**self.searched(run, request, names), **film.log()}
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent, **log))

    def _ascend(self, step: Step, scene: Scene, search: GumbelSearch) -> None:
        e, target = scene.draw(step)
        chosen = search.sample(e, step)
        groups = search.groups(target, chosen)
        z, t = scene.latents.draw(groups if self.through_target else groups[1:], step)
        with scene.student.frozen():
            objective = self.lam * scene.damage(chosen.cond, z[-1], t)
            if self.through_target:
                with torch.no_grad():
                    new_e = scene.student.predict(z[0], t, target.cond)
                # L1 of the search, its gradient through the frozen model's prediction at c_t.
                objective = objective + scene.distance(new_e, scene.model.predict(z[0], t, chosen.cond), t)
            objective.mean().backward()
            search.follow(e)
