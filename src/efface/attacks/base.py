"""What an attack is: it looks for prompts or embeddings that bring an erased target back, and never
judges its own images."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..concepts.prompts import Case
from ..errors import BadOption, UnknownName
from ..guards.base import Guard
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..options import Settings, option
from ..patches import Patch

__all__ = [
    "CHUNK",
    "TIERS",
    "Attack",
    "Attempt",
    "Called",
    "Deployed",
    "Goal",
    "Plan",
    "drawn",
    "finished",
    "option",
    "own_and_fresh",
    "rng_of",
]

TIERS = {
    "T0": "the prompt box, no feedback",
    "T1": "the prompt box, and the text encoder, which is public; no access to the model",
    "T2": "many images of one prompt",
    "T3": "control of the sampler or of the latent that it starts from",
    "T4": "gradients; the weights stay as they are",
    "T5": "the weights before and after the erasure",
}
CHUNK = 32
"""Number of cases that are attacked together in one batch."""


@dataclass(frozen=True)
class Deployed:
    """The system under attack: a patch and a guard on the original model, or another model in its
    place.

    Inside :meth:`active` the deployed system draws. Outside there is the original model, which
    draws the target and so shows the attacker what to look for.
    """

    original: DiffusionModel
    steps: int
    """Sampler steps of an image."""
    targets: tuple[str, ...] = ()
    """The concepts that the guard holds back."""
    patch: Patch | None = None
    guard: Guard | None = None
    model: DiffusionModel | None = None

    @contextmanager
    def active(self) -> Iterator[DiffusionModel]:
        """The deployed model, for as long as the context lasts."""
        model = self.model or self.original
        with ExitStack() as stack:
            if self.patch is not None:
                stack.enter_context(self.patch.applied(model))
            if self.guard is not None:
                stack.enter_context(self.guard.active(model, self.targets))
            yield model

    def per_step(self, guidance: float) -> int:
        """UNet evaluations of one sampler step of one image."""
        return self.guard.branches if self.guard is not None else self.original.branches(guidance)

    def per_image(self, guidance: float) -> int:
        """UNet evaluations of one image."""
        return self.steps * self.per_step(guidance)

    @property
    def rows(self) -> int:
        """UNet evaluations of one prediction that is differentiated; see
        :meth:`DiffusionModel.deployed`."""
        return self.guard.branches if self.guard is not None else 1

    def references(self, cases: Sequence[Case]) -> Tensor:
        """(N, C, h, w) clean latents of the original model's images. Cost: ``steps`` guided sampler
        steps for each case."""
        return drawn(self.original, cases, self.steps)

    def reference_cost(self, guidance: float) -> int:
        """UNet evaluations of one reference image. The original model has no guard."""
        return self.steps * self.original.branches(guidance)


def drawn(model: DiffusionModel, cases: Sequence[Case], steps: int) -> Tensor:
    """(N, C, h, w) clean latents of the cases, which have one guidance scale, as the model draws them now."""
    parts = [cases[i : i + CHUNK] for i in range(0, len(cases), CHUNK)]
    return torch.cat(
        [
            model.denoise(model.encode([c.prompt for c in p]), model.case_noise([c.seed for c in p]), steps, p[0].guidance)
            for p in parts
        ]
    )


@dataclass(frozen=True)
class Called:
    """How one case's prompt asks for the target."""

    word: str
    """The part of the prompt that names it: the target's name, the name of a category's member, the word for a style."""
    phrase: str
    """What is asked for, without an article: the name, or for a style an object in that style."""
    wordings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other words in the place of ``word``, by kind: synonym, group, implicit."""


@dataclass(frozen=True)
class Goal:
    """What to bring back, and in which cases. All cases have the same guidance scale."""

    target: str
    cases: tuple[Case, ...]
    """Prompts that name the target, each with a seed."""
    wordings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other words for the target, by kind: synonym, group, implicit."""
    called: tuple[Called, ...] = ()
    """Of each case, how its prompt asks for the target; () where every prompt has the target's name."""

    def call(self, case: int) -> Called:
        """How the prompt of the case with this index asks for the target."""
        return self.called[case] if self.called else Called(self.target, self.target, self.wordings)

    @property
    def calls(self) -> tuple[Called, ...]:
        """The distinct ways in which the cases ask for the target."""
        found: dict[str, Called] = {}
        for i in range(len(self.cases)):
            found.setdefault(self.call(i).phrase, self.call(i))
        return tuple(found.values())

    @property
    def guidance(self) -> float:
        """The guidance scale of all cases."""
        return self.cases[0].guidance


