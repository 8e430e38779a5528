"""Baselines for AP: the same erasure without a search. They differ from AP only in what they
preserve."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..concepts.request import EraseRequest, normalised
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..patches import Patch
from ..preservation.uniform import UniformSearch
from ..training.loop import Run, Step
from ..training.scene import Scene, predictions
from .base import option
from .trained import Trained

PRESETS: Mapping[str, Mapping[str, object]] = {
    "paper": {},
    "official": {"eta": 1.0, "loss_space": "x0", "sampler.alignment": "official"},
    "mini": Trained.defaults,
    "mini-flow": Trained.on_flow,
    "fast": Trained.fast,
    "tiny": {"steps": 3, "sampling_steps": 5},
}
"""The presets of AP, without what belongs to a search."""
SOURCE = "paper 0; official code 1"


@dataclass(frozen=True, kw_only=True)
class _Unpreserved(Trained):
    """Abstract. Erasure without a preservation term."""

    paper: ClassVar[str] = "baseline of Bui et al., NeurIPS 2024"

    eta: float = option(0.0, "how far beyond the anchor, away from the target, the goal lies", SOURCE)

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        update = 2 + (self.eta != 0) + self.draw_cost(model, 1)
        return self.batch * self.steps * update + self.fill_cost(model, request)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent = run or Run(), model.evals.snapshot()
        scene = self.scene(model, request)
        for step in self.updates(scene, run):
            _, target = scene.draw(step)
            (z_e,), t = scene.latents.draw([target], step)
            (goal,) = scene.goal(target, z_e, t, self.eta)
            step.minimize(erase=scene.distance(scene.student.predict(z_e, t, target.cond), goal, t).mean())
            self.after(step, scene)
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent))

    @abc.abstractmethod
    def after(self, step: Step, scene: Scene) -> None:
        """What happens to the weights after an update."""


@dataclass(frozen=True, kw_only=True)
class Naive(_Unpreserved):
    """Erase the target and preserve nothing.

    Objective::

        min_theta'  | eps'(z_t, t, c_e) - goal |^2,     goal = eps_anchor - eta (eps_e - eps_anchor)

    eps' is the network that is trained (weights theta'); eps_anchor and eps_e are the frozen
    model's predictions for the anchor and for the target c_e at a latent z_t of the target.

    Reference: the naive erasure that Bui et al., NeurIPS 2024, compare AP with.

    Official preset: agrees with the official operations of AP up to 3e-5 of the change ("official",
    five updates on the tiny model in float32, tests/test_official.py).

    Cost: 2 k + 2 UNet evaluations per row and step (3 in place of 2 where eta is not 0), with k
    sampler steps to z_t, uniform on 0 .. S-1. With a filled pool: 2 (3).
    """

    name: ClassVar[str] = "naive"
    summary: ClassVar[str] = "erase the target and preserve nothing: the baseline of AP"
    presets: ClassVar = PRESETS

    def after(self, step: Step, scene: Scene) -> None:
        """Nothing: the update stands."""


@dataclass(frozen=True, kw_only=True)
class L2(_Unpreserved):
    """Erase the target and keep all weights near the original ones, whichever concepts they serve.

    Objective::

        min_theta'  | eps'(z_t, t, c_e) - goal |^2
        and after every step  theta' <- theta' - shrink (theta' - theta)

    theta' are the weights that are trained, theta the original ones; the other symbols are those of
    the baseline ``naive``.

    Reference: L2 regularisation in proximal form; ours, as a control of AP.

    Official preset: agrees with the official operations of AP up to 3e-5 of the change ("official",
    five updates on the tiny model in float32, tests/test_official.py), with a ``shrink`` of
    ours.

    Cost: as the baseline ``naive``.
    """

    name: ClassVar[str] = "l2"
    summary: ClassVar[str] = "erase the target and pull all weights back towards the original ones"
    presets: ClassVar = PRESETS

    shrink: float = option(1e-2, "share of the change that is taken back after every update", "ours", low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrink > 1:
            raise BadOption(f"shrink={self.shrink} is a share of the change; it must not be above 1.")

    def after(self, step: Step, scene: Scene) -> None:
        step.shrink(scene.weights, scene.origin, self.shrink)


@dataclass(frozen=True, kw_only=True)
class _Given(Trained):
    """Abstract. Erasure that preserves concepts which are known beforehand, each as likely as the others."""

    gradient_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "baseline of Bui et al., NeurIPS 2024"
    renamed: ClassVar[Mapping[str, str]] = {**Trained.renamed, "pool_kept": "per_candidate"}

    eta: float = option(0.0, "how far beyond the anchor, away from the target, the goal lies", SOURCE)
    lam: float = option(1.0, "weight of the preservation term", "official code 1 (implicit)", low=0.0)
    per_candidate: int = option(
        1, "stored trajectories for each preserved concept", "ours", low=1, needs="sampler=pool|harvest|noised"
    )

    @abc.abstractmethod
    def kept(self, request: EraseRequest) -> tuple[str, ...]:
        """The concepts to preserve."""

    def names(self, request: EraseRequest) -> list[tuple[str, ...]]:
        """The concepts to preserve for each target. Raises BadOption for a concept that is to be
        erased."""
        kept = self.kept(request)
        taken = [t for t in request.targets if normalised(t) in map(normalised, kept)]
        if taken:
            raise BadOption(f"{self.name} would preserve {taken[0]!r}, which is to be erased.")
        return [kept for _ in request.targets]

    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        update = 4 + (self.eta != 0) + self.draw_cost(model, 2)
        return self.batch * self.steps * update + self.fill_cost(model, request, self.names(request), self.per_candidate)

    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        run, spent, names = run or Run(), model.evals.snapshot(), self.names(request)
        scene = self.scene(model, request, names, self.per_candidate)
        given = UniformSearch(names, [model.encode(n) for n in names])
        for step in self.updates(scene, run):
            e, target = scene.draw(step)
            chosen = given.choose(e, step)
            (z_e, z_a), t = scene.latents.draw(given.groups(target, chosen), step)
            goal, eps_a = scene.goal(target, z_e, t, self.eta, (z_a, chosen.cond))
            new_e, new_a = predictions(scene.student, [(z_e, target.cond), (z_a, chosen.cond)], t)
            step.log(target=target.names[0], concept=chosen.names[0])
            step.minimize(
                erase=scene.distance(new_e, goal, t).mean(),
                preserve=self.lam * scene.distance(new_a, eps_a, t).mean(),
            )
        keys = ("step", "target", "concept", "preserve")
        log = {
            "adversarial": [{k: row[k] for k in keys} for row in run.log],
            "candidates": {t: list(n) for t, n in zip(request.targets, names, strict=True)},
        }
        return Patch.between(scene.origin, scene.weights, self.card(model, request, spent, **log))


@dataclass(frozen=True, kw_only=True)
class Fixed(_Given):
    """Erase the target and preserve the request's preserve set, each of its concepts as likely as
    the others.

    Objective::

        min_theta'  | eps'(z_t, t, c_e) - goal |^2  +  lam | eps'(z'_t, t, c) - eps(z'_t, t, c) |^2

    c is a concept of the preserve set and z'_t one of its latents; the other symbols are those of
    the baseline ``naive``.

    Reference: the fixed preservation that Bui et al., NeurIPS 2024, compare AP with.

    Official preset: agrees with the official operations of AP up to 2e-4 of the change ("official",
    five updates on the tiny model in float32, tests/test_official.py).

    Cost: 4 k + 4 UNet evaluations per row and step (5 in place of the last 4 where eta is not 0),
    with k sampler steps to z_t, uniform on 0 .. S-1, less one evaluation where k > 0. With a filled
    pool: 4 (5).
    """

    name: ClassVar[str] = "fixed"
    summary: ClassVar[str] = "erase the target and preserve the concepts that the request names"
    presets: ClassVar = PRESETS

    concept: str = option("", "the one concept to preserve, in place of the request's preserve set", "ours")

    def kept(self, request: EraseRequest) -> tuple[str, ...]:
        kept = (self.concept,) if self.concept else request.preserve
        if not kept:
            raise BadOption("fixed preserves the request's preserve set, which is empty; name concepts with --preserve.")
        return kept


@dataclass(frozen=True, kw_only=True)
class Neutral(_Given):
    """Erase the target and preserve the anchor, which is the empty prompt unless the request names
    another.

    Objective::

        min_theta'  | eps'(z_t, t, c_e) - goal |^2
                    + lam | eps'(z'_t, t, c_anchor) - eps(z'_t, t, c_anchor) |^2

    The symbols are those of the baseline ``fixed``.

    Reference: the neutral preservation that Bui et al., NeurIPS 2024, compare AP with.

    Official preset: agrees with the official operations of AP up to 2e-4 of the change ("official",
    five updates on the tiny model in float32, tests/test_official.py).

    Cost: as the baseline ``fixed``.
    """

    name: ClassVar[str] = "neutral"
    summary: ClassVar[str] = "erase the target and preserve the anchor"
    presets: ClassVar = PRESETS

    def kept(self, request: EraseRequest) -> tuple[str, ...]:
        return (request.anchor,)
