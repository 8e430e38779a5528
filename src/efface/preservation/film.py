"""Images of the concept that a search has found, taken while an erasure is trained."""

from __future__ import annotations

from typing import Any

from ..concepts.sensitive import sensitive
from ..io.images import encoded_png
from ..models.base import DiffusionModel
from ..training.loop import Step
from .search import Chosen


class Film:
    """Images of the searched concept over a run, from one start latent, by the student and by the
    frozen model.

    Each image has at most 96 pixels and is stored as base64 PNG, so that it fits on a card. Cost: 4
    UNet evaluations for each sampler step and frame.
    """

    PIXELS, SEED = 96, 4242

    def __init__(self, frames: int, steps: int, sampling_steps: int, guidance: float) -> None:
        self.at = {round(i * (steps - 1) / max(1, frames - 1)) for i in range(frames)} if steps else set()
        self.sampling_steps, self.guidance = sampling_steps, guidance
        self.shots: list[dict[str, Any]] = []

    @staticmethod
    def evals(frames: int, steps: int, sampling_steps: int, branches: int) -> int:
        """UNet evaluations of all images of a run, with ``branches`` of them in a sampler step."""
        return 2 * branches * sampling_steps * min(frames, steps)

    def take(self, step: Step, model: DiffusionModel, student: DiffusionModel, chosen: Chosen, target: str) -> None:
        """Draw the chosen concept with both networks, in the updates in which a frame is due."""
        if step.index in self.at:
            c = chosen.fixed()[[0]]
            shot = {"step": step.index, "target": target, "concept": chosen.names[0]}
            hidden = sensitive((target, chosen.names[0]))
            for who, network in (("frozen", model), ("student", student)):
                images = network.render(c, [self.SEED], self.sampling_steps, self.guidance)
                shot[who] = encoded_png(images, self.PIXELS, hidden=hidden)
            self.shots.append(shot)

    def log(self) -> dict[str, Any]:
        """What the card remembers: nothing where no image was taken."""
        return {"film": self.shots} if self.shots else {}

    def state_dict(self) -> dict[str, Any]:
        return {"shots": self.shots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shots = list(state["shots"])
