"""The search for the concept that a change hurts most: candidates, and five ways to choose among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .concepts.spaces import ConceptSpace, distances, smallest
from .equations.simplex import entropy, gumbel_noise, gumbel_softmax, largest, spread
from .equations.steps import into_ball, normalised_ascent
from .learned import Learned, collected
from .models.base import DiffusionModel
from .models.cond import Cond
from .parallel import share
from .pictures import encoded_png
from .training import Step

CHUNK = 64


def concept_space(name: str, model: DiffusionModel) -> ConceptSpace:
    """``auto``: the model's own closed world where it has one, else 3,000 common English words; ``english``, ``world`` and
    ``vocabulary`` (whole words of the tokenizer) by name; else a file."""
    if name == "auto":
        name = "world" if model.concept_names else "english"
    if name == "world":
        return ConceptSpace.of("world", model.concept_names).require(1)
    if name == "vocabulary":
        return ConceptSpace.of("vocabulary", model.vocabulary())
    if name == "english":
        return ConceptSpace.english()
    return ConceptSpace.from_file(name)


def candidates(
    model: DiffusionModel,
    space_name: str,
    targets: Sequence[str],
    *,
    exclude_targets: bool,
    nearest: int,
    metric: str,
    centres: int = 0,
    apart: float = 0.0,
    always: Sequence[str] = (),
) -> list[tuple[str, ...]]:
    """The searched names of every target: the ``nearest`` of the space (see :func:`concept_space`), then ``always``.

    ``apart``: names closer than this to a target are left out (near-synonyms). ``centres`` > 0 thins the nearest to so many that
    spread over their range of distances, as the official code does with one-dimensional k-means.
    """
    space = concept_space(space_name, model)
    space = (space.without(targets) if exclude_targets else space).require(1)
    rows, parts = model.encode(targets).tokens, []
    for i in range(0, len(space.candidates), 512):  # in parts: a whole vocabulary of embeddings is 11 GB on SD 1.x
        tokens = model.encode(space.candidates[i : i + 512]).tokens
        parts.append(torch.stack([distances(row, tokens, metric) for row in rows]))
    found = []
    for distance in torch.cat(parts, dim=1):
        order = [i for i in smallest(distance, len(distance)).tolist() if distance[i] >= apart][:nearest]
        if centres:
            order = [order[i] for i in spread(distance[order], centres).tolist()]
        near = [space.candidates[i] for i in order]
        found.append(ConceptSpace.of(space.name, [*near, *always]).require(1).candidates)
    return found


@dataclass(frozen=True)
class Chosen:
    """Concepts to preserve. ``names``: of the whole batch; ``cond``: this process's rows, with gradient where it has one."""

    names: list[str]
    cond: Cond

    def fixed(self) -> Cond:
        return self.cond.detached()


class Search(Protocol):
    """``e``: target index of every row of the whole batch."""

    def choose(self, e: Sequence[int], step: Step) -> Chosen: ...
    def facts(self, i: int) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Climbing(Search, Protocol):
    """A search that gradients move."""

    def follow(self, e: Sequence[int]) -> None:
        """One ascent for the drawn targets, with the gradients that a backward pass of the damage has left behind."""


class _Still:
    """What keeps no state and tells nothing."""

    def facts(self, i: int) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class UniformSearch(_Still):
    """Every candidate alike: the control that isolates the value of searching. With one candidate: a fixed concept."""

    def __init__(self, names: Sequence[Sequence[str]], rows: Sequence[Cond]) -> None:
        self.names, self.rows = names, rows

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        picked = [step.randint(len(self.names[i])) for i in e]
        return _rows(self.names, self.rows, e, picked)


