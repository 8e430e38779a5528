"""How much to measure. A profile fixes sampler steps, guidance and the number of cases per axis."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnknownName
from ..models.base import DiffusionModel


@dataclass(frozen=True)
class Profile:
    name: str
    steps: int
    guidance: float
    cases: dict[str, int]
    damaged: int = 0
    """Names of a concept space that are found by their noise predictions and measured again, in search of damage; see
    :func:`efface.evaluation.damage.damage`."""
    open_steps: int = 50
    """Most sampler steps on models without a world of their own; steps and guidance above are the miniature's."""

    def evals_per_image(self, model: DiffusionModel) -> int:
        """UNet evaluations of one image by this model."""
        return self.steps * model.branches(self.guidance)


LITE = {"direct": 60, "synonym": 30, "implicit": 30, "near": 60, "trap": 20, "far": 60}
PROFILES = {
    p.name: p
    for p in (
        Profile("smoke", 10, 4.0, {"direct": 24, "near": 24, "far": 12, "content": 12}, 0, 20),
        Profile("mini-lite", 12, 4.0, {**LITE, "content": 60}, 12, 30),
        Profile("mini", 16, 4.0, {**{axis: 2 * n for axis, n in LITE.items()}, "trap": 60, "content": 120}, 20, 50),
    )
}


def profile(name: str) -> Profile:
    if name not in PROFILES:
        raise UnknownName("profile", name, PROFILES)
    return PROFILES[name]
