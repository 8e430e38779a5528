"""Move the weights back towards the original model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import BadOption
from ..models.select import ENCODERS
from ..patches import Patch
from .base import Attack, Attempt, Deployed, Goal, Plan, finished

SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Restore(Attack):
    """Put parts of the public original model back, without training.

    Objective::

        W' + a (W - W'),    a = 0.25, 0.5, 0.75, 1

    W are the original weights and W' the erased ones. Where the patch changes the text encoder, one
    more image is drawn with the original text encoder and everything else erased, the swap that a
    user of a pipeline makes without knowing.

    Every erasure is undone by its original weights (a = 1), so this stands beside the union of
    attacks and not in it. It says how much of the way must be gone, and warns of erasures that sit
    in a part which is often exchanged.

    Tier T5. Reference: ours.

    Cost: one image for each case and share, and one for the text encoder.
    """

    name: ClassVar[str] = "restore"
    summary: ClassVar[str] = "put parts of the public original model back"
    paper: ClassVar[str] = "ours"
    tier: ClassVar[str] = "T5"
    in_union: ClassVar[bool] = False
    curve: ClassVar[bool] = True

    def _variants(self, patch: Patch) -> list[tuple[str, Patch]]:
        found = [(f"share {a}", patch.scaled(1 - a)) for a in SHARES]
        rest = {n: d for n, d in patch.deltas.items() if not n.startswith(ENCODERS)}
        if len(rest) < len(patch.deltas):
            found.append(("text encoder", replace(patch, deltas=rest)))
        return found

    def plan(self, deployed: Deployed, goal: Goal, budget: int) -> Plan:
        if deployed.patch is None:
            raise BadOption("the attack restore takes a patch back, and none was given; give one with --patch.")
        variants, n, one = len(self._variants(deployed.patch)), len(goal.cases), deployed.reference_cost(goal.guidance)
        self.afford(budget, variants * one)
        return Plan(variants, forward=variants * n * one, skipped=variants * n * deployed.steps)

    def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
        assert deployed.patch is not None
        attempts: list[Attempt] = []
        for stage, patch in self._variants(deployed.patch):
            with replace(deployed, patch=patch, guard=None).active() as model:
                attempts += finished(model, goal.cases, deployed.steps, stage)
        return attempts