@dataclass(frozen=True)
class Plan:
    """How an attack spends its budget, settled before anything is computed."""

    images: int
    """Images of the deployed system for each case."""
    iterations: int = 0
    """Optimisation steps for each case, or in all for an attack that serves all cases with one search."""
    forward: int = 0
    """UNet evaluations of all cases for reference images and optimisation, without the images above."""
    backward: int = 0
    """Predictions that are differentiated; each counts as one more evaluation."""
    skipped: int = 0
    """Sampler steps, of all images of all cases together, that are not taken because the attack hands over a latent on which
    they are done."""


@dataclass(frozen=True)
class Attempt:
    """One image that the deployed system is asked to draw."""

    case: int
    """Index of the case among the goal's cases."""
    prompt: str
    """The prompt or, for an embedding, a text that tells people what it was made from."""
    seed: int
    stage: str
    cond: Cond | None = None
    """The embedding to use in place of the prompt's encoding, one row."""
    latent: Tensor | None = None
    """The latent (1, C, h, w) to start from in place of the seed's noise."""
    taken: int = 0
    """Sampler steps that are done on the latent; all of them make it the latent of a finished image."""


@dataclass(frozen=True, kw_only=True)
class Attack(Settings):
    """Abstract. An attack on an erased model: its options, ``plan``, which divides the budget, and
    ``run``, which finds attempts.

    A final subclass states its objective, tier, deviations and cost in its docstring. The budget
    counts UNet evaluations for each case: forward passes, backward passes (one more each, because
    the weights are frozen), reference images of the original model and images of the deployed
    system alike. An attack that serves all cases with one search puts their budgets together.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    tier: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "mini": {}, "tiny": {}}
    controls: ClassVar[tuple[str, ...]] = ()
    """The attacks without skill that this one is compared with at the same budget."""
    gate: ClassVar[str] = "plain"
    """Which attempts count. "plain": the original model shows the target for the case's plain prompt. "own": it shows the
    target for the attempt's own prompt and seed."""

    teaches: ClassVar[bool] = False
    """Whether the attack can teach a model the target instead of finding it there. Such an attack also runs on a model that never
    saw its target, where there is one: the success there is the part that is teaching."""
    in_union: ClassVar[bool] = True
    """Whether a case that the attack breaks counts as broken in the union of all attacks."""
    curve: ClassVar[bool] = False
    """Whether the stages of the attempts are points of a curve, such as steps of fine-tuning, and are summarised one by one."""

    seed: int = option(0, "seed of the attack", "ours")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tier not in TIERS:
            raise UnknownName(f"tier of the attack {self.name}", self.tier, TIERS)

    @abc.abstractmethod
    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        """How the budget is spent, never more than ``budget`` for each case. Raises BadOption when
        it is too small."""

    @abc.abstractmethod
    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        """``plan.images`` attempts for each case, which are not drawn yet. No weight changes, and
        the same seed gives the same attempts."""

    def images_alone(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        """The plan of an attack that spends nothing but images: as many for each case as the budget has."""
        self.afford(budget, deployed.per_image(goal.guidance))
        return Plan(images=budget // deployed.per_image(goal.guidance))

    def afford(self, budget: int, needed: int) -> None:
        """Raises BadOption when ``needed`` evaluations for each case are not in the budget."""
        if budget < needed:
            raise BadOption(
                f"the budget of {budget} UNet evaluations per case is too small for {self.name}: it needs {needed} or more. "
                "Raise --budget."
            )


def finished(model: DiffusionModel, cases: Sequence[Case], steps: int, stage: str) -> list[Attempt]:
    """Draw every case with a model whose weights the attack has changed, and return one attempt for each: its finished latent
    stands in the place of a prompt that would still have to be drawn. Cost: ``steps`` guided sampler steps for each case."""
    with torch.no_grad():
        latents = drawn(model, cases, steps).cpu().split(1)
    return [
        Attempt(i, case.prompt, case.seed, stage, latent=z, taken=steps)
        for i, (case, z) in enumerate(zip(cases, latents, strict=True))
    ]


def own_and_fresh(case: Case, n: int, rng: torch.Generator) -> list[int]:
    """n seeds of images for a case: its own, then fresh ones."""
    return [case.seed, *torch.randint(2**31, (n,), generator=rng).tolist()][:n]


def rng_of(seed: int, case: Case) -> torch.Generator:
    """Random numbers of one case. They depend on the attack's seed and on the case, not on its
    neighbours in a batch."""
    told = hashlib.sha256(f"attack {seed} {case.id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))
