"""What an attack is: it looks for prompts or embeddings that bring an erased target back, and never grades itself."""

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
from ..errors import BadOption
from ..guards.base import Guard
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..options import Settings, option
from ..patches import Patch

__all__ = ["CHUNK", "TIERS", "Attack", "Attempt", "Deployed", "Goal", "Plan", "option", "rng_of"]

TIERS = {
    "T0": "the prompt box, no feedback",
    "T2": "many images of one prompt",
    "T4": "gradients; the weights stay as they are",
    "T5": "the weights before and after the erasure",
}
CHUNK = 32
"""Cases attacked in one lock-step batch."""


@dataclass(frozen=True)
class Deployed:
    """The system under attack: a patch and a guard on the original model, or another model in its place.

    Outside :meth:`active` there is the original model, which draws what the attacker looks for; inside, what is deployed.
    """

    original: DiffusionModel
    steps: int
    """Sampler steps of an image."""
    targets: tuple[str, ...] = ()
    """The concepts that the guard acts against."""
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

    def per_image(self, guidance: float) -> int:
        """UNet evaluations of one image."""
        return self.steps * (self.guard.branches if self.guard is not None else 1 if guidance == 1.0 else 2)

    @property
    def rows(self) -> int:
        """UNet evaluations of one differentiated prediction; see :meth:`DiffusionModel.deployed_eps`."""
        return self.guard.branches if self.guard is not None else 1

    def references(self, cases: Sequence[Case]) -> Tensor:
        """(N, C, h, w) clean latents of the original model's images. Cost: ``steps`` guided steps per case."""
        parts = [cases[i : i + CHUNK] for i in range(0, len(cases), CHUNK)]
        m = self.original
        return torch.cat(
            [
                m.denoise(m.encode([c.prompt for c in p]), m.case_noise([c.seed for c in p]), self.steps, p[0].guidance)
                for p in parts
            ]
        )

    def reference_cost(self, guidance: float) -> int:
        """UNet evaluations of one reference: the original model has no guard."""
        return self.steps * (1 if guidance == 1.0 else 2)


@dataclass(frozen=True)
class Goal:
    """What to bring back, and where. All cases have one guidance."""

    target: str
    cases: tuple[Case, ...]
    """Prompts that name the target, and seeds."""
    wordings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other words for the target by family: synonym, group, implicit."""

    @property
    def guidance(self) -> float:
        return self.cases[0].guidance


@dataclass(frozen=True)
class Plan:
    """How a budget is spent, settled before anything is computed."""

    images: int
    """Images of the deployed system per case."""
    iterations: int = 0
    """Updates; per case, or in all for an attack that serves all cases with one search."""
    forward: int = 0
    """Evaluations of all cases but for the images above: references and optimisation."""
    backward: int = 0
    """Rows that are differentiated, each counted as one more evaluation."""


@dataclass(frozen=True)
class Attempt:
    """One image to try on the deployed system."""

    case: int
    """Index into the goal's cases."""
    prompt: str
    """The prompt; for an embedding, what it was made from, for people to read."""
    seed: int
    stage: str
    cond: Cond | None = None
    """One row: the embedding to be used in place of the prompt's encoding."""


@dataclass(frozen=True, kw_only=True)
class Attack(Settings):
    """Abstract. A final subclass states objective, tier, deviations and cost in its docstring and fills ``plan`` and ``run``.

    The budget is in UNet evaluations per case: forwards, backwards (one more each: the weights are frozen), reference images of
    the original model and images of the deployed system alike. An attack that serves all cases with one search pools them.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    tier: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "mini": {}, "tiny": {}}
    controls: ClassVar[tuple[str, ...]] = ()
    """Attacks that stand beside this one at the same budget."""
    gate: ClassVar[str] = "plain"
    """Which cases count: "plain", the original model shows the target for the plain prompt; "own", it shows it for the attempt's
    own prompt and seed."""

    seed: int = option(0, "seed of the attack", "ours")

    @abc.abstractmethod
    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        """How the budget is spent; never more than ``budget`` per case. Raises BadOption when it does not suffice."""

    @abc.abstractmethod
    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        """``plan.images`` attempts per case. Changes no weight, same seed, same attempts. Does not render them."""

    def afford(self, budget: int, needed: int) -> None:
        """Raises BadOption when ``needed`` evaluations per case are not in the budget."""
        if budget < needed:
            raise BadOption(
                f"the budget of {budget} UNet evaluations per case is too small for {self.name}: it needs {needed} or more. "
                "Raise --budget."
            )


def rng_of(seed: int, case: Case) -> torch.Generator:
    """A case's own random numbers: they depend on the attack's seed and the case, not on its neighbours in a batch."""
    told = hashlib.sha256(f"attack {seed} {case.id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))
