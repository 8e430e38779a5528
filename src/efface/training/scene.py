"""An erasure that is being trained: the two networks, the targets, and the source of their latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..equations.guidance import away_from
from ..models.base import DiffusionModel
from ..models.cond import Cond
from .latents import Group, Latents
from .loop import Step
from .processes import share


@dataclass(frozen=True)
class Scene:
    """What the body of a method works with while it trains, and with it a search for the concept to
    preserve."""

    model: DiffusionModel
    """The frozen model."""
    student: DiffusionModel
    """The network that is trained."""
    latents: Latents
    targets: Sequence[str]
    c_targets: Cond
    """The encoded targets, one row each."""
    c_anchor: Cond
    """The encoded anchor, one row."""
    batch: int
    """Rows of one update, over all processes."""
    distance: Callable[[Tensor, Tensor, Tensor], Tensor]
    """The mean squared difference (B,) of two predictions (B, C, h, w) at timesteps t (B,), as the method measures it."""
    origin: Mapping[str, Tensor]
    """The weights before training, by name."""
    weights: Mapping[str, Tensor]
    """The weights that are trained, by name."""
    drawn: Callable[[DiffusionModel, Cond, Tensor], Tensor]
    """The clean latents (B, C, h, w) that a network draws for encodings from start noise (B, C, h, w), as the method samples."""

    def draw(self, step: Step) -> tuple[list[int], Group]:
        """Random targets for the rows of one update: their indices in the whole batch, and this
        process's encodings."""
        e = step.draw(len(self.targets), self.batch)
        return e, Group([self.targets[i] for i in e], self.c_targets[list(share(e))])

    def damage(self, c: Cond, z: Tensor, t: Tensor) -> Tensor:
        """(B,) ``|eps'(z_t, t, c) - eps(z_t, t, c)|^2``: what the weights, as they are now, have
        done to the concepts c.

        No gradient passes through the frozen model, as in the official code. Cost: 2 UNet
        evaluations for each row.
        """
        with torch.no_grad():
            eps = self.model.predict(z, t, c.detached())
        return self.distance(self.student.predict(z, t, c), eps, t)

    def relative_damage(self, c: Cond, z: Tensor, t: Tensor) -> Tensor:
        """(B,) :meth:`damage` as a share of what the concept itself does to the frozen model's prediction,
        ``|eps(z_t, t, c) - eps(z_t, t, "")|^2``.

        Some concepts are moved far by any change; divided by their own reach, they are no longer the
        worst for that alone. Without gradient. Cost: 3 UNet evaluations for each row.
        """
        null = self.model.encode([""]).repeat(len(c))
        with torch.no_grad():
            eps, eps_null = predictions(self.model, [(z, c), (z, null)], t)
            reach = self.distance(eps, eps_null, t)
            return self.distance(self.student.predict(z, t, c), eps, t) / reach.clamp_min(torch.finfo(reach.dtype).tiny)

    def image_damage(self, c: Cond, noise: Tensor) -> Tensor:
        """(B,) The mean squared difference of the clean latents that the student and the frozen model draw
        for the concepts c from one start noise (1, C, h, w): damage as it is seen.

        Nothing is decoded. Without gradient. Cost: two images for each row.
        """
        start = noise.expand(len(c), -1, -1, -1)
        with torch.no_grad():
            new, old = (self.drawn(network, c, start) for network in (self.student, self.model))
        return (new - old).square().flatten(1).mean(1)

    def goal(self, target: Group, z: Tensor, t: Tensor, eta: float, *beside: tuple[Tensor, Cond]) -> tuple[Tensor, ...]:
        """The goal of the erasure, ``eps_0 - eta (eps_e - eps_0)``: where the student's prediction
        for the target is to go.

        eps_0 and eps_e are the frozen model's predictions for anchor and target. After the goal
        come its predictions for each ``(z_t, encodings)`` of ``beside``, all from one call.

        Cost: 1 UNet evaluation for each row, 1 more where eta is not 0, and 1 for each of
        ``beside``.
        """
        anchor = (z, self.c_anchor.repeat(len(target.cond)))
        asked = [anchor, *([(z, target.cond)] if eta else []), *beside]
        with torch.no_grad():
            eps = predictions(self.model, asked, t)
        if not eta:
            return tuple(eps)
        return away_from(eps[0], eps[1], eta), *eps[2:]


def predictions(network: DiffusionModel, parts: Sequence[tuple[Tensor, Cond]], t: Tensor) -> list[Tensor]:
    """The network's outputs for several (z_t, encodings) at one t (B,), all in one call; (B, C, h,
    w) each."""
    z = torch.cat([z for z, _ in parts])
    return list(network.predict(z, t.repeat(len(parts)), Cond.cat([c for _, c in parts])).chunk(len(parts)))