class ExhaustiveSearch(_Still):
    """``c_a = argmax_c |eps'(z_t, t, c) - eps(z_t, t, c)|^2`` over all candidates, looked up again every ``refresh`` updates.

    ``damage(cond, z, t)``: (n,) damage per row. Cost: 2 evaluations per candidate, target and refresh, plus the latents.
    """

    def __init__(self, names: Sequence[Sequence[str]], rows: Sequence[Cond], refresh: int) -> None:
        self.names, self.rows, self.refresh = names, rows, refresh
        self.worst = [0] * len(names)
        self.margin = [0.0] * len(names)

    def due(self, step: Step) -> bool:
        return step.index % self.refresh == 0

    @torch.no_grad()
    def rank(self, i: int, damage: Callable[[Cond, Tensor, Tensor], Tensor], z: Tensor, t: Tensor) -> None:
        parts = [
            damage(self.rows[i][slice(k, k + CHUNK)], z[k : k + CHUNK], t[k : k + CHUNK])
            for k in range(0, len(self.rows[i]), CHUNK)
        ]
        scores = torch.cat(parts)
        self.worst[i] = int(scores.argmax())
        self.margin[i] = float(scores.max() / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny))

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        return _rows(self.names, self.rows, e, [self.worst[i] for i in e])

    def facts(self, i: int) -> dict[str, float]:
        """How many times the mean damage the worst candidate has."""
        return {"margin": self.margin[i]}

    def state_dict(self) -> dict[str, Any]:
        return {"worst": self.worst, "margin": self.margin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worst, self.margin = list(state["worst"]), list(state["margin"])


class GumbelSearch:
    """``c_a = G(pi) . M_e``: logits per target over its candidates, climbed by Adam (Gumbel-Softmax, straight-through if hard).

    Logits start uniform at 1/n and are kept for the whole run. One optimizer per target: a target that was not drawn must not
    drift by momentum. ``topk`` > 0 and soft: a mixture of so many candidates at most.
    """

    def __init__(
        self, names: Sequence[Sequence[str]], rows: Sequence[Cond], *, tau: float, hard: bool, lr: float, topk: int = 0
    ) -> None:
        self.names, self.rows, self.tau, self.hard, self.topk = names, rows, tau, hard, topk
        self.pi = Learned([torch.full((len(n),), 1 / len(n)) for n in names], lr, maximize=True)

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        noise = [gumbel_noise((len(self.names[i]),), step.rng) for i in e]
        picked = [int((self.pi.values[i].detach() + g).argmax()) for i, g in zip(e, noise, strict=True)]
        mixed = []
        for i, g, j in zip(share(list(e)), share(noise), share(picked), strict=True):
            y = gumbel_softmax(self.pi.values[i], g, self.tau, self.hard)
            y = largest(y, self.topk) if self.topk and not self.hard else y
            mixed.append(self.rows[i].mixture(y, j))
        names = [self.names[i][j] for i, j in zip(e, picked, strict=True)]
        return Chosen(names, Cond.cat(mixed))

    def follow(self, e: Sequence[int]) -> None:
        self.pi.update(e)

    def facts(self, i: int) -> dict[str, float]:
        return {"entropy": float(entropy(self.pi.values[i].detach() / self.tau))}

    def state_dict(self) -> dict[str, Any]:
        return self.pi.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pi.load_state_dict(state)


class PgdSearch:
    """A free embedding per target, started at the target and climbed by steps of length ``rate |p|``.

    ``radius`` > 0 projects it back to within ``radius |c_e|`` of the target; the official code, despite its name, does not.
    """

    def __init__(self, targets: Sequence[str], rows: Cond, *, rate: float, radius: float) -> None:
        self.targets, self.origin, self.rate, self.radius = targets, rows, rate, radius
        self.points = [row.clone().requires_grad_(True) for row in rows.tokens]

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        own = share(list(e))
        c = replace(self.origin[list(own)], tokens=torch.stack([self.points[i] for i in own]))
        return Chosen([self.targets[i] for i in e], c)

    def follow(self, e: Sequence[int]) -> None:
        for i, gradient in collected(self.points, e).items():
            p = self.points[i]
            moved = normalised_ascent(p.detach()[None], gradient[None], self.rate)
            p.data = (into_ball(moved, self.origin.tokens[i][None], self.radius) if self.radius else moved)[0]

    def facts(self, i: int) -> dict[str, float]:
        """How far the embedding has gone, in units of the target's norm."""
        c = self.origin.tokens[i]
        return {"moved": float((self.points[i].detach() - c).norm() / c.norm())}

    def state_dict(self) -> dict[str, Any]:
        return {"points": [p.detach() for p in self.points]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for p, kept in zip(self.points, state["points"], strict=True):
            p.data.copy_(kept)


def _rows(names: Sequence[Sequence[str]], rows: Sequence[Cond], e: Sequence[int], picked: Sequence[int]) -> Chosen:
    own = [rows[i][j] for i, j in zip(share(list(e)), share(list(picked)), strict=True)]
    return Chosen([names[i][j] for i, j in zip(e, picked, strict=True)], Cond.cat(own))


class Film:
    """Pictures of the searched concept over a run, from one start latent, by the student and by the frozen model.

    Each is at most 96 pixels and kept as base64 PNG, so that it fits on a card. Cost: 4 evaluations per sampling step and frame.
    """

    PIXELS, SEED = 96, 4242

    def __init__(self, frames: int, steps: int, sampling_steps: int, guidance: float) -> None:
        self.at = {round(i * (steps - 1) / max(1, frames - 1)) for i in range(frames)} if steps else set()
        self.sampling_steps, self.guidance = sampling_steps, guidance
        self.shots: list[dict[str, Any]] = []

    @staticmethod
    def evals(frames: int, steps: int, sampling_steps: int) -> int:
        return 4 * sampling_steps * min(frames, steps)

    def take(self, step: Step, model: DiffusionModel, student: DiffusionModel, chosen: Chosen, target: str) -> None:
        if step.index in self.at:
            c = chosen.fixed()[[0]]
            shot = {"step": step.index, "target": target, "concept": chosen.names[0]}
            for who, network in (("frozen", model), ("student", student)):
                shot[who] = encoded_png(network.render(c, [self.SEED], self.sampling_steps, self.guidance), self.PIXELS)
            self.shots.append(shot)

    def state_dict(self) -> dict[str, Any]:
        return {"shots": self.shots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shots = list(state["shots"])
